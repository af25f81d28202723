"""Files with secrets: private keys, seeds, passwords, tokens, verifiers. One reader for all.

A regular file that others than its owner may read or change is refused, as OpenSSH and PostgreSQL
refuse it. One exception, PostgreSQL's too: the file belongs to root and this process is not root.
Then its group may read it, since that is how Kubernetes mounts a secret for ``fsGroup``
(``root:fsGroup``, mode 0440).

- ``read_secret`` and ``read_secret_octets`` return what is in a file.
- ``check_mode`` is for files that a library opens by itself, before it does.
- ``check_settings`` looks at every file of a settings model by the names of its fields, so that a
  service does not start, and no later moment finds the mistake.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from estcore.errors import ConfigurationError

SECRET_SETTING = re.compile(
    r"(key|secrets?|secret_id|token|jwt|password|passphrase|pin|seed|users|verifiers)_file$"
)
"""A setting with such a name names a file with a secret. Paths of other kinds are named otherwise;
a test classifies every path of every settings model."""

_OTHERS = 0o077
_GROUP_READ = 0o040


def read_secret(path: Path, what: str) -> str:
    """Return the secret in a file, stripped.

    Raises:
        ConfigurationError: missing, not text, empty, or not for its owner alone.
    """
    try:
        text = read_secret_octets(path, what).decode().strip()
    except UnicodeDecodeError as exc:
        raise ConfigurationError(f"cannot read the file with {what}: {path}") from exc
    if not text:
        raise ConfigurationError(f"the file with {what} is empty: {path}")
    return text


def read_secret_octets(path: Path, what: str) -> bytes:
    """Return the octets of a file with a secret.

    Raises:
        ConfigurationError: missing, or not for its owner alone.
    """
    try:
        with path.open("rb") as file:
            _check(path, what, os.fstat(file.fileno()))
            return file.read()
    except OSError as exc:
        raise ConfigurationError(f"cannot read the file with {what}: {path}") from exc


def check_mode(path: Path, what: str) -> None:
    """Refuse a file that others may read or change; a missing one is its reader's to report.

    Raises:
        ConfigurationError: ``secret.exposed``, with the path, the mode and how to correct it.
    """
    try:
        status = path.stat()
    except OSError:
        return
    _check(path, what, status)


def check_settings(settings: BaseModel) -> None:
    """Refuse settings that name a file with a secret which others may read or change.

    Raises:
        ConfigurationError: ``secret.exposed``, with the setting, the path, the mode and how to
            correct it.
    """
    for name, path in secret_paths(settings):
        check_mode(path, name)


def secret_paths(settings: BaseModel, place: str = "") -> Iterator[tuple[str, Path]]:
    """Return the files with secrets that settings name, each with its dotted setting."""
    for name, value in settings:
        yield from _paths(value, f"{place}{name}", name)


def _paths(value: Any, place: str, name: str) -> Iterator[tuple[str, Path]]:
    if isinstance(value, BaseModel):
        yield from secret_paths(value, f"{place}.")
    elif isinstance(value, (Path, str)) and SECRET_SETTING.search(name):
        yield place, Path(value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _paths(inner, f"{place}.{key}", str(key))
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _paths(inner, f"{place}[{number}]", name)


def exposed(mode: int, owner: int, process: int) -> bool:
    """Return whether others may read or change a regular file of this mode and owner.

    ``process`` is the effective user of the process that reads it.
    """
    if not stat.S_ISREG(mode):
        return False  # a pipe or a terminal, made for this one reader
    mounted_for_group = owner == 0 and process != 0
    forbidden = _OTHERS & ~_GROUP_READ if mounted_for_group else _OTHERS
    return bool(mode & forbidden)


def _check(path: Path, what: str, status: os.stat_result) -> None:
    if not exposed(status.st_mode, status.st_uid, os.geteuid()):
        return
    others = status.st_uid == 0 and os.geteuid() != 0
    raise ConfigurationError(
        f"{what}: others may read or change {path} (mode {stat.S_IMODE(status.st_mode):04o}); "
        f"chmod {'440' if others else '600'} {path}",
        code="secret.exposed",
    )
