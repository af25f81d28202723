"""SRP users: verifiers from a file, never passwords, and the same for those who do not exist.

All users of a file have one group. Who is unknown gets a salt and a verifier worked out from
the file's seed, always the same ones, so that a client cannot learn which users there
are (RFC 5054 section 2.5.1.3). A user's own salt is worked out in the same way: it does not
change when the user is added or removed.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import yaml
from pydantic import Field

from est_frontend_srp.tlslite import GROUPS, verifier_of
from estcore.errors import ConfigurationError
from estcore.pki.profile import StrictModel, parse_model, read_yaml
from estcore.policy.document import SecretId
from estcore.runtime.secret_files import check_mode

_SEED_OCTETS, _SALT_OCTETS = 32, 16
_SHORTEST = 12
Hex = Annotated[str, Field(pattern=r"^([0-9a-f]{2})+$")]
Entry: TypeAlias = tuple[int, int, bytearray, int]
"""Prime, generator, salt, verifier: what the handshake needs of a user."""


class _User(StrictModel):
    salt: Annotated[Hex, Field(min_length=32, max_length=128)]
    verifier: Annotated[Hex, Field(max_length=1024)]


class _File(StrictModel):
    group: Literal[2048, 3072, 4096] = Field(default=2048, description="bits, of RFC 5054")
    seed: Annotated[Hex, Field(min_length=64, max_length=128)]
    users: dict[SecretId, _User] = Field(default_factory=dict)


@dataclass(frozen=True)
class _Content:
    prime: int
    generator: int
    seed: bytes
    users: dict[bytes, Entry]


class Verifiers:
    """The users of a file."""

    def __init__(self, content: _Content) -> None:
        self._content = content

    @classmethod
    def load(cls, path: Path) -> Verifiers:
        """Read the file.

        Raises:
            ConfigurationError: unreadable, exposed to others, or a verifier that is none.
        """
        check_mode(path, "SRP verifiers")
        file = parse_model(_File, read_yaml(path), path)
        generator, prime = GROUPS[file.group]
        users: dict[bytes, Entry] = {}
        for name, user in file.users.items():
            verifier = int(user.verifier, 16)
            if not 1 < verifier < prime - 1:
                raise ConfigurationError(f"{path}: {name} has no verifier of the group")
            salt = bytearray.fromhex(user.salt)
            users[name.encode()] = (prime, generator, salt, verifier)
        return cls(_Content(prime, generator, bytes.fromhex(file.seed), users))

    def replace(self, other: Verifiers) -> None:
        """Replace the users by those of the changed file."""
        self._content = other._content

    def lookup(self, name: bytes) -> Entry:
        """Return what the handshake needs for a user, known or not."""
        content = self._content
        # Worked out for everybody, so that known users answer no sooner.
        octets = (content.prime.bit_length() + 7) // 8 + 16
        drawn = int.from_bytes(_keyed(content.seed, b"verifier", name, octets))
        unknown_user = (
            content.prime,
            content.generator,
            bytearray(_keyed(content.seed, b"salt", name, _SALT_OCTETS)),
            2 + drawn % (content.prime - 4),
        )
        return content.users.get(name, unknown_user)


def _keyed(seed: bytes, use: bytes, name: bytes, octets: int) -> bytes:
    key = hmac.digest(seed, use + b"\0" + name, "sha256")
    return hashlib.shake_256(key).digest(octets)


def set_user(path: Path, name: str, password: str | None, *, group: int = 2048) -> None:
    """Write a user's verifier into the file, or take the user out when there is no password.

    A file that is not there yet is made, with a seed of its own and the group.

    Raises:
        ConfigurationError: a short password, or the file is not what it should be.
    """
    raw = read_yaml(path) if path.exists() else _new(group)
    file = parse_model(_File, raw, path)
    users = {n: user.model_dump() for n, user in file.users.items()}
    if password is None:
        if users.pop(name, None) is None:
            raise ConfigurationError(f"{path} has no user {name}")
    else:
        if len(password) < _SHORTEST:
            raise ConfigurationError(f"a password has {_SHORTEST} characters or more")
        salt = _keyed(bytes.fromhex(file.seed), b"salt", name.encode(), _SALT_OCTETS)
        verifier = verifier_of(name, password, salt, file.group)
        users[name] = {"salt": salt.hex(), "verifier": f"{verifier:x}".zfill(file.group // 4)}
    content = {"group": file.group, "seed": file.seed, "users": users}
    parse_model(_File, content, path)
    _write(path, yaml.safe_dump(content, sort_keys=False))


def _new(group: int) -> dict[str, object]:
    return {"group": group, "seed": secrets.token_bytes(_SEED_OCTETS).hex(), "users": {}}


def _write(path: Path, text: str) -> None:
    """Replace the file in one step; only its owner may read it."""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError as exc:
        raise ConfigurationError(f"cannot write {path}: {exc.strerror}") from exc
