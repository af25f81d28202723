"""Search terms: by which values the facts of a record are found (pure).

A term is a kind and a value, such as ``("serial", "1a2b")``. The index of the audit log keeps a
64-bit key of each, so different terms may share a key: a search compares the terms themselves.

- ``serial``: of the certificate, of its predecessor, and of the actor's own certificate
- ``name``: SAN entries with and without their type, the subject, its common names; in lower case
- ``principal``: the actor's subject, and the name of an operator
- ``owner`` is ``tenant/service``, ``tenant`` is its first half
- ``correlation``, ``action``, ``outcome``, ``phase`` and ``producer``: as in the record
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from estcore.pki.names import common_names, parse_name
from estcore.tlog.items import expanded

Kind = Literal[
    "correlation",
    "serial",
    "name",
    "principal",
    "owner",
    "tenant",
    "action",
    "outcome",
    "phase",
    "producer",
]
_HUMAN = "human"


class Term(NamedTuple):
    """One kind and one normalized value."""

    kind: Kind
    value: str

    @property
    def key(self) -> int:
        """The first eight octets of SHA-256 over kind and value, as a signed integer."""
        return _key(self.kind, self.value)


def term(kind: Kind, value: str) -> Term:
    """Return the term of a value as a person spells it."""
    if kind == "serial":
        return Term(kind, value.replace(":", "").lower().lstrip("0") or "0")
    if kind == "name":
        return Term(kind, value.strip().lower())
    return Term(kind, value)


def record_terms(record: Mapping[str, Any]) -> set[Term]:
    """Return the terms of all facts of a record."""
    return {Term(*pair) for fact in expanded(record) for pair in _pairs(fact)}


def record_keys(record: Mapping[str, Any]) -> set[int]:
    """Return the keys of the terms of all facts of a record, for an index."""
    return {_key(kind, value) for fact in expanded(record) for kind, value in _pairs(fact)}


def matching_facts(record: Mapping[str, Any], wanted: Iterable[Term]) -> list[Mapping[str, Any]]:
    """Return the facts of a record that have all the wanted terms."""
    terms = set(wanted)
    return [fact for fact in expanded(record) if terms <= fact_terms(fact)]


def fact_terms(fact: Mapping[str, Any]) -> set[Term]:
    """Return the terms of one fact; members of the wrong kind have none."""
    return {Term(*pair) for pair in _pairs(fact)}


def _pairs(fact: Mapping[str, Any]) -> list[tuple[Kind, str]]:
    """Return kinds and normalized values. This runs for every record that is logged."""
    target, actor = _mapping(fact, "target"), _mapping(fact, "actor")
    tenant, service = target.get("tenant"), target.get("service")
    values: list[tuple[Kind, object]] = [
        ("action", fact.get("action")),
        ("outcome", fact.get("outcome")),
        ("phase", fact.get("phase")),
        ("correlation", fact.get("correlation_id")),
        ("producer", _mapping(fact, "producer").get("service")),
        ("principal", actor.get("subject")),
        ("tenant", tenant),
    ]
    if actor.get("type") == _HUMAN:
        values.append(("principal", actor.get("rule")))
    pairs = [(kind, value) for kind, value in values if isinstance(value, str) and value]
    for serial in (
        target.get("serial"),
        target.get("predecessor_serial"),
        actor.get("certificate_serial"),
    ):
        if isinstance(serial, str) and serial:
            pairs.append(term("serial", serial))
    if isinstance(tenant, str) and isinstance(service, str):
        pairs.append(("owner", f"{tenant}/{service}"))
    subject, san = target.get("subject"), target.get("san")
    for entry in san if isinstance(san, list | tuple) else ():
        if isinstance(entry, str) and entry:
            pairs.append(term("name", entry))
            pairs.append(term("name", entry.partition(":")[2]))
    if isinstance(subject, str) and subject:
        pairs.append(term("name", subject))
        pairs += [term("name", common_name) for common_name in _common_names(subject)]
    return [(kind, value) for kind, value in pairs if value != ""]


# Most values repeat from record to record: a call leaves four of them or more.
@functools.lru_cache(4096)
def _common_names(subject: str) -> tuple[str, ...]:
    try:
        return tuple(common_names(parse_name(subject)))
    except ValueError:
        return ()


@functools.lru_cache(8192)
def _key(kind: Kind, value: str) -> int:
    digest = hashlib.sha256(f"{kind}\x00{value}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _mapping(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    member = value.get(name)
    return member if isinstance(member, Mapping) else {}
