"""ca-signer as a process, its key in a real SoftHSM2, on a real bus and a real ledger."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import yaml
from cryptography import x509

from estdev.ports import free_port
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import SignerStack, signer_stack
from estsuite_testing.softhsm import SoftHSM, alive, issuer_settings, until_true, with_keys

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@dataclass
class Service:
    """A running ``ca-signer run`` and a front end that asks it."""

    hsm: SoftHSM
    frontend: SignerStack
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [Path(sys.executable).with_name("ca-signer"), "run",
                 "--config", self.folder / "ca-signer.yaml"],
                stdout=log, stderr=log,
            )  # fmt: skip

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}") as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as exc:
            return exc.code, exc.read().decode()
        except OSError:
            return 0, ""

    async def state(self) -> tuple[int, str]:
        return await asyncio.to_thread(self.get, "/readyz")

    async def ready(self, *, expected: int = 200, timeout_s: float = 30) -> str:
        async with asyncio.timeout(timeout_s):
            while True:
                status, text = await self.state()
                if status == expected:
                    return text
                await asyncio.sleep(0.1)

    def workers(self) -> list[int]:
        """Process ids of the signer's children."""
        assert self.process is not None
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Service]:
    folder = tmp_path_factory.mktemp("signer")
    (folder / "token").mkdir()
    hsm = with_keys(SoftHSM(folder / "hsm"), "01")
    fast = {"pause_s": 0.2, "longest_pause_s": 0.5, "timeout_s": 1}
    issuer = issuer_settings(hsm, folder / "token", "01", **fast)
    port = free_port()
    changes = {
        "issuers": [issuer.model_dump()],
        "software_keys": "refuse",
        "admin": {"port": port},
    }
    with pytest.MonkeyPatch.context() as patch:
        hsm.use(patch)
        # Migrates, and speaks to the signer as est-frontend does; signs nothing itself.
        async with signer_stack(platform, folder, running=False, **changes) as frontend:
            raw = frontend.settings.model_dump(mode="json", exclude_none=True)
            (folder / "ca-signer.yaml").write_text(yaml.safe_dump(raw))
            service = Service(hsm, frontend, folder, port)
            service.start()
            try:
                await service.ready()
                yield service
            finally:
                assert service.process is not None
                service.process.kill()
                service.process.wait()
                sys.stderr.write((folder / "log").read_text())


async def test_a_token_signs_what_a_front_end_asks_for(service: Service) -> None:
    await service.ready()
    messages = [service.frontend.message() for _ in range(30)]
    for message in messages:
        await service.frontend.send(message)
    for message in messages:
        async with asyncio.timeout(20):
            answer = await service.frontend.answers[message.id]
        assert answer.certificate is not None
        certificate = x509.load_der_x509_certificate(answer.certificate)
        issuer = service.frontend.batch.decision_context.issuers["issuing"]
        certificate.verify_directly_issued_by(issuer.certificate.certificate)


async def test_while_the_token_is_unavailable_requests_wait_and_none_is_lost(
    service: Service,
) -> None:
    """Not ready, nothing fetched for long; when it is back everything is answered once."""
    await service.ready()
    service.hsm.vanish()
    try:
        message = service.frontend.message()
        await service.frontend.send(message)
        assert "keystores" in await service.ready(expected=503)
        await asyncio.sleep(1)
        assert not service.frontend.answers[message.id].done()
    finally:
        service.hsm.come_back()
    async with asyncio.timeout(60):
        answer = await service.frontend.answers[message.id]
    assert answer.outcome == "issued"
    count = "select count(*) from issuance where request_id = $1"
    assert await service.frontend.value(count, message.id) == 1
    await service.ready()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_a_lost_worker_loses_no_request(service: Service, number: int) -> None:
    await service.ready()
    (worker,) = service.workers()
    os.kill(worker, number)
    message = service.frontend.message()
    await service.frontend.send(message)
    async with asyncio.timeout(60):
        answer = await service.frontend.answers[message.id]
    assert answer.outcome == "issued"
    assert not alive(worker)
    await service.ready()


async def test_metrics_cover_the_token(service: Service) -> None:
    await service.ready()
    await service.frontend.ask(service.frontend.message())
    async with asyncio.timeout(10):
        while True:
            _, text = await asyncio.to_thread(service.get, "/metrics")
            if 'ca_signer_token_breaker{token="estsuite"} 0.0' in text:
                break
            await asyncio.sleep(0.1)
    assert 'ca_signer_token_signature_seconds_count{token="estsuite"}' in text


async def test_the_worker_ends_with_sigterm(service: Service) -> None:
    await service.ready()
    workers = service.workers()
    assert workers
    assert service.process is not None
    service.process.terminate()
    try:
        assert await asyncio.to_thread(service.process.wait, 40) == 0
        await until_true(lambda: not any(alive(pid) for pid in workers))
    finally:
        service.start()
