"""docker-compose.yml with a further file of deploy/compose, merged as Compose does it.

Only what these files use: mappings are merged, ``volumes`` by their target, other lists are
joined, ``!override`` replaces, ``extends`` takes a service of docker-compose.yml.

Called by: deploy/check.py
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import yaml

BASE = "docker-compose.yml"


class _Override(list[Any]):
    """A list that replaces the one of the file before."""


class _Loader(yaml.SafeLoader):
    """YAML with Compose's tag ``!override``."""


def _override(loader: _Loader, node: yaml.SequenceNode) -> _Override:
    return _Override(loader.construct_sequence(node, deep=True))


_Loader.add_constructor("!override", _override)


def files(folder: Path) -> list[Path]:
    """Return the files of a folder ``deploy/compose`` that are Compose's, not a server's."""
    return [path for path in sorted(folder.glob("*.yml")) if "services" in _read(path)]


def extended(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return docker-compose.yml as it is with a further file."""
    return cast("dict[str, Any]", _merged(document, _resolved(document, _read(path))))


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe loader with one tag
    return found


def _resolved(document: dict[str, Any], addition: dict[str, Any]) -> dict[str, Any]:
    services = {}
    for name, service in addition["services"].items():
        own = dict(service)
        extends = own.pop("extends", None)
        if extends is not None:
            own = _merged(document["services"][extends["service"]], own)
        services[name] = own
    return {"services": services}


def _merged(old: Any, new: Any, key: str = "") -> Any:
    if isinstance(new, _Override):
        return list(new)
    if isinstance(old, dict) and isinstance(new, dict):
        return deepcopy(old) | {k: _merged(old.get(k), v, k) for k, v in new.items()}
    if isinstance(old, list) and isinstance(new, list):
        if key == "volumes":
            by_target = {volume.split(":")[1]: volume for volume in (*old, *new)}
            return list(by_target.values())
        return new if key in {"command", "test"} else [*old, *new]
    return deepcopy(new)
