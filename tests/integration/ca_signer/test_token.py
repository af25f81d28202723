"""Keys in a real SoftHSM2: what it signs, and every way in which a token can fail."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ca_signer.signing.hsm.token import TokenKey, opened
from ca_signer.signing.issuers import load_issuers, tokens_of
from estcore.errors import ConfigurationError, KeyStoreUnavailable
from estsuite_testing.softhsm import (
    PIN,
    Faults,
    SoftHSM,
    alive,
    issuer_settings,
    token_key,
    until_true,
    with_keys,
)


@pytest.fixture(scope="module")
def softhsm(tmp_path_factory: pytest.TempPathFactory) -> SoftHSM:
    return with_keys(SoftHSM(tmp_path_factory.mktemp("hsm")))


@pytest.fixture
def hsm(softhsm: SoftHSM, monkeypatch: pytest.MonkeyPatch) -> SoftHSM:
    softhsm.use(monkeypatch)
    return softhsm


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    return Faults(tmp_path)


def state_of(key: TokenKey) -> str:
    return key.token.breaker.state


async def refused(key: TokenKey, code: str) -> KeyStoreUnavailable:
    with pytest.raises(KeyStoreUnavailable) as caught:
        await key.sign(b"to be signed")
    assert caught.value.code == code, caught.value.reason
    return caught.value


async def test_many_are_signed_in_one_go_and_all_verify(hsm: SoftHSM, tmp_path: Path) -> None:
    async with token_key(hsm, tmp_path) as key:
        made = await key.sign_many([b"tbs %d" % n for n in range(64)])
    assert len(set(made)) == 64


async def test_keys_in_one_token_share_one_worker(hsm: SoftHSM, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = issuer_settings(hsm, tmp_path / "a", "01").model_copy(update={"issuer_id": "a"})
    second = issuer_settings(hsm, tmp_path / "b", "03").model_copy(update={"issuer_id": "b"})
    issuers = load_issuers([first, second])
    tokens = tokens_of(issuers)
    assert len(tokens) == 1
    async with opened(tokens):
        await asyncio.gather(*(i.keystore.sign(b"tbs") for i in issuers.values() for _ in range(9)))
        assert tokens[0].starts == 1
    assert second.token is not None
    other = second.model_copy(update={"token": second.token.model_copy(update={"timeout_s": 1.0})})
    with pytest.raises(ConfigurationError, match="two different settings"):
        load_issuers([first, other])


@pytest.mark.logs_errors(
    "PIN rejected by the token, not retried until restart",
)
async def test_a_wrong_pin_reaches_the_token_once(
    hsm: SoftHSM, faults: Faults, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A PIN that is tried again and again locks a token."""
    wrong = tmp_path / "wrong-pin"
    wrong.write_text("1111-is-wrong")
    wrong.chmod(0o600)
    caplog.set_level(logging.DEBUG)
    async with token_key(
        hsm, tmp_path, command=faults.command, pin_file=wrong, pause_s=0.05
    ) as key:
        assert not key.ready
        stop = asyncio.Event()
        watching = asyncio.ensure_future(key.token.watch(stop))
        for _ in range(5):
            assert "the PIN is wrong" in (await refused(key, "keystore.pin")).reason
        await asyncio.sleep(0.6)
        stop.set()
        await watching
        assert faults.logins() == 1
        assert key.token.starts == 1
    assert "1111-is-wrong" not in caplog.text
    (hsm_again := tmp_path / "right").mkdir()
    async with token_key(hsm, hsm_again) as key:  # the token is not locked
        await key.sign(b"tbs")


@pytest.mark.logs_errors(
    "PIN rejected by the token, not retried until restart",
)
@pytest.mark.parametrize("error", ["PinLocked", "PinFinalTry", "PinExpired"])
async def test_a_refused_login_is_not_tried_again(
    hsm: SoftHSM, faults: Faults, tmp_path: Path, error: str
) -> None:
    issuer_settings(hsm, tmp_path)
    faults.set(f"login:{error}")
    async with token_key(hsm, tmp_path, command=faults.command) as key:
        faults.set("")
        await refused(key, "keystore.pin")
        assert key.token.starts == 1
        assert faults.logins() == 0


async def test_a_login_that_fails_for_another_reason_is_tried_again(
    hsm: SoftHSM, faults: Faults, tmp_path: Path
) -> None:
    issuer_settings(hsm, tmp_path)
    faults.set("login:DeviceError")
    async with token_key(hsm, tmp_path, command=faults.command) as key:
        faults.set("")
        await key.sign(b"tbs")


