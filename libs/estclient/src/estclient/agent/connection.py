"""Connections of one agent to its EST server, by the credential of the moment."""

from __future__ import annotations

from pathlib import Path

from estclient.agent.bundle import Bundle
from estclient.agent.server_clock import ServerClock
from estclient.agent.settings import AgentSettings, BootstrapSettings, TokenSettings
from estclient.agent.trust_refresh import TrustKeeper
from estclient.est.access_token import (
    AccessToken,
    ClientCredentials,
    request_token,
    token_in_file,
)
from estclient.est.client import ESTClient, Limits
from estclient.est.curl_transport import TokenCredential
from estclient.est.token import ClientToken
from estclient.est.token_key import TokenKey
from estcore.clock import Clock
from estcore.errors import ConfigurationError
from estcore.runtime.secret_files import check_mode
from estcore.runtime.settings import read_secret


class Connection:
    """Makes clients of one server; every answer's Date goes to the clock."""

    def __init__(self, settings: AgentSettings, trust: TrustKeeper, clock: ServerClock) -> None:
        self._server = settings.server
        self.token = _token(settings)
        """The token in which keys are made; None where they are in files."""
        self._trust = trust
        self._clock = clock

    def anonymous(self) -> ESTClient:
        """Return a client that shows no credential and tries once: for what can wait.

        Raises:
            ConfigurationError: the trust file cannot be read.
        """
        return self._client(attempts=1)

    def authenticated(self, bundle: Bundle) -> ESTClient:
        """Return a client with a stored certificate; its key is in a file or in a token.

        Raises:
            ConfigurationError: a file cannot be read, or the settings name no token.
            BundleInvalid: the bundle is not stored.
        """
        chain, _ = bundle.files
        if not isinstance(bundle.key, TokenKey):
            return self._client(credential=bundle.files)
        if self.token is None:
            raise ConfigurationError("the key is in a token, and pkcs11 names none")
        return self._client(credential=TokenCredential(chain, bundle.key, self.token))

    async def bootstrap(self, settings: BootstrapSettings) -> ESTClient:
        """Return a client with the credential for a first enrollment.

        Raises:
            ConfigurationError: a file cannot be read, or others may read it.
            TokenRefused, ServerAway: no access token can be had.
        """
        if settings.certificate is not None:
            check_mode(settings.certificate.key_file, "the key of the bootstrap certificate")
            files = settings.certificate.certificate_file, settings.certificate.key_file
            return self._client(credential=files)
        if settings.token is not None:
            token = await access_token(settings.token, self._clock)
            return self._client(token=token)
        if settings.user is None or settings.secret_file is None:
            raise ConfigurationError("bootstrap names no credential")
        secret = read_secret(settings.secret_file, "the enrollment secret")
        return self._client(secret=(settings.user, secret))

    def _client(
        self,
        *,
        credential: tuple[Path, Path] | TokenCredential | None = None,
        secret: tuple[str, str] | None = None,
        token: AccessToken | None = None,
        attempts: int = Limits.attempts,
    ) -> ESTClient:
        server = self._server
        limits = Limits(
            timeout_s=server.timeout_s, attempts=attempts, pending_limit_s=server.pending_limit_s
        )
        return ESTClient(
            server.urls,
            trust=self._trust.for_server(),
            label=server.label,
            credential=credential,
            secret=secret,
            token=token.text if token else None,
            dpop=token.dpop if token else None,
            limits=limits,
            clock=self._clock,
            on_date=self._clock.compare,
        )


def _token(settings: AgentSettings) -> ClientToken | None:
    pkcs11 = settings.pkcs11
    if pkcs11 is None:
        return None
    return ClientToken(pkcs11.module, pkcs11.label, pkcs11.pin_file, f"estctl-{settings.name}")


async def access_token(settings: TokenSettings, clock: Clock) -> AccessToken:
    """Return an access token from where the settings say.

    Raises:
        ConfigurationError: a file cannot be read.
        TokenRefused, ServerAway: no access token can be had.
    """
    if settings.token_file is not None:
        return token_in_file(settings.token_file, mode_is_ours=True)
    if settings.service_account_file is not None:
        return token_in_file(settings.service_account_file, mode_is_ours=False)
    source = settings.client_credentials
    if source is None:
        raise ConfigurationError("the token has no source")
    client = ClientCredentials(**source.model_dump())
    return await request_token(client, clock)
