"""NATS accounts, one a service and front-end group, and what crosses between them.

nats-server checks the subject of a publication and not its reply subject. Inside one account the
server itself therefore writes answers wherever the sender wants. A reply subject never leaves the
account of its sender, so here each service has an account of its own, and reaches what others
answer or what streams store by imports only. They follow from ``permissions``: one table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from estcore.errors import ConfigurationError
from estcore.messages.permissions import STREAMS_ACCOUNT, Permissions
from estcore.messages.topics import stream_of

_EVERYTHING = ">"
_SEVERAL_ANSWERS = ("$JS.API.CONSUMER.MSG.NEXT.", "$JS.API.DIRECT.GET.")


def server_accounts(
    users: Mapping[str, Permissions],
    keys: Mapping[str, str],
    previous_keys: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return nats-server's ``accounts`` for users by name and their public NKeys by name.

    ``previous_keys`` are accepted beside ``keys``, while a user's key is replaced.

    Raises:
        ConfigurationError: a user has no key, or two have the same.
    """
    missing = sorted(users.keys() - keys.keys())
    if missing:
        raise ConfigurationError(f"no public NKey for {', '.join(missing)}")
    accepted = {
        name: list(dict.fromkeys(filter(None, (keys[name], (previous_keys or {}).get(name)))))
        for name in users
    }
    every_key = [key for own in accepted.values() for key in own]
    if len(set(every_key)) != len(every_key):
        raise ConfigurationError("two users have the same NKey")
    found: dict[str, dict[str, Any]] = {
        name: {"users": [], "exports": [], "imports": []}
        for name in dict.fromkeys([STREAMS_ACCOUNT, *(p.account for p in users.values())])
    }
    for name, rights in users.items():
        found[rights.account]["users"] += [
            {"nkey": key, "permissions": rights.server_block()} for key in accepted[name]
        ]
    found[STREAMS_ACCOUNT]["jetstream"] = "enabled"
    for (exporter, kind, subject), importers in _crossings(users.values()).items():
        export: dict[str, Any] = {kind: subject, "accounts": sorted(importers)}
        if kind == "service" and subject.startswith(_SEVERAL_ANSWERS):
            export["response_type"] = "stream"
        found[exporter]["exports"].append(export)
        for importer in sorted(importers):
            found[importer]["imports"].append({kind: {"account": exporter, "subject": subject}})
    return found


def _crossings(users: Iterable[Permissions]) -> dict[tuple[str, str, str], set[str]]:
    """Return importing accounts by exporting account, kind and subject."""
    everyone = tuple(users)
    found: dict[tuple[str, str, str], set[str]] = {}
    for sender in everyone:
        for topic in sender.publish:
            if topic == _EVERYTHING:
                continue
            for exporter, kind, subject, importer in _of_topic(sender, topic, everyone):
                if exporter != importer:
                    found.setdefault((exporter, kind, subject), set()).add(importer)
    return found


def _of_topic(
    sender: Permissions, topic: str, receivers: Iterable[Permissions]
) -> Iterator[tuple[str, str, str, str]]:
    if topic.startswith("$JS.") or stream_of(topic) is not None:
        yield STREAMS_ACCOUNT, "service", topic, sender.account
    for receiver in receivers:
        for wanted in receiver.subscribe:
            common = intersection(topic, wanted)
            if common is None or wanted == _EVERYTHING:
                continue
            if receiver.answers:
                yield receiver.account, "service", common, sender.account
            else:
                # Also where a stream stores the topic: the server delivers nothing that came by a
                # service import to a stream import.
                yield sender.account, "stream", common, receiver.account


def intersection(one: str, other: str) -> str | None:
    """Return the topics that two patterns both match, as a pattern; None if there are none."""
    result: list[str] = []
    left, right = one.split("."), other.split(".")
    for at in range(max(len(left), len(right))):
        if at >= len(left) or at >= len(right):
            return None
        a, b = left[at], right[at]
        if a == ">":
            return ".".join([*result, *right[at:]])
        if b == ">":
            return ".".join([*result, *left[at:]])
        if "*" not in (a, b) and a != b:
            return None
        result.append(b if a == "*" else a)
    return ".".join(result)