async def test_a_worker_that_ends_right_after_it_was_opened_is_replaced(
    hsm: SoftHSM, faults: Faults, tmp_path: Path
) -> None:
    issuer_settings(hsm, tmp_path)
    faults.set("end-open")
    async with token_key(hsm, tmp_path, command=faults.command) as key:
        await until_true(lambda: key.token.pid == 0)
        faults.set("")
        await key.sign(b"tbs")


async def test_the_pin_is_in_no_argument_and_no_variable(hsm: SoftHSM, tmp_path: Path) -> None:
    async with token_key(hsm, tmp_path) as key:
        for name in ("cmdline", "environ"):
            assert PIN.encode() not in Path(f"/proc/{key.token.pid}/{name}").read_bytes()


async def test_a_token_that_went_and_came_back_signs_again(
    softhsm: SoftHSM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    softhsm.use(monkeypatch)
    async with token_key(softhsm, tmp_path, pause_s=0.05, longest_pause_s=0.2) as key:
        stop = asyncio.Event()
        watching = asyncio.ensure_future(key.token.watch(stop))
        await key.sign(b"before")
        softhsm.vanish()
        try:
            for _ in range(3):
                with pytest.raises(KeyStoreUnavailable):
                    await key.sign(b"gone")
            await until_true(lambda: key.token.breaker.state == "open")
            assert not key.ready
        finally:
            softhsm.come_back()
        await until_true(lambda: key.ready)
        await key.sign(b"after")
        assert state_of(key) == "closed"
        stop.set()
        await watching


async def test_a_token_unavailable_at_the_start_is_opened_later(
    softhsm: SoftHSM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    softhsm.use(monkeypatch)
    issuer_settings(softhsm, tmp_path)
    softhsm.vanish()
    try:
        async with token_key(softhsm, tmp_path, pause_s=0.05, longest_pause_s=0.2) as key:
            stop = asyncio.Event()
            watching = asyncio.ensure_future(key.token.watch(stop))
            assert not key.ready
            softhsm.come_back()
            await until_true(lambda: key.ready)
            await key.sign(b"tbs")
            stop.set()
            await watching
    finally:
        if not softhsm.tokens.exists():
            softhsm.come_back()


@pytest.mark.logs_errors(
    "token returned a wrong signature",
)
async def test_a_wrong_signature_is_never_handed_out(
    hsm: SoftHSM, faults: Faults, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with token_key(hsm, tmp_path, command=faults.command, failures=2, pause_s=0.2) as key:
        await key.sign(b"good")
        faults.set("garbage")
        for _ in range(2):
            await refused(key, "keystore.wrong_signature")
        await refused(key, "keystore.circuit_open")
        assert state_of(key) == "open"
        assert "token returned a wrong signature" in caplog.text
        faults.set("")
        await asyncio.sleep(0.25)
        await key.sign(b"good again")
        assert state_of(key) == "closed"


@pytest.mark.logs_errors(
    "token returned a wrong signature",
)
async def test_one_bad_signature_in_a_batch_gives_none(
    hsm: SoftHSM, faults: Faults, tmp_path: Path
) -> None:
    async with token_key(hsm, tmp_path, command=faults.command) as key:
        faults.set("garbage")
        with pytest.raises(KeyStoreUnavailable):
            await key.sign_many([b"a", b"b", b"c"])


@pytest.mark.parametrize("mode", ["hang", "babble", "refuse"])
async def test_a_worker_that_does_not_answer_rightly_is_replaced(
    hsm: SoftHSM, faults: Faults, tmp_path: Path, mode: str
) -> None:
    codes = {"hang": "timeout", "babble": "worker", "refuse": "unavailable"}
    async with token_key(hsm, tmp_path, command=faults.command, timeout_s=0.3) as key:
        first = key.token.pid
        faults.set(mode)
        await refused(key, f"keystore.{codes[mode]}")
        faults.set("")
        await key.sign(b"tbs")
        assert key.token.pid not in {0, first}
        assert not alive(first)


async def test_a_token_that_hangs_while_it_is_opened_times_out(
    hsm: SoftHSM, faults: Faults, tmp_path: Path
) -> None:
    issuer_settings(hsm, tmp_path)
    faults.set("hang-open")
    started = time.monotonic()
    async with token_key(hsm, tmp_path, command=faults.command, open_s=3) as key:
        assert time.monotonic() - started < 6
        assert key.token.pid == 0
        faults.set("")
        await key.sign(b"tbs")


async def test_a_slow_token_is_waited_for(hsm: SoftHSM, faults: Faults, tmp_path: Path) -> None:
    """The deadline is for one signature, not for all that wait before it."""
    async with token_key(hsm, tmp_path, command=faults.command, timeout_s=0.5) as key:
        faults.set("slow:0.1")
        assert len(await key.sign_many([b"%d" % n for n in range(10)])) == 10


async def test_no_request_waits_longer_than_allowed(
    hsm: SoftHSM, faults: Faults, tmp_path: Path
) -> None:
    async with token_key(hsm, tmp_path, command=faults.command, timeout_s=0.5, wait_s=0.6) as key:
        faults.set("slow:0.1")
        with pytest.raises(KeyStoreUnavailable) as caught:
            await key.sign_many([b"%d" % n for n in range(50)])
        assert caught.value.code == "keystore.busy"
        faults.set("")


async def test_what_a_module_prints_does_not_disturb(
    hsm: SoftHSM, faults: Faults, tmp_path: Path
) -> None:
    async with token_key(hsm, tmp_path, command=faults.command) as key:
        faults.set("print")
        await key.sign(b"tbs")


async def test_a_stopped_worker_is_replaced(hsm: SoftHSM, tmp_path: Path) -> None:
    async with token_key(hsm, tmp_path, timeout_s=0.3) as key:
        stopped = key.token.pid
        os.kill(stopped, signal.SIGSTOP)
        await refused(key, "keystore.timeout")
        await key.sign(b"tbs")
        assert not alive(stopped)


async def test_a_killed_worker_is_started_again(hsm: SoftHSM, tmp_path: Path) -> None:
    async with token_key(hsm, tmp_path) as key:
        killed = key.token.pid
        os.kill(killed, signal.SIGKILL)
        await until_true(lambda: key.token.pid == 0)
        await key.sign(b"tbs")
        assert key.token.starts == 2


async def test_what_was_on_its_way_to_a_killed_worker_fails_at_once(
    hsm: SoftHSM, faults: Faults, tmp_path: Path
) -> None:
    async with token_key(hsm, tmp_path, command=faults.command) as key:
        faults.set("slow:0.3")
        waiting = [asyncio.ensure_future(key.sign(b"%d" % n)) for n in range(5)]
        await asyncio.sleep(0.05)
        os.kill(key.token.pid, signal.SIGKILL)
        for one in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(one, KeyStoreUnavailable)
            assert one.code == "keystore.worker"
        assert state_of(key) == "closed"  # one failure, not five


async def test_the_queue_is_bounded(hsm: SoftHSM, faults: Faults, tmp_path: Path) -> None:
    async with token_key(hsm, tmp_path, command=faults.command, queue=4) as key:
        faults.set("slow:0.1")
        waiting = [asyncio.ensure_future(key.sign(b"%d" % n)) for n in range(4)]
        await asyncio.sleep(0)
        await refused(key, "keystore.busy")
        assert len(await asyncio.gather(*waiting)) == 4
        faults.set("")
        await key.sign(b"there is room again")


async def test_the_event_loop_turns_while_the_token_hangs(
    hsm: SoftHSM, faults: Faults, tmp_path: Path
) -> None:
    async with token_key(hsm, tmp_path, command=faults.command, timeout_s=1) as key:
        faults.set("hang")
        signing = asyncio.ensure_future(key.sign(b"tbs"))
        longest, last = 0.0, time.monotonic()
        while not signing.done():
            await asyncio.sleep(0.005)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        assert isinstance(signing.exception(), KeyStoreUnavailable)
        assert longest < 0.7  # a blocked loop would stand for the whole second


async def test_the_worker_ends_with_the_signer_even_while_it_hangs(
    hsm: SoftHSM, faults: Faults, tmp_path: Path
) -> None:
    """An orphan would keep its session and its login in the token."""
    script = (
        "import asyncio, sys\n"
        "from ca_signer.signing.hsm.worker_process import WorkerProcess\n"
        "from ca_signer.signing.hsm.protocol import Kind, Open\n"
        "async def main():\n"
        "    link = await WorkerProcess.start(sys.argv[5:], timeout_s=60, lost=print, took=print)\n"
        "    link.request(Kind.OPEN, Open(sys.argv[1], 't', '', '1', False).encode())\n"
        "    print(link.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    faults.set("hang-open")
    arguments = [sys.executable, "-c", script, str(hsm.module), "", "", "", *faults.command]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as signer:
        assert signer.stdout is not None
        pid = int(signer.stdout.readline())
        await asyncio.sleep(0.5)
        assert alive(pid)
        signer.kill()
    await until_true(lambda: not alive(pid))


async def test_a_key_that_is_not_the_certificates_stops_the_start(
    hsm: SoftHSM, tmp_path: Path
) -> None:
    settings = issuer_settings(hsm, tmp_path, "01")
    for key_id, word in (("02", "is not the certificate's"), ("77", "not in the token")):
        changed = settings.model_copy(update={"token": hsm.settings(key_id)})
        issuers = load_issuers([changed])
        with pytest.raises(ConfigurationError, match=word) as caught:
            async with opened(tokens_of(issuers)):
                pass
        assert caught.value.code == "keystore.key"
