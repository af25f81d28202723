"""From a request's credentials to a principal. Default deny; every failure is a stable code."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from aiohttp import web

from est_frontend.auth.active_policy import ActivePolicy
from est_frontend.auth.client_certificates import Peer, PeerValidator
from est_frontend.auth.http_digest import DigestVerifier
from est_frontend.auth.password_file import PasswordFile
from est_frontend.auth.spent_proofs import SpentProofs
from est_frontend.auth.tokens.access_token import AccessToken, TokenValidator
from est_frontend.auth.tokens.dpop import check_proof
from est_frontend.headers import authority, header, request_target
from est_frontend.rate_limits import Backoff
from est_frontend.signer_state.cache import SignerState
from est_frontend.tls.connection import ClientConnection
from estcore.clock import Clock
from estcore.errors import NotAuthenticated, NotAuthorized, Unavailable
from estcore.est.paths import authority_host
from estcore.messages.enrollment import Claim, Principal
from estcore.policy.labels import Label
from estcore.runtime.sockets import source_of

_BASIC_LIMIT = 1024
_PROOF_S = 600
"""Longer than any Digest nonce (300 s) or DPoP proof (120 s) is accepted."""
_HTTP_METHODS = ("secret", "password", "digest", "token")


@dataclass(frozen=True)
class Authenticated:
    """Who asks, the validated certificate if one counts, and what the proof used up."""

    principal: Principal
    peer: Peer | None
    single_use_claims: tuple[Claim, ...] = ()


@dataclass(frozen=True)
class Credentials:
    """What one request shows of its sender."""

    connection: ClientConnection
    source: str
    method: str
    host: str
    url: str
    path: str
    authorization: str | None
    dpop: str | None

    @classmethod
    def of(cls, request: web.BaseRequest, connection: ClientConnection, source: str) -> Credentials:
        """Return the credentials of a request."""
        path = request_target(request).path
        host = authority(request)
        return cls(
            connection=connection,
            source=source,
            method=request.method,
            host=authority_host(host),
            url=f"https://{host}{path}",
            path=path,
            authorization=header(request, "Authorization"),
            dpop=header(request, "DPoP"),
        )


class Authenticator:
    """Checks certificates, enrollment secrets, passwords, Digest answers and tokens."""

    def __init__(  # noqa: PLR0913 - one argument per kind of credential
        self,
        *,
        peers: PeerValidator,
        state: SignerState,
        users: PasswordFile,
        digest: DigestVerifier,
        tokens: TokenValidator,
        active_policy: ActivePolicy,
        clock: Clock,
        names: Callable[[], frozenset[str]],
    ) -> None:
        """``names`` are the hosts this server is, for proofs that name it."""
        self._peers = peers
        self._state = state
        self._users = users
        self._digest = digest
        self._tokens = tokens
        self._active_policy = active_policy
        self._clock = clock
        self._names = names
        self._by_account = Backoff(free=5, longest_s=300)
        self._by_source = Backoff(free=50, longest_s=60)
        self._spent = SpentProofs(keep_s=_PROOF_S)

    async def own_certificate(self, credentials: Credentials, label: Label) -> Authenticated:
        """Authenticate by a certificate of ours (re-enrollment, rotation-ack).

        A label that knows certificates only together with something else wants that as well.

        Raises:
            NotAuthenticated: the certificate proves nothing here.
            NotAuthorized: there is none of ours, or the label does not take certificates.
        """
        if not label.offers("certificate"):
            raise NotAuthorized("this label takes no certificates", code="auth.method")
        peer = self._identify(credentials, label)
        if peer is None:
            raise NotAuthenticated(
                "a client certificate of this CA is needed", code="auth.certificate_required"
            )
        if peer.third_party:
            raise NotAuthorized(
                "the certificate was issued by a different CA and cannot be renewed here",
                code="auth.certificate_foreign",
            )
        single_use_claims: tuple[Claim, ...] = ()
        if "certificate" not in label.authentication:
            single_use_claims = (await self._by_header(credentials, label, peer)).single_use_claims
        return Authenticated(_by_certificate(peer), peer, single_use_claims)

    async def any_of(self, credentials: Credentials, label: Label) -> Authenticated:
        """Authenticate in any way the label accepts.

        Raises:
            NotAuthenticated: nothing that proves anything was presented.
            TooOften: too many failures of this account or source.
            Unavailable: what to check it with was not received yet.
        """
        if credentials.authorization is not None and any(map(label.offers, _HTTP_METHODS)):
            return await self._by_header(credentials, label, None)
        user = credentials.connection.srp_user
        if user is not None and "srp" in label.authentication:
            return Authenticated(Principal(method="srp", name=user), None)
        if "certificate" in label.authentication:
            peer = self._identify(credentials, label)
            if peer is not None:
                return Authenticated(_by_certificate(peer), peer)
        raise NotAuthenticated("credentials are needed", code="auth.required")

    def challenges(self, label: Label | None) -> list[str]:
        """Return the values of WWW-Authenticate for a label, Basic first (conformance L2)."""
        if label is None:
            return []
        challenges = []
        if label.offers("secret") or label.offers("password"):
            challenges.append('Basic realm="est"')
        if label.offers("digest"):
            challenges.append(self._digest.challenge("MD5"))
        if label.offers("token"):
            challenges.append('Bearer realm="est"')
        return challenges or ['Basic realm="est"']

    def _identify(self, credentials: Credentials, label: Label) -> Peer | None:
        peer = self._peers.identify(credentials.connection, label)
        if peer is None or peer.third_party:
            return peer
        # Early and cheap; the signer's ledger has what the bus has not delivered yet.
        if self._state.is_peer_revoked(peer.issuer_id, peer.serial_number):
            raise NotAuthenticated(
                "the presented certificate is revoked", code="auth.certificate_revoked"
            )
        return peer

    async def _by_header(
        self, credentials: Credentials, label: Label, peer: Peer | None
    ) -> Authenticated:
        scheme, _, value = (credentials.authorization or "").partition(" ")
        value = value.strip()
        match scheme.lower():
            case "basic" if label.offers("secret") or label.offers("password"):
                authenticated = await self._basic(credentials, label, value)
            case "digest" if label.offers("digest"):
                authenticated = await self._by_digest(credentials, value)
            case "bearer" | "dpop" if label.offers("token"):
                authenticated = await self._token(credentials, scheme.lower(), value)
            case "":
                raise NotAuthenticated("credentials are needed", code="auth.required")
            case _:
                raise NotAuthenticated("this scheme is not accepted here", code="auth.scheme")
        if label.accepts(authenticated.principal.method, with_certificate=False):
            return authenticated
        peer = peer or self._identify(credentials, label)
        if peer is None:
            raise NotAuthenticated(
                "a client certificate is needed as well", code="auth.certificate_required"
            )
        principal = authenticated.principal.model_copy(
            update={"certificate": peer.der, "certificate_issuer": peer.issuer_id}
        )
        return Authenticated(principal, peer, authenticated.single_use_claims)

    async def _basic(self, credentials: Credentials, label: Label, encoded: str) -> Authenticated:
        name, secret = _read_basic(encoded)
        source = source_of(credentials.source)
        by_account = await self._by_account.begin(f"{name[:64]}@{source}", source)
        try:
            by_source = await self._by_source.begin(source, source)
        except BaseException:
            by_account.withdrawn()
            raise
        try:
            principal = await self._secret_or_password(label, name, secret)
        except NotAuthenticated:
            by_account.failed()
            by_source.failed()
            raise
        finally:
            # Changes nothing after ``failed``.
            by_source.withdrawn()
            by_account.withdrawn()
        by_account.forgive()
        return Authenticated(principal, None)

    async def _secret_or_password(self, label: Label, name: str, secret: str) -> Principal:
        """Check a name with its secret or password.

        A label that takes passwords computes the slow hash for every wrong secret and every name,
        known or not: time, code and text are the same.

        Raises:
            NotAuthenticated: neither is right.
            Unavailable: there is nothing to check it with now.
        """
        passwords, secrets = label.offers("password"), label.offers("secret")
        if secrets:
            # An empty user name (RFC 7030 section 3.2.3): the secret alone says which one it is.
            secret_id = name or self._state.secret_id_of(secret) or ""
            if self._state.secret_matches(secret_id, secret):
                return Principal(method="secret", name=secret_id)
        if passwords and await self._users.password_matches(name, secret):
            return Principal(method="password", name=name)
        if secrets and not self._state.has_secrets:
            # Not 401: a client with the right secret would take that as final.
            raise Unavailable("enrollment secrets are not here yet", code="auth.secrets_unknown")
        raise NotAuthenticated(
            "unknown name, or wrong secret or password",
            code="auth.password" if passwords else "auth.secret",
        )

    async def _by_digest(self, credentials: Credentials, value: str) -> Authenticated:
        source = source_of(credentials.source)
        short = "/.well-known/est/" + credentials.path.rpartition("/")[2]
        attempt = await self._by_source.begin(source, source)
        try:
            use = self._digest.check(
                # Libest leaves the label out of the URI it signs (conformance L4).
                value,
                method=credentials.method,
                paths=(credentials.path, short, credentials.url),
            )
        except NotAuthenticated as exc:
            if exc.code == "auth.password":
                attempt.failed()
            raise
        finally:
            attempt.withdrawn()  # changes nothing after ``failed``
        claim = Claim(kind="digest", id=use.spent)
        self._spent.spend(claim)
        return Authenticated(Principal(method="digest", name=use.user), None, (claim,))

    async def _token(self, credentials: Credentials, scheme: str, value: str) -> Authenticated:
        source = source_of(credentials.source)
        attempt = await self._by_source.begin(source, source)
        try:
            token = await self._tokens.validate(value)
        except NotAuthenticated:
            attempt.failed()
            raise
        finally:
            attempt.withdrawn()  # changes nothing after ``failed``
        single_use_claims, binding = self._bound(credentials, scheme, value, token)
        for claim in single_use_claims:
            self._spent.spend(claim)
        claims = token.claims(self._active_policy.policy.claims_wanted(token.issuer_id))
        claims.pop("cnf", None)
        if binding is not None:
            claims["cnf"] = binding
        principal = Principal(
            method="token", name=f"{token.issuer_id}/{token.subject}", claims=claims
        )
        return Authenticated(principal, None, single_use_claims)

    def _bound(
        self, credentials: Credentials, scheme: str, value: str, token: AccessToken
    ) -> tuple[tuple[Claim, ...], str | None]:
        """Check what the token is bound to; an unknown binding is never ignored."""
        if token.key_thumbprint is not None:
            if scheme != "dpop" or credentials.dpop is None:
                raise NotAuthenticated("the token needs a DPoP proof", code="auth.dpop")
            # Only the sender chooses Host: a proof made for another server must not fit here.
            if credentials.host not in self._names():
                raise NotAuthenticated("the request is for another host", code="auth.dpop")
            spent = check_proof(
                credentials.dpop,
                value,
                thumbprint=token.key_thumbprint,
                method=credentials.method,
                url=credentials.url,
                clock=self._clock,
            )
            return (Claim(kind="dpop", id=spent),), "jkt"
        if scheme == "dpop":
            raise NotAuthenticated("the token is not bound to a DPoP key", code="auth.dpop")
        if token.certificate_thumbprint is not None:
            presented = credentials.connection.peer()
            thumbprint = sha256(presented[0]).digest() if presented else b""
            bound_thumbprint = token.certificate_thumbprint
            if not hmac.compare_digest(_base64url(thumbprint), bound_thumbprint):
                raise NotAuthenticated(
                    "the token is bound to another client certificate",
                    code="auth.token_certificate",
                )
            return (), "x5t#S256"
        if token.bound:
            raise NotAuthenticated(
                "the token is bound in a way not known here", code="auth.token_claims"
            )
        return (), None


def _read_basic(encoded: str) -> tuple[str, str]:
    if len(encoded) > _BASIC_LIMIT:
        raise NotAuthenticated("the Basic credentials are too long", code="auth.basic")
    try:
        decoded = base64.b64decode(encoded, validate=True).decode()
    except ValueError as exc:  # not ASCII, not base64, not UTF-8
        raise NotAuthenticated("the Basic credentials are malformed", code="auth.basic") from exc
    name, colon, secret = decoded.partition(":")
    # RFC 7617 section 2: "The user-id and password MUST NOT contain any control characters".
    if not colon or not name.isprintable():
        raise NotAuthenticated("the Basic credentials are malformed", code="auth.basic")
    return name, secret


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def _by_certificate(peer: Peer) -> Principal:
    return Principal(
        method="certificate",
        name=peer.principal_name,
        certificate=peer.der,
        certificate_issuer=peer.issuer_id,
    )
