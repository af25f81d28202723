"""Write the generated parts of docs/operations: settings, metrics, events.

``python docs/generate.py`` writes them, ``python docs/generate.py --check`` only compares and
ends with 1 when something differs. A generated part stands between two comment lines in a page;
what is around it is written by hand and kept. Everything comes from the code itself: the
settings models, the metrics modules, the declared streams and the message models.
"""

from __future__ import annotations

import datetime as dt
import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import yaml
from prometheus_client import Counter, Gauge, Histogram
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from audit.settings import Settings as AuditSettings
from ca_signer.settings import SignerSettings
from ca_signer.upstream.plugins.est import ESTOptions
from ca_signer.upstream.plugins.vault import VaultOptions
from ca_signer.upstream.settings import UpstreamSettings
from est_frontend.settings import FrontendSettings
from est_frontend_srp.settings import SRPSettings
from estclient.agent.settings import AgentSettings
from estclient.operators.settings import OperatorSettings
from estcore.messages import audit, commands, enrollment, events, permissions, state, topics
from estcore.messages.envelope import Part
from estcore.pki.durations import format_duration
from estcore.pki.profile import Profile
from estcore.policy.document import PolicyDocument
from renewal.settings import RenewalSettings

DOCS = Path(__file__).parent
OPERATIONS = DOCS / "operations"

_NAME = "^[a-z0-9-]{1,63}$"
_WRITTEN = yaml.safe_load((DOCS / "descriptions.yaml").read_text(encoding="utf-8"))
_TEXTS: dict[str, str] = _WRITTEN["settings"]
"""Descriptions of fields whose model does not carry one."""


@dataclass(frozen=True)
class Setting:
    """One row of a settings table."""

    name: str
    type: str
    default: str
    text: str
    variable: str | None


def settings_of(model: type[BaseModel], prefix: str | None) -> list[Setting]:
    """Return every setting under a model, in file order; nested ones with dotted names."""
    return list(_walk(model, "", prefix, required=True))


def _walk(
    model: type[BaseModel], place: str, prefix: str | None, *, required: bool
) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        path = f"{place}{name}"
        inner, shape = _nested(field.annotation)
        if inner is None:
            yield _setting(path, field, prefix, required=required)
            continue
        below = {"one": f"{path}.", "list": f"{path}[].", "mapping": f"{path}.<name>."}[shape]
        optional = not field.is_required() and _default(field) in {"none", "empty"}
        yield from _walk(inner, below, prefix, required=required and not optional)


def _nested(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """Return the model inside an annotation and whether there is one, a list or a mapping."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation, "one"
    for argument in typing.get_args(annotation):
        found, _ = _nested(argument)
        if found is not None:
            origin = typing.get_origin(annotation)
            return found, {tuple: "list", dict: "mapping"}.get(origin, "one")
    return None, "none"


def _setting(path: str, field: FieldInfo, prefix: str | None, *, required: bool) -> Setting:
    text = field.description or _TEXTS.get(path)
    if text is None:
        raise SystemExit(f"{path} has no description: give it one in docs/descriptions.yaml")
    default = _default(field)
    if field.is_required():
        default = "**required**" if required else "required with its section"
    plain = "[]" not in path and "<name>" not in path
    variable = f"{prefix}__{path.upper().replace('.', '__')}" if prefix and plain else None
    return Setting(path, _type(field.annotation, field.metadata), default, text, variable)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    if field.default_factory is not None:
        return "host name"
    return _value(field.default)


def _value(value: Any) -> str:
    if value is None or value is PydanticUndefined:
        return "none"
    if isinstance(value, dt.timedelta):
        return f"`{format_duration(value)}`"
    if isinstance(value, tuple):
        return ", ".join(_value(v) for v in value) or "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, BaseModel):
        return "see its fields"
    return f"`{value}`"


def _type(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """Return a type as operators read it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0], arguments[1:])
    if origin in {typing.Union, types.UnionType}:
        return ", ".join(_type(a, metadata) for a in arguments if a is not type(None))
    if origin in {tuple, dict}:
        inner = _type(arguments[0] if origin is tuple else arguments[1])
        return f"{'list' if origin is tuple else 'mapping'} of {inner}"
    choices = arguments if origin is Literal else ()
    if inspect.isclass(annotation) and issubclass(annotation, Enum):
        choices = tuple(member.value for member in annotation)
    if choices:
        return " \\| ".join(f"`{choice}`" for choice in choices)
    if any(str(getattr(one, "pattern", "")) == _NAME for m in metadata for one in _parts(m)):
        return "name"
    return _plain(annotation) + _limits(metadata)


