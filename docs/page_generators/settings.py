"""The tables of settings, from the settings models."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Discriminator
from pydantic.fields import FieldInfo

from audit.settings import Settings as AuditSettings
from audit.sink_settings import SINKS
from ca_signer.settings import SignerSettings
from ca_signer.upstream.plugins.est import ESTOptions
from ca_signer.upstream.plugins.vault import VaultOptions
from ca_signer.upstream.settings import UpstreamSettings
from est_frontend.settings import FrontendSettings
from est_frontend_srp.settings import SRPSettings
from est_issuer.settings import IssuerSettings
from est_witness.settings import WitnessSettings
from estclient.agent.host_settings import HostSettings
from estclient.agent.settings import AgentSettings
from estclient.operators.settings import OperatorSettings
from estclient.probe.settings import ProbeSettings
from estcore.pki.profile import Profile
from estcore.policy.document import PolicyDocument
from page_generators.descriptions import DESCRIPTIONS
from page_generators.types import type_text, value_text
from renewal.settings import RenewalSettings

_TEXTS: dict[str, str] = DESCRIPTIONS["settings"]
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
        if _is_choice(field.annotation):
            continue  # a table for each model: _choices
        inner, shape = _nested(field.annotation)
        if inner is None:
            yield _setting(path, field, prefix, required=required)
            continue
        below = {"one": f"{path}.", "list": f"{path}[].", "mapping": f"{path}.<name>."}[shape]
        optional = not field.is_required() and _default(field) in {"none", "empty"}
        yield from _walk(inner, below, prefix, required=required and not optional)


def _is_choice(annotation: Any) -> bool:
    """Return whether an annotation leads to one of several models, as the kinds of sinks."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return any(isinstance(part, Discriminator) for part in typing.get_args(annotation))
    return any(_is_choice(argument) for argument in typing.get_args(annotation))


def _nested(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """Return the model inside an annotation and whether there is one, a list or a mapping."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation, "one"
    for argument in typing.get_args(annotation):
        model, _ = _nested(argument)
        if model is not None:
            origin = typing.get_origin(annotation)
            return model, {tuple: "list", dict: "mapping"}.get(origin, "one")
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
    return Setting(path, type_text(field.annotation, field.metadata), default, text, variable)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    if field.default_factory is not None:
        return "host name"
    return value_text(field.default)


def page() -> str:
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
        *(
            _settings_table(f"Sinks of est-audit: `kind: {kind}`", model, None, place="sinks[].")
            for kind, model in SINKS.items()
        ),
        _settings_table("est-witness", WitnessSettings, "EST_WITNESS"),
        _settings_table("est-issuer", IssuerSettings, "EST_ISSUER"),
        _settings_table("Agent of a host (`estctl agent`)", HostSettings, "EST_AGENT"),
        _settings_table("Renewal agent (`estctl agent`)", AgentSettings, "EST_AGENT"),
        _settings_table("Probe (`estctl probe`)", ProbeSettings, "EST_PROBE"),
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
