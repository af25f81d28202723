"""Topics, streams, consumers, permissions and message models."""

from __future__ import annotations

import inspect
import re

from estcore.messages import (
    audit,
    commands,
    enrollment,
    events,
    permissions,
    renewal_info,
    state,
    topics,
)
from estcore.messages.envelope import Part
from page_generators.descriptions import DESCRIPTIONS
from page_generators.types import type_text, value_text

TOPICS: list[dict[str, str]] = DESCRIPTIONS["topics"]
"""Every topic of the suite: who publishes, who reads, what it carries."""

_MODULES = (enrollment, events, renewal_info, commands, state, audit)


def messages() -> list[type[Part]]:
    """Return every message model and its parts, in the order of their modules."""
    models = []
    for module in _MODULES:
        for value in vars(module).values():
            if (
                inspect.isclass(value)
                and issubclass(value, Part)
                and value.__module__ == module.__name__
            ):
                models.append(value)
    return models


def page() -> str:
    """Return the generated part of events.md."""
    return "\n".join([*_topics(), *_streams(), *_consumers(), *_permissions(), *_messages()])


def _topics() -> list[str]:
    lines = ["## Topics", "", "| topic | stream | published by | read by | message |"]
    lines.append("|---|---|---|---|---|")
    for row in TOPICS:
        topic, message = row["topic"], row["message"]
        shown = message if " " in message else f"[{message}](#{message.lower()})"
        stream = stream_of(topic)
        where = f"`{stream}`" if stream else "core NATS"
        lines.append(f"| `{topic}` | {where} | {row['publisher']} | {row['reader']} | {shown} |")
    return [*lines, ""]


def stream_of(topic: str) -> str | None:
    """Return the stream that keeps a topic; None for core NATS."""
    for stream in topics.STREAMS:
        if any(topic.startswith(pattern.removesuffix(">")) for pattern in stream.topics):
            return stream.name
    return None


def _streams() -> list[str]:
    lines = ["## Streams", "", "| stream | topics | retention | limits | when full | declared by |"]
    lines.append("|---|---|---|---|---|---|")
    for stream in topics.STREAMS:
        limits = [
            f"{stream.max_messages:,} messages" if stream.max_messages > 0 else "",
            f"{stream.max_bytes >> 20:,} MiB" if stream.max_bytes > 0 else "",
            f"{days} day{'s' * (days > 1)}" if (days := stream.max_age_s // 86_400) else "",
            "the last message of each topic" if stream.last_per_topic else "",
            "until its certificates expired" if stream.message_ttl else "",
        ]
        full = "refuses new messages" if stream.discard == "new" else "drops the oldest"
        names = ", ".join(f"`{t}`" for t in stream.topics)
        shown = ", ".join(filter(None, limits))
        lines.append(
            f"| `{stream.name}` | {names} | {stream.retention} | {shown} | {full} | "
            f"`{_COMMANDS[stream.owner]} migrate` |"
        )
    return [*lines, ""]


_COMMANDS = {"ca-signer": "ca-signer", "audit": "est-audit", "renewal": "est-renewal"}


def _consumers() -> list[str]:
    lines = ["## Durable consumers", "", "| consumer | stream | filter | read by |"]
    lines.append("|---|---|---|---|")
    lines.append(
        "| `signer-<issuer>-<priority>` | `EST_REQUESTS` | `est.request.*.<issuer>.<priority>` "
        "| ca-signer, or ca-signer-upstream for its issuers |"
    )
    for reader, consumers in (
        ("renewal", topics.RENEWAL_CONSUMERS),
        ("audit", topics.AUDIT_CONSUMERS),
    ):
        for consumer in consumers:
            shown = ", ".join(f"`{t}`" for t in consumer.topics) or "everything"
            lines.append(f"| `{consumer.name}` | `{consumer.stream}` | {shown} | {reader} |")
    return [*lines, ""]


def _permissions() -> list[str]:
    lines = [
        "## Permissions",
        "",
        "Each user is in a NATS account, which imports what is named here and nothing else "
        "([ADR 0049](../adr/0049-nats-accounts.md)).",
        "",
        "| user | account | may publish | may subscribe |",
        "|---|---|---|---|",
    ]
    users = {
        "est-frontend of group `default`": permissions.frontend("default"),
        "ca-signer": permissions.signer(),
        "`ca-signer check-store`": permissions.check_store(),
        "ca-signer-upstream for the issuer `corporate`": permissions.upstream(["corporate"]),
        "est-renewal": permissions.renewal(),
        "est-audit": permissions.audit(),
        "`migrate` of any service": permissions.provisioner(),
        "operator": permissions.operator(),
        "agent of `demo/web`": permissions.agent("demo", "web"),
    }
    for user, rights in users.items():
        publish, subscribe = (
            ", ".join(f"`{t}`" for t in part) or "nothing"
            for part in (rights.publish, rights.subscribe)
        )
        lines.append(f"| {user} | `{rights.account}` | {publish} | {subscribe} |")
    return [*lines, ""]


def _messages() -> list[str]:
    lines = ["## Messages", ""]
    for model in messages():
        text = inspect.getdoc(model) or ""
        if not text:
            raise SystemExit(f"{model.__name__} has no docstring")
        lines += [f"### {model.__name__}", "", re.sub(r"``([^`]+)``", r"`\1`", text), ""]
        lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
        for name, field in model.model_fields.items():
            default = "required" if field.is_required() else value_text(field.default)
            meaning = field.description or ""
            kind = type_text(field.annotation, field.metadata)
            lines.append(f"| `{name}` | {kind} | {default} | {meaning} |")
        lines.append("")
    return lines