def _parts(metadata: Any) -> list[Any]:
    inner = getattr(metadata, "metadata", None)
    return inner if isinstance(inner, list) else [metadata]


def _plain(annotation: Any) -> str:
    names = {
        str: "text",
        int: "integer",
        float: "number",
        bool: "true or false",
        bytes: "DER, base64",
        Path: "path",
        dt.timedelta: "duration",
        dt.datetime: "time",
    }
    if annotation in names:
        return names[annotation]
    return annotation.__name__ if inspect.isclass(annotation) else "JSON value"


def _limits(metadata: list[Any] | tuple[Any, ...]) -> str:
    found = {}
    for one in metadata:
        for limit in _parts(one):
            for name in ("ge", "gt", "le", "lt"):
                value = getattr(limit, name, None)
                if value is not None:
                    found[name] = f"{value:g}" if isinstance(value, float) else str(value)
    low = f"{found['ge']} ≤" if "ge" in found else f"{found['gt']} <" if "gt" in found else ""
    high = f"≤ {found['le']}" if "le" in found else f"< {found['lt']}" if "lt" in found else ""
    if low and high:
        return f", {low[:-2]} to {high[2:]}" if low.endswith("≤") else f", {low} … {high}"
    return f", at least {low[:-2]}" if low else ""


def settings_page() -> str:
    """Return the generated part of settings.md."""
    parts = [
        _settings_table("est-frontend", FrontendSettings, "EST_FRONTEND"),
        _settings_table(
            "est-frontend-srp (beside all of est-frontend)",
            SRPSettings,
            "EST_FRONTEND_SRP",
            place="srp.",
        ),
        _settings_table("ca-signer", SignerSettings, "CA_SIGNER"),
        _settings_table("ca-signer-upstream", UpstreamSettings, "CA_SIGNER_UPSTREAM"),
        _settings_table("Options of the plug-in `est`", ESTOptions, None, place="options."),
        _settings_table("Options of the plug-in `vault`", VaultOptions, None, place="options."),
        _settings_table("est-renewal", RenewalSettings, "EST_RENEWAL"),
        _settings_table("est-audit", AuditSettings, "EST_AUDIT"),
        _settings_table("Renewal agent (`estctl agent`)", AgentSettings, "EST_AGENT"),
        _settings_table("Operators (`estctl cert`, `estctl requests`)", OperatorSettings, "ESTCTL"),
        _settings_table("Policy file", PolicyDocument, None),
        _settings_table("Profiles file", Profile, None, place="profiles[]."),
    ]
    return "\n".join(parts)


def _settings_table(
    title: str, model: type[BaseModel], prefix: str | None, *, place: str = ""
) -> str:
    rows = list(_walk(model, place, prefix, required=True))
    lines = [f"## {title}", ""]
    if prefix:
        lines += [f"File: `--config FILE` or `{prefix}_CONFIG`. Variables: `{prefix}__…`.", ""]
        lines += ["| setting | type | default | meaning | variable |", "|---|---|---|---|---|"]
        lines += [
            f"| `{r.name}` | {r.type} | {r.default} | {r.text} | "
            f"{f'`{r.variable}`' if r.variable else 'with its list or mapping, as YAML'} |"
            for r in rows
        ]
    else:
        lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
        lines += [f"| `{r.name}` | {r.type} | {r.default} | {r.text} |" for r in rows]
    return "\n".join([*lines, ""])


METRICS = {
    "est-frontend": "est_frontend.metrics",
    "ca-signer": "ca_signer.metrics",
    "ca-signer-upstream": "ca_signer.upstream.metrics",
    "est-renewal": "renewal.metrics",
    "est-audit": "audit.metrics",
}


def metrics_of(module: str) -> list[tuple[str, str, str, str]]:
    """Return (name, kind, labels, meaning) of every metric in a module, as exposed."""
    found = []
    for value in vars(importlib.import_module(module)).values():
        if not isinstance(value, Counter | Gauge | Histogram):
            continue
        (described,) = value.describe()
        name = described.name + ("_total" if described.type == "counter" else "")
        labels = ", ".join(value._labelnames) or "–"  # noqa: SLF001 - there is no public way
        found.append((name, described.type, labels, described.documentation))
    return found


def metrics_page() -> str:
    """Return the generated part of metrics.md."""
    parts = []
    for service, module in METRICS.items():
        parts += [f"## {service}", "", "| metric | kind | labels | meaning |", "|---|---|---|---|"]
        parts += [
            f"| `{n}` | {k} | {labels} | {text} |" for n, k, labels, text in metrics_of(module)
        ]
        parts.append("")
    return "\n".join(parts)


