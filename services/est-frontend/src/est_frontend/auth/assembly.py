"""Building what authenticates clients: policy, users, path validation, token issuers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from est_frontend.auth.active_policy import ActivePolicy
from est_frontend.auth.authenticator import Authenticator
from est_frontend.auth.client_certificates import PeerValidator
from est_frontend.auth.http_digest import DigestVerifier
from est_frontend.auth.password_file import PasswordFile
from est_frontend.auth.tokens.access_token import TokenValidator
from est_frontend.auth.tokens.jwks import KeySource
from est_frontend.settings import FrontendSettings, TokenIssuerSettings
from est_frontend.signer_state.cache import SignerState
from estcore.clock import Clock
from estcore.errors import ConfigurationError
from estcore.policy.document import load_policy
from estcore.runtime.reload import Watched
from estcore.runtime.secret_files import read_secret_octets

_DIGEST_KEY_OCTETS = 32
TokenSources = dict[str, tuple[TokenIssuerSettings, KeySource]]


@dataclass(frozen=True)
class Authentication:
    """What clients are authenticated with; policy and users are reloaded while running."""

    active_policy: ActivePolicy
    users: PasswordFile
    peers: PeerValidator
    token_sources: TokenSources

    @classmethod
    def load(cls, settings: FrontendSettings, clock: Clock) -> Authentication:
        """Read what the settings name.

        Raises:
            ConfigurationError: a file cannot be read or is inconsistent.
        """
        active_policy = ActivePolicy(load_policy(settings.policy_file))
        users = PasswordFile.load(settings.users_file)
        peers = PeerValidator(clock)
        peers.set_truststores(active_policy.policy.truststores)
        sources = token_sources(settings)
        for _, source in sources.values():
            source.load()
        return cls(active_policy, users, peers, sources)

    def authenticator(
        self,
        settings: FrontendSettings,
        state: SignerState,
        clock: Clock,
        names: Callable[[], frozenset[str]],
    ) -> Authenticator:
        """Return the authenticator of a server with these host names.

        Raises:
            ConfigurationError: the key of Digest nonces cannot be read.
        """
        key = digest_key(settings)
        return Authenticator(
            peers=self.peers,
            state=state,
            users=self.users,
            digest=DigestVerifier(self.users, clock, realm=settings.digest.realm, key=key),
            tokens=TokenValidator(self.token_sources, clock),
            active_policy=self.active_policy,
            clock=clock,
            names=names,
        )

    def watched(self, settings: FrontendSettings) -> list[Watched]:
        """Return the files that are read again when they change."""

        def replace_policy() -> None:
            policy = load_policy(settings.policy_file)
            self.peers.set_truststores(policy.truststores)
            self.active_policy.policy = policy

        watched = [Watched("policy", (settings.policy_file,), replace_policy)]
        file = settings.users_file
        if file is not None:
            watched.append(
                Watched("users", (file,), lambda: self.users.replace(PasswordFile.load(file)))
            )
        return watched


def token_sources(settings: FrontendSettings) -> TokenSources:
    """Return the configured token issuers by the exact value of the claim ``iss``.

    Raises:
        ConfigurationError: an issuer or id is configured twice.
    """
    sources: TokenSources = {}
    for issuer in settings.token_issuers:
        if issuer.issuer in sources:
            raise ConfigurationError(f"token issuer {issuer.issuer} stands twice")
        if issuer.id in {configured.id for configured, _ in sources.values()}:
            raise ConfigurationError(f"two token issuers have the id {issuer.id}")
        sources[issuer.issuer] = (issuer, KeySource(issuer, settings.state_folder))
    return sources


def digest_key(settings: FrontendSettings) -> bytes | None:
    """Return the key of Digest nonces; None where each process makes its own.

    Raises:
        ConfigurationError: unreadable, not for its owner alone, or too short.
    """
    file = settings.digest.key_file
    if file is None:
        return None
    key = read_secret_octets(file, "the key of Digest nonces")
    if len(key) < _DIGEST_KEY_OCTETS:
        raise ConfigurationError(f"{file}: {_DIGEST_KEY_OCTETS} octets or more are needed")
    return key
