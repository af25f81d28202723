"""The Kubernetes API: read, list and watch objects, and change their status.

Objects are the JSON of the API. kubernetes-asyncio finds the server and the credentials (a
kubeconfig file, or the service account of the pod, whose token it reads again as it is renewed).
Bodies are read here and not by that library, which writes them to its debug log: some are Secrets.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from kubernetes_asyncio.client import ApiClient, Configuration
from kubernetes_asyncio.config import (
    ConfigException,
    load_incluster_config,
    load_kube_config,
)
from yaml import YAMLError

from est_issuer.errors import APIRefused, APIUnavailable, ObjectChanged, ObjectMissing
from est_issuer.kinds import FIELD_MANAGER, SERVICE_ACCOUNTS, Key, Resource
from estcore.errors import ConfigurationError, in_words

Object = dict[str, Any]
_TIMEOUT_S = 15.0
_WATCH_S = 240
_PAGE = 500
_LATER = frozenset({408, 429, 500, 502, 503, 504})
_GONE, _NOT_FOUND, _CONFLICT = 410, 404, 409
_TEXT_LIMIT = 300
_KUBECONFIG_ERRORS: tuple[type[Exception], ...] = (
    *(ConfigException, YAMLError, OSError),
    *(ValueError, TypeError, LookupError, AttributeError, AssertionError),
)
"""What the library raises for a file that is no kubeconfig."""
MERGE_PATCH = "application/merge-patch+json"


@dataclass(frozen=True)
class Event:
    """A change of an object: ``deleted`` where it is gone."""

    key: Key
    object: Object
    deleted: bool = False


class KubernetesAPI:
    """Calls to one API server."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self.answered = False
        """Whether the last call was answered, whatever the answer."""

    @classmethod
    async def connect(cls, kubeconfig: Path | None) -> KubernetesAPI:
        """Return an API that uses a kubeconfig file, or the service account of this pod.

        Raises:
            ConfigurationError: neither can be used.
        """
        # Its debug lines have tokens and bodies.
        logging.getLogger("kubernetes_asyncio").setLevel(logging.WARNING)
        configuration = Configuration()
        try:
            if kubeconfig is None:
                load_incluster_config(configuration)  # type: ignore[no-untyped-call]  # it has no types
            else:
                await load_kube_config(
                    str(kubeconfig), client_configuration=configuration, persist_config=False
                )
            return cls(ApiClient(configuration))
        except _KUBECONFIG_ERRORS as exc:
            place = kubeconfig or "the service account of the pod"
            raise ConfigurationError(f"cannot use {place}: {' '.join(str(exc).split())}") from exc

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def get(self, resource: Resource, key: Key) -> Object:
        """Return one object.

        Raises:
            ObjectMissing, APIRefused, APIUnavailable: see ``est_issuer.errors``.
        """
        return await self._call("GET", _path(resource, key))

    async def create(self, resource: Resource, namespace: str, body: Object) -> Object:
        """Create an object.

        Raises:
            ObjectChanged: it is there already.
            APIRefused, APIUnavailable: see ``est_issuer.errors``.
        """
        query = {"fieldManager": FIELD_MANAGER}
        return await self._call("POST", resource.path(None, namespace), query, body)

    async def replace(self, resource: Resource, key: Key, body: Object) -> Object:
        """Replace an object of the version that ``body`` names.

        Raises:
            ObjectChanged, ObjectMissing, APIRefused, APIUnavailable: see ``est_issuer.errors``.
        """
        return await self._call("PUT", _path(resource, key), {"fieldManager": FIELD_MANAGER}, body)

    async def patch_status(self, resource: Resource, seen: Object, status: Object) -> Object:
        """Change fields of an object's status, if it is still the version ``seen``.

        Raises:
            ObjectChanged, ObjectMissing, APIRefused, APIUnavailable: see ``est_issuer.errors``.
        """
        metadata = seen["metadata"]
        # With its version, the patch of an object that was changed since is refused.
        body = {
            "metadata": {
                "resourceVersion": metadata["resourceVersion"],
                "uid": metadata["uid"],
            },
            "status": status,
        }
        path = f"{_path(resource, key_of(seen))}/status"
        query = {"fieldManager": FIELD_MANAGER}
        return await self._call("PATCH", path, query, body, content_type=MERGE_PATCH)

    async def create_token(self, account: Key, body: Object) -> Object:
        """Create a token of a service account (TokenRequest of authentication.k8s.io/v1).

        Raises:
            ObjectMissing, APIRefused, APIUnavailable: see ``est_issuer.errors``.
        """
        path = f"{_path(SERVICE_ACCOUNTS, account)}/token"
        return await self._call("POST", path, {"fieldManager": FIELD_MANAGER}, body)

    async def is_served(self, resource: Resource) -> bool:
        """Return whether the API server knows a kind.

        Raises:
            APIRefused, APIUnavailable: see ``est_issuer.errors``.
        """
        try:
            await self._call("GET", resource.path(), {"limit": "1"})
        except ObjectMissing:
            return False
        return True

    async def follow(self, resource: Resource) -> AsyncIterator[Event]:
        """Yield every object of a kind in all namespaces, then every change, for ever.

        A listing comes again where the API server no longer has the changes between; an object
        that was deleted meanwhile is not reported then.

        Raises:
            APIRefused, APIUnavailable: see ``est_issuer.errors``.
        """
        while True:
            version = ""
            async for items, listed_version in self._pages(resource):
                version = listed_version
                for item in items:
                    yield Event(key_of(item), item)
            try:
                async for event in self._watch(resource, version):
                    yield event
            except APIRefused as exc:
                if exc.status != _GONE:
                    raise

    async def _pages(self, resource: Resource) -> AsyncIterator[tuple[list[Object], str]]:
        """Yield the objects of a kind, many at a time, with the version of the listing."""
        query = {"limit": str(_PAGE)}
        while True:
            page = await self._call("GET", resource.path(), query)
            yield page["items"], page["metadata"]["resourceVersion"]
            following = page["metadata"].get("continue")
            if not following:
                return
            query = {"limit": str(_PAGE), "continue": following}

    async def _watch(self, resource: Resource, version: str) -> AsyncIterator[Event]:
        while True:
            query = {
                "watch": "true",
                "allowWatchBookmarks": "true",
                "resourceVersion": version,
                "timeoutSeconds": str(_WATCH_S),
            }
            # No data for longer than the server keeps the watch: the connection is broken.
            timeout = aiohttp.ClientTimeout(
                sock_connect=_TIMEOUT_S, sock_read=_WATCH_S + _TIMEOUT_S
            )
            response = await self._send("GET", resource.path(), query, timeout=timeout)
            try:
                async for line in _lines(response):
                    found = line["object"]
                    if line["type"] == "ERROR":
                        raise _refusal(int(found.get("code", 0)), found)
                    version = found["metadata"]["resourceVersion"]
                    if line["type"] != "BOOKMARK":
                        yield Event(key_of(found), found, deleted=line["type"] == "DELETED")
            finally:
                response.close()

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        *,
        content_type: str = "application/json",
    ) -> Object:
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        response = await self._send(
            method, path, query or {}, body=body, content_type=content_type, timeout=timeout
        )
        try:
            answer = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
            raise APIUnavailable(f"the Kubernetes API: {in_words(exc)}") from exc
        finally:
            response.release()
        if not isinstance(answer, dict):
            raise APIUnavailable("the Kubernetes API answers with no object")
        return answer

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        *,
        timeout: aiohttp.ClientTimeout,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> aiohttp.ClientResponse:
        """Return an answer of success, its body not read yet."""
        try:
            response: aiohttp.ClientResponse = await self._client.call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=timeout,
            )
            self.answered = True
            if response.status < 300:  # noqa: PLR2004 - success
                return response
            text = await response.text()
            response.release()
        except (aiohttp.ClientError, TimeoutError, OSError, ConfigException) as exc:
            self.answered = False
            reason = " ".join(str(exc).split())[:_TEXT_LIMIT] or in_words(exc)
            raise APIUnavailable(f"the Kubernetes API: {reason}") from exc
        raise _refusal(response.status, _status(text))


def key_of(found: Object) -> Key:
    """Return namespace and name of an object."""
    metadata = found["metadata"]
    return Key(metadata.get("namespace", ""), metadata["name"])


def _path(resource: Resource, key: Key) -> str:
    return resource.path(quote(key.name, safe=""), quote(key.namespace, safe="") or None)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[Object]:
    """Yield the events of a watch until the server ends it.

    Raises:
        APIUnavailable: the connection broke, or sent what is no event.
    """
    try:
        while line := await response.content.readline():
            found = json.loads(line)
            yield {"type": found["type"], "object": dict(found["object"])}
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError) as exc:
        raise APIUnavailable(f"the watch ended: {in_words(exc)}") from exc


def _status(text: str) -> Object:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _refusal(status: int, found: Object) -> APIRefused | APIUnavailable:
    message = " ".join(str(found.get("message") or f"status {status}").split())[:_TEXT_LIMIT]
    if status in _LATER:
        return APIUnavailable(f"the Kubernetes API answers {status}: {message}")
    kind = {_NOT_FOUND: ObjectMissing, _CONFLICT: ObjectChanged}.get(status, APIRefused)
    return kind(status, f"the Kubernetes API refuses: {message}")
