"""Events of Kubernetes (events.k8s.io/v1) about issuers and requests, for ``kubectl describe``.

They are for people and are kept for an hour by the API server. One that cannot be written is left
out: nothing waits for it, and the log and the status have the same.
"""

from __future__ import annotations

import datetime as dt
import logging
import uuid
from typing import Final, Literal

from est_issuer.api import KubernetesAPI, Object
from est_issuer.errors import APIRefused, APIUnavailable
from est_issuer.kinds import EVENTS, Resource
from estcore.clock import Clock
from estcore.runtime.logs import Repetition, fields

log = logging.getLogger(__name__)
CONTROLLER = "estsuite.internal/est-issuer"
NORMAL: Final = "Normal"
WARNING: Final = "Warning"
Kind = Literal["Normal", "Warning"]
_NOTE_LIMIT, _NAME_LIMIT = 1024, 200
_CLUSTER_NAMESPACE = "default"
"""Where events about objects of the whole cluster are."""
_unwritten = Repetition(log, "events cannot be written")


class EventRecorder:
    """Writes events about objects, as one replica of the controller."""

    def __init__(self, api: KubernetesAPI, instance: str, clock: Clock) -> None:
        self._api, self._instance, self._clock = api, instance, clock

    async def record(
        self, resource: Resource, found: Object, kind: Kind, reason: str, note: str
    ) -> None:
        """Write one event about an object; ``reason`` is one word, ``note`` a sentence."""
        namespace = found["metadata"].get("namespace") or _CLUSTER_NAMESPACE
        body = event(
            resource, found, kind, reason, note, instance=self._instance, now=self._clock.now()
        )
        try:
            await self._api.create(EVENTS, namespace, body)
        except (APIRefused, APIUnavailable) as exc:
            _unwritten.warn(reason=exc.reason, code=exc.code)
            log.debug("event was not written", extra=fields(reason=reason, note=note))


def event(
    resource: Resource,
    found: Object,
    kind: Kind,
    reason: str,
    note: str,
    *,
    instance: str,
    now: dt.datetime,
) -> Object:
    """Return an event about an object (pure, but for its name)."""
    metadata = found["metadata"]
    namespace = metadata.get("namespace", "")
    regarding = {
        "apiVersion": f"{resource.group}/{resource.version}",
        "kind": resource.kind,
        "name": metadata["name"],
        "uid": metadata["uid"],
        "resourceVersion": metadata.get("resourceVersion", ""),
        **({"namespace": namespace} if namespace else {}),
    }
    return {
        "apiVersion": f"{EVENTS.group}/{EVENTS.version}",
        "kind": EVENTS.kind,
        "metadata": {
            "name": f"{metadata['name'][:_NAME_LIMIT].rstrip('.-')}.{uuid.uuid4().hex[:16]}",
            "namespace": namespace or _CLUSTER_NAMESPACE,
        },
        "eventTime": now.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": CONTROLLER,
        "reportingInstance": instance,
        "action": "Issue",
        "reason": reason,
        "regarding": regarding,
        "note": " ".join(note.split())[:_NOTE_LIMIT],
        "type": kind,
    }
