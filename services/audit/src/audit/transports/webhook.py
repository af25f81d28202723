"""HTTPS webhook: a JSON array, or CloudEvents in batch mode, with a signature if a key is set.

``X-Estsuite-Signature: t=SECONDS,v1=HEX`` is HMAC-SHA256 over the seconds, a dot and the body.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

from audit.formats import cloudevents, ecs, ocsf
from audit.formats.entry import Entry
from audit.sink_settings import WebhookSink
from audit.transports.http_client import HTTPClient, bearer, check, pause, secret_of
from audit.transports.transport import Outcome, Prepared
from estcore.clock import Clock

_SIGNATURE = "X-Estsuite-Signature"
_FORMATS: dict[str, tuple[str, Callable[[Entry], dict[str, Any]]]] = {
    "cloudevents": ("application/cloudevents-batch+json", cloudevents.render),
    "json": ("application/json", lambda entry: dict(entry.value)),
    "ecs": ("application/json", ecs.render),
    "ocsf": ("application/json", ocsf.render),
}


class WebhookTransport:
    """Requests to one URL."""

    acknowledged = True

    def __init__(self, sink: WebhookSink, clock: Clock) -> None:
        self._sink, self._clock = sink, clock
        self._client = HTTPClient(sink, clock)
        self._content_type, self._render = _FORMATS[sink.format]

    async def open(self) -> None:
        """Begin a session.

        Raises:
            OSError: a file cannot be used.
        """
        self._client.open()

    def prepare(self, entry: Entry) -> Prepared:
        """Return an entry as JSON."""
        text = json.dumps(self._render(entry), separators=(",", ":"))
        return Prepared(entry.key, text, entry.log_index)

    async def deliver(self, prepared: Sequence[Prepared]) -> Outcome:
        """Send entries.

        Raises:
            BatchRefused: the content is refused for good.
            OSError: not reached, or not now.
        """
        body = ("[" + ",".join(one.payload for one in prepared) + "]").encode()
        headers = {"Content-Type": self._content_type, **bearer(self._sink.token_file)}
        if self._sink.hmac_key_file is not None:
            key = secret_of(self._sink.hmac_key_file).encode()
            headers[_SIGNATURE] = signature(key, int(self._clock.now().timestamp()), body)
        check(await self._client.post(self._sink.url, body, headers))
        return Outcome()

    async def watch(self, seconds: float) -> None:
        """Wait."""
        await pause(seconds)

    async def close(self) -> None:
        """End the session."""
        await self._client.close()


def signature(key: bytes, seconds: int, body: bytes) -> str:
    """Return the value of ``X-Estsuite-Signature``."""
    mac = hmac.new(key, b"%d." % seconds + body, sha256).hexdigest()
    return f"t={seconds},v1={mac}"
