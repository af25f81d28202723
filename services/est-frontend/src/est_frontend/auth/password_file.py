"""People's and devices' passwords, from a file: argon2id for Basic, HA1 for labels with Digest.

The file maps names to verifiers, never to passwords (``estctl password``). A slow hash is worked
out in threads, no more at once than there are cores, and the queue before them is short: a
flood of wrong passwords costs the flood, not the service.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from argon2 import PasswordHasher, Type, extract_parameters
from argon2.exceptions import InvalidHashError, VerificationError
from pydantic import Field, field_validator

from est_frontend import metrics
from estcore.errors import IssuerUnavailable
from estcore.pki.profile import StrictModel, parse_model, read_yaml
from estcore.policy.document import SecretId
from estcore.runtime.secret_files import check_mode

HASHER = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
"""argon2id with 19 MiB and two passes: OWASP's first choice."""
_PASSWORD_LIMIT = 256
_QUEUE_PER_CORE = 16
HexDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}([0-9a-f]{32})?$")]


class User(StrictModel):
    """Verifiers of one user."""

    argon2id: str | None = Field(default=None, description="for HTTP Basic")
    digest: dict[str, HexDigest] = Field(
        default_factory=dict, description="HA1 by algorithm (MD5, SHA-256), for HTTP Digest"
    )

    @field_validator("argon2id")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            kind = extract_parameters(value).type
        except InvalidHashError as exc:
            raise ValueError("not an argon2id hash") from exc
        if kind is not Type.ID:
            raise ValueError("not an argon2id hash")
        return value


class _File(StrictModel):
    users: dict[SecretId, User]


class PasswordFile:
    """The users of a file."""

    def __init__(self, users: dict[str, User]) -> None:
        self._users = users
        self._unknown = _unknown_user(users)
        cores = os.cpu_count() or 1
        self._free = asyncio.Semaphore(cores)
        self._room = cores * _QUEUE_PER_CORE
        self._waiting = 0

    @classmethod
    def load(cls, path: Path | None) -> PasswordFile:
        """Read the file; None stands for no users at all.

        Raises:
            ConfigurationError: unreadable, not for its owner alone, or a verifier that is none.
        """
        if path is None:
            return cls({})
        check_mode(path, "the verifiers of passwords")
        return cls(parse_model(_File, read_yaml(path), path).users)

    def replace(self, other: PasswordFile) -> None:
        """Replace the users by those of the changed file."""
        self._users, self._unknown = other._users, other._unknown

    def __contains__(self, name: str) -> bool:
        """Return whether there is such a user."""
        return name in self._users

    def digest_verifier(self, name: str, algorithm: str) -> str | None:
        """Return HA1 in hexadecimal; None for unknown users and algorithms."""
        user = self._users.get(name)
        return None if user is None else user.digest.get(algorithm)

    async def password_matches(self, name: str, password: str) -> bool:
        """Check a password; an unknown user takes as long as a wrong password.

        Raises:
            IssuerUnavailable: too many passwords wait to be checked.
        """
        if self._waiting >= self._room:
            raise IssuerUnavailable("too many passwords at once", code="frontend.busy")
        user = self._users.get(name)
        verifier = user.argon2id if user is not None else None
        metrics.PASSWORD_HASHES.inc()
        self._waiting += 1
        try:
            async with self._free:
                return await asyncio.to_thread(_verify, verifier, password, self._unknown)
        finally:
            self._waiting -= 1


def _unknown_user(users: Mapping[str, User]) -> str:
    """Return a verifier that costs as much as most of the users', for names that have none."""
    costs = Counter(_costs(user.argon2id) for user in users.values() if user.argon2id is not None)
    if not costs:
        return HASHER.hash(os.urandom(16))
    time_cost, memory_cost, parallelism, length = costs.most_common(1)[0][0]
    hasher = PasswordHasher(time_cost, memory_cost, parallelism, length)
    return hasher.hash(os.urandom(16))


def _costs(verifier: str) -> tuple[int, int, int, int]:
    parameters = extract_parameters(verifier)
    costs = parameters.time_cost, parameters.memory_cost
    return *costs, parameters.parallelism, parameters.hash_len


def _verify(verifier: str | None, password: str, unknown: str) -> bool:
    try:
        HASHER.verify(verifier or unknown, password[:_PASSWORD_LIMIT])
    except (VerificationError, InvalidHashError):
        return False
    return verifier is not None and len(password) <= _PASSWORD_LIMIT
