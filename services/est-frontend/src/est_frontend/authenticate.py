"""From a request's credentials to a principal. Default deny; every failure is a stable code."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from est_frontend.peers import Peer, PeerValidator
from est_frontend.state import State
from est_frontend.tls import EngineConnection
from estcore.errors import NotAuthenticated, NotAuthorized
from estcore.messages.enrollment import Principal
from estcore.policy.labels import Label

_BASIC_LIMIT = 1024


@dataclass(frozen=True)
class Authenticated:
    """Who asks, and the validated certificate if one was presented."""

    principal: Principal
    peer: Peer | None


class Authenticator:
    """Checks certificates and enrollment secrets."""

    def __init__(self, peers: PeerValidator, state: State) -> None:
        self._peers = peers
        self._state = state

    def certificate(self, connection: EngineConnection, label: Label) -> Authenticated:
        """Authenticate by the TLS certificate alone (re-enrollment, rotation-ack).

        Raises:
            NotAuthenticated: the certificate proves nothing here.
            NotAuthorized: there is none, or the label does not take certificates.
        """
        if "certificate" not in label.authentication:
            raise NotAuthorized("this label takes no certificates", code="auth.method")
        peer = self._peers.identify(connection, label.issuer)
        if peer is None:
            raise NotAuthenticated(
                "a client certificate of this CA is needed", code="auth.certificate_required"
            )
        return Authenticated(_by_certificate(peer), peer)

    def any_of(
        self, connection: EngineConnection, label: Label, authorization: str | None
    ) -> Authenticated:
        """Authenticate by what the label accepts: a secret if one is given, else a certificate.

        Raises:
            NotAuthenticated: nothing that proves anything was presented.
        """
        if authorization is not None and "secret" in label.authentication:
            name = self._secret(authorization)
            return Authenticated(Principal(method="secret", name=name), None)
        if "certificate" in label.authentication:
            peer = self._peers.identify(connection, label.issuer)
            if peer is not None:
                return Authenticated(_by_certificate(peer), peer)
        raise NotAuthenticated("credentials are needed", code="auth.required")

    def _secret(self, authorization: str) -> str:
        scheme, _, encoded = authorization.partition(" ")
        if scheme.lower() != "basic" or len(encoded) > _BASIC_LIMIT:
            raise NotAuthenticated("only HTTP Basic is accepted here", code="auth.scheme")
        try:
            decoded = base64.b64decode(encoded.strip(), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as exc:
            raise NotAuthenticated(
                "the Basic credentials are malformed", code="auth.basic"
            ) from exc
        name, _, secret = decoded.partition(":")
        if not self._state.secret_matches(name, secret):
            raise NotAuthenticated("unknown secret id or wrong secret", code="auth.secret")
        return name


def _by_certificate(peer: Peer) -> Principal:
    return Principal(method="certificate", name=peer.principal_name, certificate=peer.der)
