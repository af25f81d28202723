"""A damaged store: whatever a crash left of a file, an older generation or none is returned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from estclient.agent.backoff import ApprovalWait, Backoff
from estclient.agent.bundle import Bundle, Pending, verify_bundle
from estclient.agent.credential_store import CredentialStore
from estclient.errors import AnswerInvalid, ServerAway, StillPending
from estclient.est.keys import csr_like, make_key
from estclient.est.response_body import certificates_in
from estcore.clock import SystemClock
from estcore.est.certs_only import certs_only
from estsuite_testing.est_server import CA

NOW = SystemClock().now
_DER = Encoding.DER
NEEDED = ("cert.pem", "key.pem", "ca.pem")
SLOW = hypothesis_settings(suppress_health_check=list(HealthCheck), deadline=None)


def fingerprint(store: CredentialStore) -> str:
    found = store.load()
    assert found is not None
    return found.fingerprint


class Damaged:
    """A store with two generations, and what its files were before a test damaged them."""

    def __init__(self, ca: CA, folder: Path) -> None:
        self.store = CredentialStore(folder)
        self.old = self.store.save(ca.bundle(), now=NOW())
        self.new = self.store.save(ca.bundle(), now=NOW())
        assert self.old.folder is not None
        assert self.new.folder is not None
        self.folder = self.new.folder
        self.octets = {file: file.read_bytes() for file in self.folder.iterdir()}

    def put(self, name: str, octets: bytes) -> Bundle | None:
        """Write a file of the current generation, load, and put the file back."""
        file = self.folder / name
        file.write_bytes(octets)
        try:
            return self.store.load()
        finally:
            file.write_bytes(self.octets[file])


@pytest.fixture(scope="module")
def damaged(ca: CA, tmp_path_factory: pytest.TempPathFactory) -> Damaged:
    return Damaged(ca, tmp_path_factory.mktemp("store"))


def lengths(octets: bytes, step: int) -> Iterator[int]:
    """Some of all lengths, and each one around the end of a line, where PEM is still whole."""
    ends = {place + more for place, c in enumerate(octets) if c == 10 for more in (0, 1)}
    return iter(sorted({*range(0, len(octets), step), *ends, len(octets) - 1}))


@pytest.mark.parametrize("name", NEEDED)
def test_a_file_cut_at_any_length_gives_the_older_generation(damaged: Damaged, name: str) -> None:
    whole = damaged.octets[damaged.folder / name]
    for length in lengths(whole, 7):
        found = damaged.put(name, whole[:length])
        assert found is not None
        verify_bundle(found, now=NOW())
        if found.fingerprint == damaged.new.fingerprint:
            # Only what comes after the last line is missing: it is not damaged for any reader.
            assert whole[length:].strip() == b""
            continue
        assert found.fingerprint == damaged.old.fingerprint
        assert found.is_fallback
        assert damaged.folder in {file.parent for file in damaged.store.damage}


def test_a_progress_file_cut_at_any_length_costs_no_credential(damaged: Damaged) -> None:
    whole = damaged.octets[damaged.folder / "bundle.json"]
    for length in range(len(whole) - 2):
        found = damaged.put("bundle.json", whole[:length])
        assert found is not None
        assert found.fingerprint == damaged.new.fingerprint
        assert not found.in_use
        assert list(damaged.store.damage) == [damaged.folder / "bundle.json"]


@SLOW
@given(st.sampled_from([*NEEDED, "bundle.json"]), st.binary(max_size=200))
def test_random_octets_never_raise(damaged: Damaged, name: str, octets: bytes) -> None:
    found = damaged.put(name, octets)
    assert found is not None
    expected = damaged.new if name == "bundle.json" else damaged.old
    assert found.fingerprint == expected.fingerprint


@SLOW
@pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")
@given(st.sampled_from([*NEEDED, "bundle.json"]), st.data())
def test_a_changed_octet_never_raises(damaged: Damaged, name: str, data: st.DataObject) -> None:
    whole = bytearray(damaged.octets[damaged.folder / name])
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] = data.draw(st.integers(0, 255))
    found = damaged.put(name, bytes(whole))
    assert found is not None
    verify_bundle(found, now=NOW())


@SLOW
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["rotation_id", "in_use", "proven"]), inner)
        ),
        max_leaves=5,
    )
)
def test_any_json_as_progress_never_raises(damaged: Damaged, value: object) -> None:
    found = damaged.put("bundle.json", json.dumps(value).encode())
    assert found is not None
    assert found.rotation_id is None or isinstance(found.rotation_id, str)


def test_a_key_or_certificate_of_another_is_damage(ca: CA, tmp_path: Path) -> None:
    case = Damaged(ca, tmp_path / "store")
    stranger = CredentialStore(tmp_path / "other").save(CA().bundle(), now=NOW())
    assert stranger.folder is not None
    for name in NEEDED:
        found = case.put(name, (stranger.folder / name).read_bytes())
        assert found is not None
        assert found.fingerprint == case.old.fingerprint


def test_a_missing_file_folder_or_link_is_damage(ca: CA, tmp_path: Path) -> None:
    case = Damaged(ca, tmp_path / "store")
    for name in NEEDED:
        (case.folder / name).unlink()
        found = case.store.load()
        assert found is not None
        assert found.fingerprint == case.old.fingerprint
        (case.folder / name).mkdir()
        assert fingerprint(case.store) == found.fingerprint
        (case.folder / name).rmdir()
        (case.folder / name).write_bytes(case.octets[case.folder / name])
    shutil.rmtree(case.folder)
    found = case.store.load()
    assert found is not None
    assert found.fingerprint == case.old.fingerprint
    assert case.store.current in case.store.damage
    case.store.current.unlink()
    assert case.store.load() is not None
    assert not case.store.is_new()
    current = case.store.make_current(found)
    assert not current.in_use
    assert case.store.current.resolve() == found.folder
    assert case.store.make_current(current) is current


def test_without_a_good_generation_there_is_none_and_all_damage_is_known(
    ca: CA, tmp_path: Path
) -> None:
    case = Damaged(ca, tmp_path / "store")
    for generation in (case.old, case.new):
        assert generation.folder is not None
        (generation.folder / "key.pem").write_bytes(b"")
    assert case.store.load() is None
    assert set(case.store.damage.values()) == {"it is empty"}
    assert len(case.store.damage) == 2
    assert not case.store.is_new()
    # What is issued next is stored beside the damage and used.
    again = case.store.save(ca.bundle(), now=NOW())
    assert fingerprint(case.store) == again.fingerprint
    assert case.store.damage == {}


def test_what_cannot_be_read_at_the_moment_is_no_damage(ca: CA, tmp_path: Path) -> None:
    """A loop of links is what a process without any right sees of a file: an error of the system."""
    case = Damaged(ca, tmp_path / "store")
    file = case.folder / "key.pem"
    file.unlink()
    file.symlink_to(file.name)
    with pytest.raises(OSError, match="symbolic links"):
        case.store.load()
    assert case.store.damage == {}


def test_refused_certificates_are_passed_over(ca: CA, tmp_path: Path) -> None:
    case = Damaged(ca, tmp_path / "store")
    found = case.store.load(refused={case.new.fingerprint})
    assert found is not None
    assert found.fingerprint == case.old.fingerprint
    assert case.store.load(refused={case.new.fingerprint, case.old.fingerprint}) is None


@SLOW
@given(st.sampled_from(["key.pem", "csr.der", "bundle.json"]), st.data())
def test_a_damaged_request_under_way_is_none(
    ca: CA, tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    store = CredentialStore(tmp_path_factory.mktemp("pending"))
    current, key = ca.bundle(), make_key()
    store.begin(Pending(key, csr_like(current.certificate, key), current.fingerprint))
    file = store.current.parent / "pending" / name
    whole = file.read_bytes()
    # By share, for the length of a signature differs.
    cut = data.draw(st.one_of(st.floats(0, 1), st.binary(max_size=50)))
    file.write_bytes(whole[: int((len(whole) - 2) * cut)] if isinstance(cut, float) else cut)
    assert store.pending(current.fingerprint) is None
    assert file in store.damage
    store.forget()
    assert store.pending(current.fingerprint) is None
    assert store.damage == {}


def test_damaged_server_roots_are_none_and_known(ca: CA, tmp_path: Path) -> None:
    store = CredentialStore(tmp_path)
    store.keep_server_roots([ca.root])
    file = tmp_path / "server-roots.pem"
    whole = file.read_bytes()
    for octets in (b"", whole[:100], b"\xff" * 30):
        file.write_bytes(octets)
        assert store.server_roots() == ()
        assert list(store.damage) == [file]
    file.write_bytes(whole)
    assert store.server_roots() == (ca.root,)
    assert store.damage == {}


@SLOW
@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@given(st.data())
def test_any_answer_gives_certificates_or_an_error_of_ours(ca: CA, data: st.DataObject) -> None:
    answer = bytearray(certs_only([ca.root.public_bytes(_DER), ca.issuer.public_bytes(_DER)]))
    for _ in range(data.draw(st.integers(1, 3))):
        answer[data.draw(st.integers(0, len(answer) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = certificates_in(bytes(answer))
    except AnswerInvalid:
        return
    for certificate in found:
        certificate.subject, certificate.not_valid_after_utc, certificate.public_key()


def test_pauses_double_are_spread_and_listen_to_the_server() -> None:
    spread: list[tuple[float, float]] = []

    def whole(low: float, high: float) -> float:
        spread.append((low, high))
        return high

    backoff = Backoff(5, 300, whole)
    assert [backoff.pause_s(OSError()) for _ in range(8)] == [5, 10, 20, 40, 80, 160, 300, 300]
    assert set(spread) == {(0.5, 1)}
    backoff.succeeded()
    assert backoff.pause_s(ServerAway("busy", retry_after_s=60.0)) == 60
    assert backoff.pause_s(ServerAway("busy", retry_after_s=86_400.0)) == 300
    assert backoff.pause_s(StillPending("waits", retry_after_s=3600.0)) == 300
    assert backoff.pause_s(StillPending("waits")) == 40
    assert max(Backoff(0.1, 86_400).pause_s(OSError()) for _ in range(3)) <= 0.1


async def test_a_request_that_waits_for_approval_is_not_repeated_early() -> None:
    """RFC 7030 4.2.3: "the client MUST wait at least the specified 'retry-after' time"."""
    now, sent = [100.0], [0]
    wait = ApprovalWait(lambda: now[0])

    async def pending() -> str:
        sent[0] += 1
        if sent[0] == 1:
            raise StillPending("waits", retry_after_s=3600.0)
        return "issued"

    for moment, asked in ((100.0, 1), (101.0, 1), (3699.0, 1)):
        now[0] = moment
        with pytest.raises(StillPending):
            await wait.ask(pending)
        assert sent[0] == asked
    now[0] = 3700.5
    assert await wait.ask(pending) == "issued"
