"""Definitions of an agent: one file for each certificate in a folder, or a single one.

- The name of a definition is the file's, without ``.yaml``.
- ``defaults`` of the host lie below each definition: its own values win, mappings are merged.
- A file that cannot be used is a problem, and the definition that was good stays as it was.
- Definitions name commands, so a file that others may change is refused, like one in a folder
  that others may change.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from typing_extensions import override

from estclient.agent.host_settings import HostSettings, host_of
from estclient.agent.settings import AgentSettings
from estcore.errors import ConfigurationError
from estcore.ids import is_token
from estcore.pki.profile import parse_model, read_yaml
from estcore.runtime.secret_files import check_settings
from estcore.runtime.settings import load_settings

PREFIX = "EST_AGENT"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class Definition:
    """One certificate that the agent keeps; ``digest`` changes with its settings."""

    name: str
    settings: AgentSettings
    digest: str


@dataclass
class Definitions:
    """What is defined now: good definitions and problems, both by name."""

    good: dict[str, Definition] = field(default_factory=dict)
    problems: dict[str, ConfigurationError] = field(default_factory=dict)

    def read(self) -> None:
        """Look for changes; a single definition has none."""


class DefinitionFolder(Definitions):
    """The definitions in a folder, as read last."""

    def __init__(self, host: HostSettings) -> None:
        super().__init__()
        self._host = host
        self._seen: dict[str, tuple[tuple[int, ...], bytes]] = {}

    @override
    def read(self) -> None:
        """Read what changed since; a problem leaves the good definition in force."""
        try:
            files = self._files()
        except ConfigurationError as exc:
            self.problems = {self._host.definitions.name: exc}
            return
        good: dict[str, Definition] = {}
        problems: dict[str, ConfigurationError] = {}
        for name, file in sorted(files.items()):
            try:
                good[name] = self._definition(name, file, good)
            except ConfigurationError as exc:
                problems[name] = exc
                if name in self.good:
                    good[name] = self.good[name]
        self.good, self.problems = good, problems
        self._seen = {name: seen for name, seen in self._seen.items() if name in files}

    def _files(self) -> dict[str, Path]:
        folder = self._host.definitions
        try:
            _check_owner(folder, folder.stat())
            found = sorted(p for p in folder.iterdir() if p.suffix == ".yaml")
        except OSError as exc:
            raise ConfigurationError(f"cannot read {folder}: {exc.strerror}") from exc
        return {p.stem: p for p in found if not p.name.startswith(".")}

    def _definition(self, name: str, file: Path, others: Mapping[str, Definition]) -> Definition:
        if not is_token(name):
            raise ConfigurationError(f"{file}: the name has other characters than a-z, 0-9 and -")
        raw, octets = self._raw(name, file)
        digest = sha256(octets).hexdigest()
        known = self.good.get(name)
        if known is not None and known.digest == digest:
            definition = known
        else:
            settings = parse_model(AgentSettings, raw, file)
            definition = Definition(name, settings, digest)
        check_settings(definition.settings)
        _check_apart(definition, others, file)
        return definition

    def _raw(self, name: str, file: Path) -> tuple[dict[str, Any], bytes]:
        """Return the merged settings, and their octets; the file is parsed when it changed."""
        try:
            status = file.stat()
        except OSError as exc:
            raise ConfigurationError(f"cannot read {file}: {exc.strerror}") from exc
        _check_owner(file, status)
        sign = (status.st_mtime_ns, status.st_size, status.st_ino)
        seen = self._seen.get(name)
        if seen is not None and seen[0] == sign:
            raw: dict[str, Any] = json.loads(seen[1])
            return raw, seen[1]
        own = read_yaml(file)
        if not isinstance(own, dict):
            raise ConfigurationError(f"{file}: the file must be a mapping")
        store = str(self._host.state_folder / name)
        raw = merged({"name": name, "store": store} | self._host.defaults, own)
        try:
            octets = json.dumps(raw, sort_keys=True).encode()
        except (TypeError, ValueError) as exc:
            raise ConfigurationError(f"{file}: {exc}") from exc
        self._seen[name] = sign, octets
        return raw, octets


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``above`` over ``below``; only mappings are merged, lists are replaced."""
    result = dict(below)
    for key, value in above.items():
        known = result.get(key)
        both = isinstance(known, Mapping) and isinstance(value, Mapping)
        result[key] = merged(known, value) if both and known else value
    return result


def load_agent(config: Path | None) -> tuple[HostSettings, Definitions]:
    """Return the settings of a host with its folder, or of a host with one definition.

    A file with ``definitions`` is that of a host.

    Raises:
        ConfigurationError: one line naming the place, file or variable.
    """
    named = os.environ.get(f"{PREFIX}_CONFIG")
    path = config or (Path(named) if named else None)
    raw = read_yaml(path) if path else {}
    if f"{PREFIX}__DEFINITIONS" in os.environ or (isinstance(raw, dict) and "definitions" in raw):
        host = load_settings(HostSettings, PREFIX, config)
        return host, DefinitionFolder(host)
    settings = load_settings(AgentSettings, PREFIX, config)
    definition = Definition(settings.name, settings, "")
    return host_of(settings), Definitions({settings.name: definition})


def _check_owner(file: Path, status: os.stat_result) -> None:
    if status.st_uid in {0, os.geteuid()} and not status.st_mode & _OTHERS_WRITE:
        return
    raise ConfigurationError(
        f"{file}: others may change it, and it names commands; give it to root, chmod go-w",
        code="agent.definition_exposed",
    )


def _check_apart(definition: Definition, others: Mapping[str, Definition], file: Path) -> None:
    mine = _places(definition)
    for other in others.values():
        shared = mine & _places(other)
        if other.name != definition.name and shared:
            raise ConfigurationError(
                f"{file}: {min(shared)} is of the definition {other.name}",
                code="agent.definition_conflict",
            )


def _places(definition: Definition) -> set[str]:
    files = {str(f) for output in definition.settings.outputs for f in output.files}
    return files | {str(definition.settings.store)}
