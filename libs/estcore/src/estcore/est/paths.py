"""Paths under ``/.well-known/est`` (RFC 7030 section 3.2.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass

PREFIX = "/.well-known/est"
OPERATIONS = frozenset(
    {"cacerts", "simpleenroll", "simplereenroll", "fullcmc", "serverkeygen", "csrattrs"}
)
"""RFC 7030's own; no label may be called like one of them."""
EXTENSIONS = frozenset({"rotation-ack"})
"""Ours: proof that a service uses its new certificate."""
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Route:
    """What a path asks for. ``label`` None means the default label."""

    label: str | None
    operation: str


def is_label(text: str) -> bool:
    """Return whether a label may be configured under this name."""
    return _LABEL.fullmatch(text) is not None and text not in OPERATIONS | EXTENSIONS


def parse_path(path: str) -> Route | None:
    """Return the route of a raw, still percent-encoded path; None where nothing is served.

    Nothing is decoded or normalised, so no spelling of a path reaches another one.
    """
    if not path.startswith(PREFIX + "/"):
        return None
    parts = path[len(PREFIX) + 1 :].split("/")
    if len(parts) == 1:
        label, operation = None, parts[0]
    elif len(parts) == 2 and is_label(parts[0]):  # noqa: PLR2004 - label and operation
        label, operation = parts[0], parts[1]
    else:
        return None
    if operation not in OPERATIONS and operation not in EXTENSIONS:
        return None
    return Route(label, operation)
