"""What a front end keeps on disk: each label gets the chain of its own issuer, and nothing else."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from est_frontend.auth.client_certificates import PeerValidator
from est_frontend.signer_state.cache import SignerState
from estcore.clock import SystemClock
from estcore.est.certs_only import read_certs_only
from estcore.messages import topics
from estcore.messages.envelope import encode
from estcore.messages.state import SECRET_SHARDS, CACertificates, RevokedShard, SecretShard
from estsuite_testing.chains import certificate
from estsuite_testing.message_keys import SENDERS, store_state


def test_C8_issuers_never_mix(tmp_path: Path) -> None:
    chains = {}
    for name in ("alpha", "beta"):
        root = certificate(f"{name} root", ca=True)
        chain = [certificate(name, root, ca=True), root]
        chains[name] = [c.public_bytes(Encoding.DER) for c, _ in chain]
        message = CACertificates(
            issuer_id=name, updated_at=dt.datetime.now(dt.UTC), chain=tuple(chains[name])
        )
        store_state(tmp_path, topics.cacerts_topic(name), message)
    state = SignerState(tmp_path, PeerValidator(SystemClock()).set_anchors, SystemClock(), SENDERS)
    state.load()
    for name, ders in chains.items():
        body = state.cacerts(name)
        assert body is not None
        assert set(read_certs_only(body)) == set(ders)
    assert state.cacerts("gamma") is None


def trust(name: str, **changes: Any) -> CACertificates:
    root = certificate(f"{name} root", ca=True)
    chain = [c.public_bytes(Encoding.DER) for c, _ in (certificate(name, root, ca=True), root)]
    values = {"issuer_id": name, "updated_at": dt.datetime.now(dt.UTC), "chain": tuple(chain)}
    return CACertificates.model_validate(values | changes)


@pytest.mark.logs_errors("state message refused")
def test_damaged_unsigned_and_wrongly_signed_files_are_passed_over(tmp_path: Path) -> None:
    good = topics.cacerts_topic("good")
    store_state(tmp_path, good, trust("good"))
    (tmp_path / topics.cacerts_topic("alpha")).write_bytes(b"{not json")
    (tmp_path / topics.cacerts_topic("unsigned")).write_bytes(encode(trust("unsigned")))
    (tmp_path / topics.secrets_topic("00")).write_bytes(b"\x00\xff")
    (tmp_path / topics.secrets_topic("01")).write_bytes(b"")
    # Signed by a service that has no right to it, and moved to a different topic.
    store_state(tmp_path, topics.cacerts_topic("renewed"), trust("renewed"), "renewal")
    moved = (tmp_path / good).read_bytes()
    (tmp_path / topics.cacerts_topic("moved")).write_bytes(moved)
    # The upstream's key may say which certificates are corporate's, in no message about others.
    store_state(tmp_path, topics.cacerts_topic("corporate"), trust("issuing"), "ca-signer-upstream")
    state = SignerState(tmp_path, PeerValidator(SystemClock()).set_anchors, SystemClock(), SENDERS)
    state.load()
    names = ("alpha", "unsigned", "renewed", "moved", "corporate", "issuing")
    assert [name for name in names if state.cacerts(name)] == []
    assert state.cacerts("good") is not None


@pytest.mark.logs_errors("state message refused")
def test_state_of_the_future_is_refused(tmp_path: Path) -> None:
    state = SignerState(tmp_path, PeerValidator(SystemClock()).set_anchors, SystemClock())
    ahead = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=2)
    assert not state.apply(topics.cacerts_topic("a"), encode(trust("a", updated_at=ahead)))
    shard = SecretShard(shard="00", updated_at=ahead)
    assert not state.apply(topics.secrets_topic("00"), encode(shard))
    revoked = RevokedShard(issuer_id="a", shard="0a", updated_at=ahead, serials=())
    assert not state.apply(topics.revoked_topic("a", "0a"), encode(revoked))
    assert state.apply(topics.cacerts_topic("a"), encode(trust("a")))


def test_K17_revoked_serials_are_known_by_issuer_and_the_newest_word_counts(
    tmp_path: Path,
) -> None:
    now = dt.datetime.now(dt.UTC)
    state = SignerState(tmp_path, PeerValidator(SystemClock()).set_anchors, SystemClock())

    def publish_revoked(age_s: int, *serials: str) -> None:
        message = RevokedShard(
            issuer_id="alpha",
            shard="0a",
            updated_at=now - dt.timedelta(seconds=age_s),
            serials=serials,
        )
        state.apply(topics.revoked_topic("alpha", "0a"), encode(message))

    publish_revoked(10, "0100aa", "0100ba")
    assert state.is_revoked("alpha", 0x0100AA)
    assert not state.is_revoked("beta", 0x0100AA)
    publish_revoked(20)  # an older word that comes late
    assert state.is_revoked("alpha", 0x0100BA)
    publish_revoked(0, "0100ba")  # a hold was ended
    assert not state.is_revoked("alpha", 0x0100AA)


def test_an_unknown_secret_is_wrong_only_when_every_shard_is_here(tmp_path: Path) -> None:
    state = SignerState(tmp_path, PeerValidator(SystemClock()).set_anchors, SystemClock())
    now = dt.datetime.now(dt.UTC)
    for shard in SECRET_SHARDS:
        assert not state.has_secrets
        state.apply(topics.secrets_topic(shard), encode(SecretShard(shard=shard, updated_at=now)))
    assert state.has_secrets
