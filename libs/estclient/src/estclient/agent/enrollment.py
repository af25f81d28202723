"""Enrollment of one agent: steps 2 to 4 of a rotation, and the very first certificate."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from cryptography import x509

from estclient.agent.backoff import ApprovalWait
from estclient.agent.bundle import Bundle, Pending
from estclient.agent.connection import Connection
from estclient.agent.credential_store import CredentialStore
from estclient.agent.fetched import Holder, fetched_key
from estclient.agent.settings import AgentSettings, BootstrapSettings
from estclient.agent.trust_refresh import TrustKeeper
from estclient.errors import CredentialMissing, ServerRefused, StillPending
from estclient.est.keys import (
    AnyKey,
    first_request_info,
    load_key,
    make_key,
    request_info,
    sign_request,
    signed_request,
)
from estcore.clock import Clock
from estcore.errors import ConfigurationError
from estcore.messages.events import RotationEvent
from estcore.pki.keys import spki_der
from estcore.runtime.secret_files import read_secret_octets

Say = Callable[..., Awaitable[None]]
_NOT_ACCEPTED = frozenset({401, 403})
"""Answers to a re-enrollment with a certificate that is not valid any more."""


class Enrollment:
    """Requests certificates and stores them; a repeated request is the same one."""

    def __init__(
        self,
        settings: AgentSettings,
        store: CredentialStore,
        trust: TrustKeeper,
        connection: Connection,
        clock: Clock,
        say: Say,
    ) -> None:
        self._settings = settings
        self._store, self._trust = store, trust
        self._connection, self._clock = connection, clock
        self._say = say
        self._approval = ApprovalWait()
        self.refused: set[str] = set()
        """Fingerprints of older generations that the server does not accept any more."""

    async def renew(
        self, current: Bundle, event: RotationEvent | None, *, suggested_rotation: str | None
    ) -> Bundle:
        """Return the next credential, stored; ``current`` authenticates.

        Raises:
            ESTClientError: no certificate now; a repetition is the same request.
            OSError: the store cannot be written.
        """
        pending = self._store.pending(current.fingerprint)
        if pending is None:
            key, csr = await self._request(lambda spki: request_info(current.certificate, spki))
            pending = Pending(key, csr, current.fingerprint)
            self._store.begin(pending)
        await self._say("enrolling", serial=current.serial)
        client = self._connection.authenticated(current)
        request = pending.csr
        try:
            enrolled = await self._approval.ask(lambda: client.simplereenroll(request))
        except ServerRefused as exc:
            self._store.forget()
            if current.is_fallback and exc.status in _NOT_ACCEPTED:
                self.refused.add(current.fingerprint)
            raise
        bundle = Bundle(
            certificate=enrolled.certificate,
            key=pending.key,
            authorities=await self._trust.renewed(client, current),
            rotation_id=event.rotation_id if event else None,
            suggested_rotation=suggested_rotation,
            in_use=False,
            proven=False,
            is_renewed=True,
        )
        return await self._adopt(bundle, enrolled.correlation_id)

    async def fetch(self, current: Bundle, *, suggested_rotation: str | None) -> Bundle:
        """Return the credential that the server renewed by itself, stored.

        Raises:
            ESTClientError: nothing to fetch now, or not what it must be; a repetition is the same.
            OSError: the store cannot be written.
        """
        await self._say("fetching", serial=current.serial)
        client = self._connection.authenticated(current)
        renewed = await client.renewed(current.certificate)
        if renewed is None:
            raise StillPending("the server has nothing to fetch yet")
        authorities = await self._trust.renewed(client, current)
        holders = [(current.certificate, current.key), *self._first_holders()]
        bundle = Bundle(
            certificate=renewed.certificate,
            key=fetched_key(renewed, holders, authorities, now=self._clock.now()),
            authorities=authorities,
            suggested_rotation=suggested_rotation,
            in_use=False,
            proven=False,
            is_renewed=True,
        )
        return await self._adopt(bundle, renewed.correlation_id)

    def _first_holders(self) -> list[Holder]:
        """Return the certificate of the bootstrap with its key: keys may be sealed for it.

        Raises:
            ConfigurationError: a file cannot be read, or others may read it.
        """
        bootstrap = self._settings.bootstrap
        if bootstrap is None or bootstrap.certificate is None:
            return []
        files = bootstrap.certificate
        try:
            certificate = x509.load_pem_x509_certificates(files.certificate_file.read_bytes())[0]
            key = load_key(read_secret_octets(files.key_file, "the key of the bootstrap"))
        except (OSError, ValueError) as exc:
            raise ConfigurationError(f"cannot read {files.certificate_file}") from exc
        return [(certificate, key)]

    async def first(self, expired: Bundle | None) -> Bundle:
        """Return a credential by the bootstrap, stored.

        Raises:
            CredentialMissing: there is no bootstrap.
            ESTSuiteError: no certificate now.
            OSError: a file cannot be read or written.
        """
        bootstrap = self._settings.bootstrap
        if bootstrap is None:
            self.refused.clear()
            raise _missing(expired)
        is_first = self._store.is_new()
        pending = await self._first_request(bootstrap, expired)
        await self._say("bootstrapping", subject=bootstrap.subject)
        client = await self._connection.bootstrap(bootstrap)
        enrolled = await self._approval.ask(lambda: client.simpleenroll(pending.csr))
        bundle = Bundle(
            certificate=enrolled.certificate,
            key=pending.key,
            authorities=await self._trust.first(client),
            in_use=False,
            proven=False,
            is_first=is_first,
        )
        return await self._adopt(bundle, enrolled.correlation_id)

    async def _first_request(self, bootstrap: BootstrapSettings, expired: Bundle | None) -> Pending:
        marker = f"bootstrap:{expired.fingerprint if expired else ''}"
        pending = self._store.pending(marker)
        if pending is None:
            key, csr = await self._request(
                lambda spki: first_request_info(bootstrap.subject, bootstrap.san, spki)
            )
            pending = Pending(key, csr, marker)
            self._store.begin(pending)
        return pending

    async def _request(self, info: Callable[[bytes], bytes]) -> tuple[AnyKey, bytes]:
        """Return a new key, in memory or in the token, and its signed request (DER).

        ``info`` returns the certificationRequestInfo for a public key.
        """
        token, algorithm = self._connection.token, self._settings.key_algorithm
        if token is None:
            key = await asyncio.to_thread(make_key, algorithm)
            return key, sign_request(info(spki_der(key.public_key())), key)
        await token.keep_only(self._store.token_key_ids())
        made = await token.generate(algorithm)
        octets = info(spki_der(made.public))
        return made, signed_request(octets, await token.sign(made, octets), made)

    async def _adopt(self, bundle: Bundle, correlation_id: str | None) -> Bundle:
        stored = self._store.save(bundle, now=self._clock.now())
        details: dict[str, Any] = {
            "serial": stored.serial,
            "fingerprint_sha256": stored.fingerprint,
            "not_after": stored.certificate.not_valid_after_utc.isoformat(),
            "correlation_id": correlation_id,
        }
        await self._say("stored", **details)
        return stored


def _missing(expired: Bundle | None) -> CredentialMissing:
    state = "missing or damaged"
    if expired is not None:
        end = expired.certificate.not_valid_after_utc.isoformat()
        state = f"expired since {end} by this machine's clock"
    return CredentialMissing(f"the credential is {state}, and there is no bootstrap")
