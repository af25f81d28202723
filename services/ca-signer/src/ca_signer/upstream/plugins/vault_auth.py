"""Authentication to Vault: a token, AppRole or Kubernetes; every secret is in a file.

Files are read at every login, so an agent or the platform may rotate them at any time. A token
with a lifetime is renewed after two thirds of it.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from ca_signer.upstream.plugin import Retryable, Unknown
from ca_signer.upstream.plugins.https import Transport, plain
from estcore.clock import monotonic_s
from estcore.errors import ConfigurationError
from estcore.pki.profile import StrictModel
from estcore.runtime.settings import read_secret

_PATH = r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$"
_OK = 200
_SHARE = 2 / 3
DENIED = "upstream.denied"


class AppRole(StrictModel):
    """Login with AppRole."""

    role_id: str = Field(min_length=1, max_length=200)
    secret_id_file: Path
    mount: str = Field(default="approle", pattern=_PATH)


class Kubernetes(StrictModel):
    """Login with the pod's service account."""

    role: str = Field(min_length=1, max_length=200)
    jwt_file: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
    mount: str = Field(default="kubernetes", pattern=_PATH)


class VaultAuth(StrictModel):
    """One way in."""

    token_file: Path | None = None
    approle: AppRole | None = None
    kubernetes: Kubernetes | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum(way is not None for way in (self.token_file, self.approle, self.kubernetes)) != 1:
            raise ValueError("give token_file, approle or kubernetes, exactly one")
        return self

    @property
    def secret_file(self) -> Path:
        """The file with the secret of the way chosen."""
        if self.approle is not None:
            return self.approle.secret_id_file
        if self.kubernetes is not None:
            return self.kubernetes.jwt_file
        assert self.token_file is not None  # noqa: S101 - exactly one is there
        return self.token_file


class Login:
    """Keeps a token good; calls may run at the same time."""

    def __init__(
        self, auth: VaultAuth, transport: Transport, headers: dict[str, str], *, timeout_s: float
    ) -> None:
        """``timeout_s`` is for one login; when a login fails no certificate was requested yet."""
        self._auth = auth
        self._timeout_s = timeout_s
        self._transport = transport
        self._headers = headers
        self._lock = asyncio.Lock()
        self._token = ""
        self._until = 0.0

    async def token(self, *, instead_of: str | None = None) -> str:
        """Return a token; ``instead_of`` is one that was refused.

        Raises:
            Retryable: Vault cannot be asked, or does not let us in.
        """
        async with self._lock:
            refused = instead_of is not None and instead_of == self._token
            if refused or not self._token or monotonic_s() >= self._until:
                await self._log_in()
            return self._token

    async def _log_in(self) -> None:
        try:
            secret = read_secret(self._auth.secret_file, "the secret for Vault")
        except ConfigurationError as exc:
            raise Retryable(exc.reason, code=DENIED, retry_after_s=30) from exc
        if self._auth.token_file is not None:
            # Its life is another process's business; look again when it is refused, or in a while.
            self._token, self._until = secret, monotonic_s() + 60
            return
        path, body = self._question(secret)
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._transport.call(
                    "POST", path, body=json.dumps(body).encode(), headers=self._headers
                )
        except TimeoutError as exc:
            raise Retryable("Vault does not answer a login", code="upstream.unreachable") from exc
        except Unknown as exc:
            raise Retryable(exc.reason, code="upstream.unreachable") from exc
        if answer.status != _OK:
            reason = f"Vault does not let us in: {answer.status} {errors_in(answer.body)}"
            code = DENIED if answer.status in range(400, 500) else "upstream.unavailable"
            raise Retryable(reason, code=code, retry_after_s=10)
        try:
            auth = json.loads(answer.body)["auth"]
            self._token = str(auth["client_token"])
            lasts = float(auth["lease_duration"])
        except (ValueError, KeyError, TypeError) as exc:
            raise Retryable("Vault's answer to the login is none", code=DENIED) from exc
        self._until = monotonic_s() + (lasts * _SHARE if lasts > 0 else 3600)

    def _question(self, secret: str) -> tuple[str, dict[str, Any]]:
        if self._auth.approle is not None:
            way = self._auth.approle
            return f"/v1/auth/{way.mount}/login", {"role_id": way.role_id, "secret_id": secret}
        assert self._auth.kubernetes is not None  # noqa: S101 - exactly one is there
        kubernetes = self._auth.kubernetes
        return f"/v1/auth/{kubernetes.mount}/login", {"role": kubernetes.role, "jwt": secret}


def errors_in(body: bytes) -> str:
    """Return what Vault says is wrong, as one short line."""
    try:
        errors = json.loads(body)["errors"]
        return plain("; ".join(str(error) for error in errors))
    except (ValueError, KeyError, TypeError):
        return ""
