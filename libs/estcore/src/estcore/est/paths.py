"""Request targets and paths under ``/.well-known/est`` (RFC 9112 3.2, RFC 7030 3.2.2)."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

PREFIX = "/.well-known/est"
OPERATIONS = frozenset(
    {"cacerts", "simpleenroll", "simplereenroll", "fullcmc", "serverkeygen", "csrattrs"}
)
"""RFC 7030's own; no label may be called like one of them."""
EXTENSIONS = frozenset({"rotation-ack", "renewal-info", "renewed"})
"""Ours: proof that a service uses its new certificate, when to renew one, and a renewed one."""
_WITH_CERTIFICATE = frozenset({"renewal-info", "renewed"})
"""The operations whose path goes on: with the id of a certificate."""
_MAX_CERT_ID = 128
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Route:
    """What a path asks for. ``label`` None means the default label.

    ``certificate_id`` is the last segment of ``renewal-info/<certificate id>`` and
    ``renewed/<certificate id>``, not parsed yet.
    """

    label: str | None
    operation: str
    certificate_id: str | None = None


@dataclass(frozen=True)
class Target:
    """A request target: the path with its query cut off, and the authority in absolute form."""

    path: str
    authority: str | None = None

    @property
    def host(self) -> str | None:
        """The host in absolute form; None in origin form, "" where there is none to serve."""
        return None if self.authority is None else authority_host(self.authority)


def parse_target(target: str) -> Target:
    """Return the parts of a request target in origin or absolute form, still percent-encoded.

    ``http://`` on a TLS connection is for a different server (RFC 9110 section 7.4), and user
    information is not served either (section 4.2.4): both have the authority "". Other forms
    (``*``, ``host:port``) are a path that nothing is served under.
    """
    scheme, separator, rest = target.partition("://")
    if target.startswith("/") or not separator or scheme.lower() not in ("http", "https"):
        return Target(_without_query(target))
    end = min((i for i in map(rest.find, "/?#") if i >= 0), default=len(rest))
    authority = rest[:end]
    if scheme.lower() != "https" or "@" in authority:
        authority = ""
    return Target(_without_query(rest[end:]), authority)


def authority_host(authority: str) -> str:
    """Return the host of ``host:port`` in lower case, an IPv6 address without brackets."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    return authority.partition(":")[0].lower()


def is_served(host: str, names: Collection[str]) -> bool:
    """Return whether a host is one of the server's names; ``*`` stands for the first label."""
    _, dot, parent = host.partition(".")
    return bool(host) and (host in names or bool(dot and parent and f"*.{parent}" in names))


def _without_query(path: str) -> str:
    return path.partition("?")[0]


def is_label(text: str) -> bool:
    """Return whether a label may be configured under this name."""
    return _LABEL.fullmatch(text) is not None and text not in OPERATIONS | EXTENSIONS


def parse_path(path: str) -> Route | None:
    """Return the route of a raw, still percent-encoded path; None where nothing is served.

    Nothing is decoded or normalised, so no spelling of a path reaches another one.
    """
    if not path.startswith(PREFIX + "/"):
        return None
    parts = path[len(PREFIX) + 1 :].split("/", 3)
    certificate_id = None
    if len(parts) > 1 and parts[-2] in _WITH_CERTIFICATE:
        certificate_id = parts.pop()
        if not 0 < len(certificate_id) <= _MAX_CERT_ID:
            return None
    if len(parts) == 1:
        label, operation = None, parts[0]
    elif len(parts) == 2 and is_label(parts[0]):  # noqa: PLR2004 - label and operation
        label, operation = parts[0], parts[1]
    else:
        return None
    if operation not in OPERATIONS and operation not in EXTENSIONS:
        return None
    if (operation in _WITH_CERTIFICATE) != (certificate_id is not None):
        return None
    return Route(label, operation, certificate_id)
