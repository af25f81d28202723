"""The pod that asks by a PodCertificateRequest: whether it is there, and a token of it.

The API server checks pod, service account and node of a request where a kubelet makes it (admission
plug-in NodeRestriction), and not where anybody else does who may create such requests. So they are
read here once more: all three are there with the UIDs of the request, and belong together.
"""

from __future__ import annotations

from typing import Any

from est_issuer.api import KubernetesAPI, Object
from est_issuer.errors import APIRefused, InvalidRequest, IssuerUnusable, ObjectMissing
from est_issuer.kinds import NODES, PODS, SERVICE_ACCOUNTS, Key, Resource

MIRROR = "kubernetes.io/config.mirror"
ROLE = "est-issuer-pod-tokens"
"""The ClusterRole that lets the controller ask for tokens of the pods of a namespace."""
_ENDED = {"Succeeded", "Failed"}
_TOKEN_S = 600
"""The shortest lifetime that the API server allows."""
_FORBIDDEN = 403


class Pods:
    """Reads pods, their service accounts and nodes."""

    def __init__(self, api: KubernetesAPI) -> None:
        self._api = api

    async def require(self, found: Object) -> None:
        """Check that the pod of a request is there as the request says.

        Raises:
            InvalidRequest: it is not.
            APIRefused, APIUnavailable: the Kubernetes API did not say.
        """
        spec, namespace = found["spec"], found["metadata"]["namespace"]
        pod = await self._there(PODS, Key(namespace, spec["podName"]), spec["podUID"])
        account = Key(namespace, spec["serviceAccountName"])
        await self._there(SERVICE_ACCOUNTS, account, spec["serviceAccountUID"])
        await self._there(NODES, Key("", spec["nodeName"]), spec["nodeUID"])
        if reason := pod_differs(pod, spec):
            raise InvalidRequest(f"pod {namespace}/{spec['podName']} {reason}", code="issuer.pod")

    async def token(self, found: Object, audience: str) -> str:
        """Return a token of the pod's service account, for an audience, bound to the pod.

        Raises:
            IssuerUnusable: est-issuer may not ask for it.
            InvalidRequest: the pod or its service account is gone.
            APIRefused, APIUnavailable: the Kubernetes API.
        """
        spec, namespace = found["spec"], found["metadata"]["namespace"]
        account = Key(namespace, spec["serviceAccountName"])
        try:
            answer = await self._api.create_token(account, token_request(spec, audience))
        except ObjectMissing as exc:
            raise InvalidRequest(f"the pod is gone: {exc.reason}", code="issuer.pod") from exc
        except APIRefused as exc:
            if exc.status != _FORBIDDEN:
                raise
            raise IssuerUnusable(
                "Forbidden",
                f"est-issuer may not have tokens of service accounts in namespace {namespace}: "
                f"bind the ClusterRole {ROLE} to it there",
            ) from exc
        return str((answer.get("status") or {})["token"])

    async def _there(self, resource: Resource, key: Key, uid: str) -> Object:
        try:
            found = await self._api.get(resource, key)
        except ObjectMissing as exc:
            raise InvalidRequest(f"there is no {resource.kind} {key}", code="issuer.pod") from exc
        if found["metadata"]["uid"] != uid:
            raise InvalidRequest(
                f"{resource.kind} {key} is not the one of the request: its UID differs",
                code="issuer.pod",
            )
        return found


def pod_differs(pod: Object, spec: dict[str, Any]) -> str:
    """Return in which way a pod is not the one of a request (pure); empty if it is."""
    there = pod.get("spec") or {}
    if there.get("nodeName") != spec["nodeName"]:
        return f"does not run on node {spec['nodeName']}"
    if there.get("serviceAccountName") != spec["serviceAccountName"]:
        return f"does not run as service account {spec['serviceAccountName']}"
    if MIRROR in (pod["metadata"].get("annotations") or {}):
        return "is a mirror pod, which has no identity of its own"
    if (pod.get("status") or {}).get("phase") in _ENDED:
        return "has ended"
    return ""


def token_request(spec: dict[str, Any], audience: str) -> Object:
    """Return the body that asks for a token which ends with the pod (pure)."""
    pod = {"apiVersion": "v1", "kind": "Pod", "name": spec["podName"], "uid": spec["podUID"]}
    return {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "audiences": [audience],
            "expirationSeconds": _TOKEN_S,
            "boundObjectRef": pod,
        },
    }
