"""A new root is trusted only if the old one has signed it (RFC 4210 section 4.4)."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from estclient.agent.agent import Agent
from estclient.agent.bundle import Bundle, verify_bundle
from estclient.agent.credential_store import CredentialStore
from estclient.agent.settings import AgentSettings
from estclient.errors import AnswerInvalid, BundleInvalid
from estclient.est.trust_anchors import is_root, take_up, trusted_roots
from estcore.clock import SystemClock
from estcore.testing.clock import FakeClock

NOW = SystemClock().now


@pytest.fixture(scope="module")
def cas(ca: Any) -> tuple[Any, Any, Any]:
    """Three CAs whose roots have one name."""
    return type(ca)(), type(ca)(), type(ca)()


def shown(old: Any, new: Any) -> list[x509.Certificate]:
    return [old.root, old.issuer, new.root, new.issuer, old.cross(new), new.cross(old)]


def test_D3_a_root_is_adopted_that_the_old_one_signed(cas: Any) -> None:
    old, new, stranger = cas
    received = shown(old, new)
    for known in ([old.root], [new.root], [old.issuer, old.root]):
        assert set(take_up(known, received, now=NOW())) == set(received)
    with pytest.raises(AnswerInvalid) as refused:
        take_up([stranger.root], received, now=NOW())
    assert refused.value.code == "client.trust"


def test_a_root_without_a_trusted_signature_is_left_out(cas: Any) -> None:
    old, new, stranger = cas
    forged = stranger.cross(new)  # the right name and key, signed by a different CA
    for beside in ([], [forged], [new.cross(old)], [forged, new.cross(old)]):
        taken = take_up([old.root], [old.root, new.root, new.issuer, *beside], now=NOW())
        assert set(taken) == {old.root}, beside


def test_what_links_the_roots_must_be_of_now(cas: Any) -> None:
    old, new, _ = cas
    later = FakeClock(NOW())
    later.forward(days=31)
    assert trusted_roots([old.root], shown(old, new), now=later.now()) == (old.root,)
    assert set(trusted_roots([old.root], shown(old, new), now=NOW())) == {old.root, new.root}


def test_a_leaf_that_signs_makes_no_root(cas: Any) -> None:
    """Only a CA certificate links: a service's key under the old root signs no root."""
    old, new, _ = cas
    leaf = old.bundle().certificate
    assert not is_root(leaf)
    assert take_up([old.root], [old.root, new.root, leaf], now=NOW()) == (old.root,)


@given(order=st.permutations(range(6)), known=st.sampled_from(["old", "new"]))
def test_the_order_of_certificates_does_not_matter(order: list[int], known: str) -> None:
    old, new = _PAIR
    received = [shown(old, new)[i] for i in order]
    root = old.root if known == "old" else new.root
    assert len(take_up([root], received, now=NOW())) == 6


_PAIR: tuple[Any, Any] = (None, None)


@pytest.fixture(autouse=True, scope="module")
def _pair(cas: Any) -> None:
    global _PAIR
    _PAIR = cas[0], cas[1]


@pytest.mark.parametrize("which", ["old", "new"])
def test_D7_cross_certificates_of_one_name_neither_loop_nor_mislead(
    cas: Any, which: str, tmp_path: Path
) -> None:
    """Both roots have one name, so NewWithOld looks self-issued (RFC 5280 section 6.1)."""
    old, new, _ = cas
    own = old if which == "old" else new
    bundle = own.bundle()
    received = shown(old, new)
    forwards, backwards = (
        Bundle(bundle.certificate, bundle.key, authorities)
        for authorities in (tuple(received), tuple(reversed(received)))
    )
    for together in (forwards, backwards):
        chain = verify_bundle(together, now=NOW())
        assert chain == [bundle.certificate, own.issuer, own.root]
    stored = CredentialStore(tmp_path).save(backwards, now=NOW())
    served = stored.files[0]
    # What the service sends lets either root's holders verify it.
    for root in (old.root, new.root):
        trusted = tmp_path / "trusted.pem"
        trusted.write_bytes(root.public_bytes(Encoding.PEM))
        command = ["openssl", "verify", "-no-CApath", "-no-CAstore", "-CAfile", str(trusted)]
        command += ["-untrusted", str(served), str(served)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_D7_cross_certificates_without_a_root_end_nowhere(cas: Any) -> None:
    old, new, _ = cas
    bundle = old.bundle()
    cycle = (old.issuer, old.cross(new), new.cross(old))
    with pytest.raises(BundleInvalid):
        verify_bundle(Bundle(bundle.certificate, bundle.key, cycle), now=NOW())


def settings(server: Any, ca: Any) -> AgentSettings:
    trust = server.folder / "trust.pem"
    trust.write_bytes(ca.root.public_bytes(Encoding.PEM))
    values = {
        "server": {"urls": [server.url], "trust_file": trust, "label": "web", "timeout_s": 5},
        "store": server.folder / "store",
        "cacerts_every_s": 0.1,
        "retry_s": 0.1,
    }
    return AgentSettings.model_validate(values)


async def test_D4_D8_an_agent_takes_up_the_new_root_and_follows_the_server(
    cas: Any, server: Any
) -> None:
    old, new, stranger = cas
    reloaded: list[str] = []

    async def hook(bundle: Bundle) -> None:
        reloaded.append((bundle.files[1].parent / "ca.pem").read_text())

    async def serve(ca: Any, *extra: x509.Certificate) -> None:
        await server.stop()
        server.ca, server.extra = ca, extra
        await server.start()

    # 1. A credential under the old root; its server, too.
    await serve(old)
    agent = Agent(settings(server, old), hook=hook)
    agent.store.save(old.bundle(), now=NOW())
    held = agent.store.load()
    assert held is not None

    async def until_seen() -> None:
        before = len(server.seen)
        while len(server.seen) == before:
            await agent.advance()
        await agent.advance()

    # 2. It asks with its certificate, which is how it is known to have the trust.
    await until_seen()
    assert {s.operation for s in server.seen} == {"cacerts"}
    assert {s.client for s in server.seen} == {held.fingerprint}
    assert reloaded == []

    # 3. A root without a trusted signature changes nothing; one the old root signed is adopted.
    await serve(old, stranger.root, stranger.issuer)
    await until_seen()
    assert reloaded == []
    rolled = (new.root, new.issuer, old.cross(new), new.cross(old))
    await serve(old, *rolled)
    await until_seen()
    assert len(reloaded) == 1
    assert reloaded[0].count("BEGIN") == 6

    # 4. The old one leaves: server, /cacerts and renewal are those of the new root.
    await serve(new)
    await until_seen()
    taken = agent.store.load()
    assert taken is not None
    # Its certificate still needs the old one.
    assert set(taken.authorities) == {old.root, old.issuer, *rolled}
    renewed = Agent(settings(server, old), hook=hook)
    await renewed._renew(taken, None)
    last = renewed.store.load()
    assert last is not None
    last.certificate.verify_directly_issued_by(new.issuer)
    assert set(last.authorities) == {new.root, new.issuer}

    # 5. Started again much later it still knows the server, by what it kept.
    again = Agent(settings(server, old), hook=hook)
    before = len(server.seen)
    while len(server.seen) == before:
        await again.advance()

    # 6. A server of a stranger is not trusted, whatever it presents.
    await serve(stranger, new.root, new.issuer, stranger.cross(new), new.cross(stranger))
    before = len(server.seen)
    for _ in range(20):
        await again.advance()
    assert len(server.seen) == before