TOPICS: list[dict[str, str]] = _WRITTEN["topics"]
"""Every topic of the suite: who publishes, who reads, what it carries."""

_MODULES = (enrollment, events, commands, state, audit)


def messages() -> list[type[Part]]:
    """Return every message model and its parts, in the order of their modules."""
    found = []
    for module in _MODULES:
        for value in vars(module).values():
            if (
                inspect.isclass(value)
                and issubclass(value, Part)
                and value.__module__ == module.__name__
            ):
                found.append(value)
    return found


def events_page() -> str:
    """Return the generated part of events.md."""
    return "\n".join([*_topics(), *_streams(), *_consumers(), *_permissions(), *_messages()])


def _topics() -> list[str]:
    lines = ["## Topics", "", "| topic | stream | published by | read by | message |"]
    lines.append("|---|---|---|---|---|")
    for one in TOPICS:
        topic, message = one["topic"], one["message"]
        shown = message if " " in message else f"[{message}](#{message.lower()})"
        stream = stream_of(topic)
        where = f"`{stream}`" if stream else "core NATS"
        lines.append(f"| `{topic}` | {where} | {one['publisher']} | {one['reader']} | {shown} |")
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
    for one in topics.STREAMS:
        limits = [
            f"{one.max_messages:,} messages" if one.max_messages > 0 else "",
            f"{one.max_bytes >> 20:,} MiB" if one.max_bytes > 0 else "",
            f"{days} day{'s' * (days > 1)}" if (days := one.max_age_s // 86_400) else "",
            "the last message of each topic" if one.last_per_topic else "",
        ]
        full = "refuses new messages" if one.discard == "new" else "drops the oldest"
        names = ", ".join(f"`{t}`" for t in one.topics)
        shown = ", ".join(filter(None, limits))
        lines.append(
            f"| `{one.name}` | {names} | {one.retention} | {shown} | {full} | "
            f"`{_COMMANDS[one.owner]} migrate` |"
        )
    return [*lines, ""]


_COMMANDS = {"ca-signer": "ca-signer", "audit": "est-audit"}


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
        for one in consumers:
            shown = ", ".join(f"`{t}`" for t in one.topics) or "everything"
            lines.append(f"| `{one.name}` | `{one.stream}` | {shown} | {reader} |")
    return [*lines, ""]


def _permissions() -> list[str]:
    lines = ["## Permissions", "", "| user | may publish | may subscribe |", "|---|---|---|"]
    users = {
        "est-frontend of group `default`": permissions.frontend("default"),
        "ca-signer": permissions.signer(),
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
        lines.append(f"| {user} | {publish} | {subscribe} |")
    return [*lines, ""]


def _messages() -> list[str]:
    lines = ["## Messages", ""]
    for model in messages():
        text = inspect.getdoc(model) or ""
        if not text:
            raise SystemExit(f"docs/generate.py: {model.__name__} has no docstring")
        lines += [f"### {model.__name__}", "", re.sub(r"``([^`]+)``", r"`\1`", text), ""]
        lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
        for name, field in model.model_fields.items():
            default = "required" if field.is_required() else _value(field.default)
            meaning = field.description or ""
            kind = _type(field.annotation, field.metadata)
            lines.append(f"| `{name}` | {kind} | {default} | {meaning} |")
        lines.append("")
    return lines


PAGES = {
    "settings.md": settings_page,
    "metrics.md": metrics_page,
    "events.md": events_page,
}
_BEGIN = "<!-- generated by docs/generate.py: do not edit below -->\n"
_END = "<!-- end of the generated part -->\n"


def rendered(name: str) -> str:
    """Return the page as it should be: its hand-written frame with a fresh generated part."""
    text = (OPERATIONS / name).read_text(encoding="utf-8")
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise SystemExit(f"docs/generate.py: {name} has no place for the generated part")
    return f"{before}{_BEGIN}\n{PAGES[name]()}\n{_END}{after}"


def main(arguments: list[str]) -> int:
    """Write the pages, or with ``--check`` compare them; returns the exit code."""
    stale = []
    for name in PAGES:
        path = OPERATIONS / name
        text = rendered(name)
        if text == path.read_text(encoding="utf-8"):
            continue
        stale.append(name)
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
    verb = "differ from" if "--check" in arguments else "were written from"
    sys.stdout.write(f"{', '.join(stale)} {verb} the code\n" if stale else "nothing to do\n")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
