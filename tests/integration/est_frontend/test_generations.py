"""During a rollover: whose certificates a front end accepts, and which clients it reports."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from est_frontend.auth.client_certificates import PeerValidator
from est_frontend.signer_state.cache import SignerState
from est_frontend.trust_adoption import TrustAdoptionReporter
from estcore import ids
from estcore.errors import NotAuthenticated
from estcore.est.certs_only import read_certs_only
from estcore.messages import topics
from estcore.messages.envelope import decode, encode
from estcore.messages.state import (
    AcceptedIssuer,
    CACertificates,
    RevokedShard,
    TrustFetchCounted,
    TrustFetched,
)
from estcore.policy.labels import Label
from estcore.runtime.bus import Bus, Incoming
from estcore.testing.clock import FakeClock
from estsuite_testing.chains import NOON, Pair, certificate
from estsuite_testing.platform import Platform

LABEL = Label(issuer="issuing", profiles=("service-mtls",))
ROLLOVER = UUID(ids.uuid7())


class Connection:
    """What a handshake left: a certificate, or none."""

    def __init__(self, leaf: Pair | None) -> None:
        self._leaf = leaf

    def peer(self) -> tuple[bytes, tuple[()]] | None:
        return (der(self._leaf), ()) if self._leaf else None

    def peer_chain(self) -> tuple[()]:
        return ()


def der(pair: Pair) -> bytes:
    return pair[0].public_bytes(Encoding.DER)


class World:
    """A front end's state with two generations of one name."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock(NOON)
        self.peers = PeerValidator(self.clock)
        self.state = SignerState(folder, self.peers.set_anchors, self.clock)
        self.old, self.new = (certificate("issuing", ca=True) for _ in range(2))

    def publish_trust(
        self, *accepted: Pair, age_s: int = 0, rollover: UUID | None = ROLLOVER
    ) -> bool:
        names = {id(self.old): "issuing", id(self.new): "issuing-2"}
        message = CACertificates(
            issuer_id="issuing",
            updated_at=NOON - dt.timedelta(seconds=age_s),
            chain=(der(accepted[0]),),
            extra=tuple(der(one) for one in accepted[1:]),
            accepted=tuple(
                AcceptedIssuer(issuer_id=names[id(one)], certificate=der(one)) for one in accepted
            ),
            rollover=rollover,
        )
        return self.state.apply(topics.cacerts_topic("issuing"), encode(message))

    def accepts(self, leaf: Pair) -> bool:
        try:
            found = self.peers.identify(Connection(leaf), LABEL)  # type: ignore[arg-type]
        except NotAuthenticated:
            return False
        assert found is not None
        # Rules and principals name the issuer that the label names, whatever the generation.
        assert found.principal_name == "issuing/CN=svc"
        return True


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_D6_leaves_of_both_generations_are_accepted_until_one_retires(world: World) -> None:
    leaves = [certificate("svc", world.old), certificate("svc", world.new)]
    for age_s, published, accepted in (
        (30, [world.old], [True, False]),
        (20, [world.new, world.old], [True, True]),
        (10, [world.new], [False, True]),
    ):
        assert world.publish_trust(*published, age_s=age_s)
        assert [world.accepts(leaf) for leaf in leaves] == accepted


def test_D5_an_older_word_takes_nothing_back(world: World) -> None:
    """A signer that has not read of a switch may publish an older state, later."""
    assert world.publish_trust(world.new, world.old, age_s=10)
    assert not world.publish_trust(world.old, age_s=20)
    assert not world.publish_trust(world.new, world.old, age_s=5)
    assert not world.publish_trust(world.old, age_s=7)
    body = world.state.cacerts("issuing")
    assert body is not None
    assert set(read_certs_only(body)) == {der(world.old), der(world.new)}


def test_K17_revoked_certificates_of_either_generation_are_known(world: World) -> None:
    world.publish_trust(world.new, world.old)
    for name, serial in (("issuing", "0100aa"), ("issuing-2", "0100ba"), ("other", "0100ca")):
        shard = RevokedShard(issuer_id=name, shard="0a", updated_at=NOON, serials=(serial,))
        world.state.apply(topics.revoked_topic(name, "0a"), encode(shard))
    known = [world.state.is_peer_revoked("issuing", n) for n in (0x0100AA, 0x0100BA, 0x0100CA)]
    assert known == [True, True, False]


class TrustFetchedReceiver:
    """Answers as ca-signer does, and keeps what it received."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.messages: list[TrustFetched] = []

    async def arrived(self, message: Incoming) -> None:
        fetched = decode(TrustFetched, message.payload)
        self.messages.append(fetched)
        counted = TrustFetchCounted(new=len(fetched.fingerprints))
        await self.bus.answer(message, encode(counted))


@pytest.mark.integration
async def test_D8_clients_that_fetched_are_reported_once_in_one_message(
    world: World, platform: Platform
) -> None:
    signer = await Bus.connect(platform.bus("ca-signer"), "ca-signer", "test")
    frontend = await Bus.connect(platform.bus("est-frontend"), "est-frontend", "test")
    receiver = TrustFetchedReceiver(signer)
    fetches = TrustAdoptionReporter(frontend, world.state, world.peers)
    leaves = [certificate("svc", world.old), certificate("svc", world.new)]
    stranger = certificate("svc", certificate("issuing", ca=True))

    def fetch(*holders: Pair | None) -> None:
        for one in holders:
            fetches.note(Connection(one), LABEL)  # type: ignore[arg-type]

    # 1. Without a rollover no client is reported.
    world.publish_trust(world.old, age_s=30, rollover=None)
    fetch(*leaves)
    world.publish_trust(world.new, world.old, age_s=20)
    # 2. A client without a certificate of ours is not reported.
    fetch(None, stranger, *leaves, *leaves)
    # 3. Without a listener it is kept; then it is reported in one message, and only once.
    await fetches.flush()
    await signer.subscribe(topics.FETCHED_TOPIC, receiver.arrived, queue="ca-signer")
    await signer.client.flush()
    await fetches.flush()
    await fetches.flush()
    fetch(*leaves)
    await fetches.flush()
    prints = {sha(leaf) for leaf in leaves}
    assert [(m.rollover, set(m.fingerprints)) for m in receiver.messages] == [(ROLLOVER, prints)]
    # 4. Another rollover wants to know anew.
    world.publish_trust(world.new, world.old, age_s=10, rollover=UUID(ids.uuid7()))
    fetch(leaves[0])
    await fetches.flush()
    assert len(receiver.messages) == 2
    assert signer.violation is None
    assert frontend.violation is None
    await frontend.close()
    await signer.close()


def sha(leaf: Pair) -> str:
    return leaf[0].fingerprint(SHA256()).hex()
