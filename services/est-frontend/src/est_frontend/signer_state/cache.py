"""What the front end knows without a database: CA certificates and secret verifiers.

Last values of ``PKI_STATE``, kept in memory and on disk: ``/cacerts`` and authentication live
through every outage of NATS, and through a restart during one. On disk they keep their signatures,
which are verified again when they are read.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hmac
import logging
import os
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from uuid import UUID

from est_frontend import metrics
from estcore.clock import Clock
from estcore.errors import (
    BusUnavailable,
    ConfigurationError,
    MalformedRequest,
    NotAuthenticated,
)
from estcore.est.certs_only import certs_only
from estcore.messages import topics
from estcore.messages.envelope import decode
from estcore.messages.signatures import NO_SENDERS, Senders
from estcore.messages.state import (
    SECRET_SHARDS,
    CACertificates,
    ProfilesState,
    RevocationList,
    RevocationManifest,
    RevokedShard,
    SecretShard,
    SecretVerifier,
    revoked_shard,
)
from estcore.messages.topics import PKI_STATE
from estcore.pki.profile import Profile
from estcore.runtime.bus import Bus, Incoming
from estcore.runtime.clock_check import ClockCheck
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop
from estcore.runtime.stored_messages import last_values

log = logging.getLogger(__name__)

_CACERTS = "pki.state.cacerts."
_SECRETS = "pki.state.secrets."
_CRL = "pki.state.crl."
_MANIFEST = f".{topics.CRL_MANIFEST}"
_REVOKED = "pki.state.revoked."
_REFRESH_S = 60
_AHEAD = dt.timedelta(minutes=1)
"""How far the clocks of the signers may be ahead."""
_NOBODY = SecretVerifier(
    secret_id="",
    sha256="00" * 32,
    not_after=dt.datetime.min.replace(tzinfo=dt.UTC),
    one_time=False,
)


SetAnchors = Callable[[str, Sequence[bytes]], None]


class SignerState:
    """Memory and disk copy of the state."""

    def __init__(
        self, folder: Path, set_anchors: SetAnchors, clock: Clock, senders: Senders = NO_SENDERS
    ) -> None:
        """``set_anchors`` receives an issuer and the certificates its clients may chain to.

        ``senders`` are those whose state is taken from disk.
        """
        self._folder = folder
        self._senders = senders
        self._set_anchors = set_anchors
        self._clock = clock
        self._bus: Bus | None = None
        self._latest: dt.datetime | None = None
        self.clock_check = ClockCheck()
        self._trust: dict[str, CACertificates] = {}
        self._cacerts: dict[tuple[str, ...], bytes] = {}
        self._secrets: dict[str, SecretVerifier] = {}
        self._profiles: ProfilesState | None = None
        self._revoked: dict[tuple[str, str], tuple[dt.datetime, frozenset[int]]] = {}
        self._lists: dict[tuple[str, str | None], RevocationList] = {}
        self._manifests: dict[str, RevocationManifest] = {}
        self._by_verifier: dict[str, str] = {}
        self._by_shard: dict[str, SecretShard] = {}
        self._unwritten: dict[Path, bytes] = {}
        self._writing: asyncio.Task[None] | None = None

    def load(self) -> None:
        """Read what an earlier run left on disk.

        Raises:
            ConfigurationError: the folder cannot be used.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            files = sorted(self._folder.glob("pki.state.*"))
        except OSError as exc:
            raise ConfigurationError(f"cannot use the state folder {self._folder}") from exc
        for path in files:
            signature, _, payload = path.read_bytes().partition(b"\n")
            try:
                self._senders.verify(path.name, payload, signature.decode("ascii", "replace"))
            except NotAuthenticated as exc:
                log.warning(
                    "stored state refused", extra=fields(topic=path.name[:200], code=exc.code)
                )
                continue
            # It was checked against the clock when it came; now the clock may be wrong.
            self.apply(path.name, payload, ahead=dt.timedelta.max)

    async def follow(self, bus: Bus) -> None:
        """Apply everything from the bus from now on."""
        self._bus = bus
        await bus.subscribe("pki.state.>", self._arrived)
        bus.on_reconnect(self._refresh)
        await self._refresh()

    async def run(self, stop: asyncio.Event) -> None:
        """Fetch everything again now and then, in case an update was missed."""
        while not await sleep_or_stop(stop, _REFRESH_S):
            await self._refresh()
        if self._writing is not None:
            await self._writing

    def cacerts(self, *issuers: str) -> bytes | None:
        """Return the certs-only message (DER) for issuers; None before all were ever seen."""
        message = self._cacerts.get(issuers)
        if message is None and all(issuer in self._trust for issuer in issuers):
            trusts = [self._trust[issuer] for issuer in issuers]
            every = [c for trust in trusts for c in (*trust.chain, *trust.extra)]
            message = self._cacerts[issuers] = certs_only(list(dict.fromkeys(every)))
        return message

    def has(self, issuers: set[str]) -> bool:
        """Return whether the CA certificates of all these issuers are known."""
        return issuers <= self._trust.keys()

    @property
    def has_secrets(self) -> bool:
        """Every shard of verifiers was received; before that, a secret not known may be good."""
        return self._by_shard.keys() >= set(SECRET_SHARDS)

    def secret_matches(self, secret_id: str, secret: str) -> bool:
        """Compare a secret with its verifier in constant time; unknown ids take as long."""
        verifier = self._secrets.get(secret_id, _NOBODY)
        digest = sha256(secret.encode()).digest()
        equal = hmac.compare_digest(digest, bytes.fromhex(verifier.sha256))
        return equal and verifier is not _NOBODY and verifier.not_after > self._clock.now()

    def profile(self, name: str) -> Profile | None:
        """Return a profile as the signer has it; None before it was received."""
        profiles = self._profiles.profiles if self._profiles else ()
        return next((p for p in profiles if p.name == name), None)

    def is_revoked(self, issuer_id: str, serial_number: int) -> bool:
        """Return whether a certificate is known to be revoked; the signer's ledger decides."""
        shard = self._revoked.get((issuer_id, revoked_shard(serial_number)))
        return shard is not None and serial_number in shard[1]

    def is_peer_revoked(self, issuer_id: str, serial_number: int) -> bool:
        """Return whether a certificate by any generation of an issuer is known to be revoked."""
        trust = self._trust.get(issuer_id)
        generations = [g.issuer_id for g in trust.accepted] if trust else []
        return any(self.is_revoked(i, serial_number) for i in generations or [issuer_id])

    def rollover(self, issuer_id: str) -> UUID | None:
        """Return the rollover that wants to know who fetched what ``cacerts`` returns."""
        trust = self._trust.get(issuer_id)
        return trust.rollover if trust else None

    def crl(self, issuer_id: str, partition: str | None = None) -> RevocationList | None:
        """Return the newest CRL of an issuer, or of a shard; None before one was received."""
        return self._lists.get((issuer_id, partition))

    def missing_lists(self) -> int:
        """Return how many CRLs of the signer's manifest are missing here."""
        return sum(
            (manifest.issuer_id, partition) not in self._lists
            for manifest in self._manifests.values()
            for partition in manifest.partitions
        )

    def secret_id_of(self, secret: str) -> str | None:
        """Return which secret this is, for clients that send no name with it."""
        return self._by_verifier.get(sha256(secret.encode()).hexdigest())

    async def _arrived(self, message: Incoming) -> None:
        if message.topic.startswith(_CACERTS):
            # Published with PostgreSQL's time every few minutes.
            with contextlib.suppress(MalformedRequest):
                published_at = decode(CACertificates, message.payload).updated_at
                self.clock_check.compared(published_at.timestamp())
        self._take(message.topic, message.payload, message.signature)

    async def _refresh(self) -> None:
        if self._bus is None:
            return
        try:
            values = await last_values(self._bus, PKI_STATE, "pki.state.>")
        except BusUnavailable as exc:
            log.warning("state not refreshed", extra=fields(reason=exc.reason))
            return
        for stored in values:
            self._take(stored.topic, stored.payload, stored.signature)

    def _take(self, topic: str, payload: bytes, signature: str) -> None:
        """Apply a message now and keep it soon: what comes next does not wait for the disk."""
        if not self.apply(topic, payload):
            return
        metrics.STATE_UPDATES.inc()
        self._unwritten[self._folder / topic] = b"%s\n%s" % (signature.encode(), payload)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_behind())

    async def _write_behind(self) -> None:
        while self._unwritten:
            path, content = self._unwritten.popitem()
            with contextlib.suppress(OSError):
                await asyncio.to_thread(_write, path, content)

    def apply(self, topic: str, payload: bytes, ahead: dt.timedelta = _AHEAD) -> bool:
        """Apply one message, not dated further ``ahead``; True when it changed anything."""
        self._latest = None if ahead == dt.timedelta.max else self._clock.now() + ahead
        try:
            return self._apply(topic, payload)
        except (MalformedRequest, ValueError) as exc:
            log.error("state message refused", extra=fields(topic=topic[:200], error=str(exc)))
        return False

    def _apply(self, topic: str, payload: bytes) -> bool:
        if topic.startswith(_CACERTS):
            cacerts = decode(CACertificates, payload)
            self._check(topic, topics.cacerts_topic(cacerts.issuer_id), cacerts.updated_at)
            return self._apply_cacerts(cacerts)
        if topic.startswith(_SECRETS):
            secrets = decode(SecretShard, payload)
            self._check(topic, topics.secrets_topic(secrets.shard), secrets.updated_at)
            return self._apply_secrets(secrets)
        if topic.startswith(_REVOKED):
            revoked = decode(RevokedShard, payload)
            expected = topics.revoked_topic(revoked.issuer_id, revoked.shard)
            self._check(topic, expected, revoked.updated_at)
            return self._apply_revoked(revoked)
        if topic.startswith(_CRL):
            return self._apply_lists(topic, payload)
        if topic == topics.PROFILES_TOPIC:
            profiles = decode(ProfilesState, payload)
            self._check(topic, topic, profiles.updated_at)
            return self._apply_profiles(profiles)
        return False

    def _apply_lists(self, topic: str, payload: bytes) -> bool:
        if topic.endswith(_MANIFEST):
            manifest = decode(RevocationManifest, payload)
            expected = topics.crl_topic(manifest.issuer_id, topics.CRL_MANIFEST)
            self._check(topic, expected, manifest.updated_at)
            return self._apply_manifest(manifest)
        crl = decode(RevocationList, payload)
        self._check(topic, topics.crl_topic(crl.issuer_id, crl.partition), crl.this_update)
        return self._apply_crl(crl)

    def _check(self, topic: str, expected: str, moment: dt.datetime) -> None:
        """Check that a message is about what its sender may publish, and not of the future.

        Raises:
            MalformedRequest: it is not.
        """
        if topic != expected:
            raise MalformedRequest(f"the message belongs on {expected}", code="state.topic")
        if self._latest is not None and moment > self._latest:
            raise MalformedRequest(
                "the message is of the future; check the clocks", code="state.time"
            )

    def _apply_cacerts(self, message: CACertificates) -> bool:
        stored = self._trust.get(message.issuer_id)
        # A signer that has not read a change yet must not take it back.
        if stored is not None and stored.updated_at >= message.updated_at:
            return False
        self._trust[message.issuer_id] = message
        if stored is not None and _same_trust(stored, message):
            return False
        anchors = [g.certificate for g in message.accepted] or [message.chain[0]]
        self._set_anchors(message.issuer_id, anchors)
        self._cacerts.clear()
        log.info("CA certificates updated", extra=fields(issuer=message.issuer_id))
        return True

    def _apply_profiles(self, message: ProfilesState) -> bool:
        stored = self._profiles
        if stored is not None and stored.updated_at >= message.updated_at:
            return False
        self._profiles = message
        return stored is None or stored.version != message.version

    def _apply_revoked(self, message: RevokedShard) -> bool:
        key = (message.issuer_id, message.shard)
        stored = self._revoked.get(key)
        if stored is not None and stored[0] >= message.updated_at:
            return False
        self._revoked[key] = (message.updated_at, frozenset(int(s, 16) for s in message.serials))
        return True

    def _apply_crl(self, message: RevocationList) -> bool:
        key = (message.issuer_id, message.partition)
        stored = self._lists.get(key)
        order = (message.this_update, message.number)
        if stored is not None and (stored.this_update, stored.number) >= order:
            return False
        self._lists[key] = message
        metrics.CRL_MISSING.set(self.missing_lists())
        return True

    def _apply_manifest(self, message: RevocationManifest) -> bool:
        stored = self._manifests.get(message.issuer_id)
        if stored is not None and stored.updated_at >= message.updated_at:
            return False
        self._manifests[message.issuer_id] = message
        metrics.CRL_MISSING.set(self.missing_lists())
        return stored is None or stored.partitions != message.partitions

    def _apply_secrets(self, message: SecretShard) -> bool:
        stored = self._by_shard.get(message.shard)
        if stored is not None and stored.updated_at >= message.updated_at:
            return False
        for old in stored.secrets if stored else ():
            self._secrets.pop(old.secret_id, None)
            self._by_verifier.pop(old.sha256, None)
        self._secrets.update({s.secret_id: s for s in message.secrets})
        self._by_verifier.update({s.sha256: s.secret_id for s in message.secrets})
        self._by_shard[message.shard] = message
        return True


def _same_trust(stored: CACertificates, message: CACertificates) -> bool:
    return stored.model_copy(update={"updated_at": message.updated_at}) == message


def _write(path: Path, payload: bytes) -> None:
    temporary = path.with_name("." + path.name)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
