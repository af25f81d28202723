"""Renewal information over the wire, and rotations of clients that have nothing but port 443."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from cryptography import x509

from estclient.errors import RenewalInfoUnknown, ServerRefused
from estclient.est.client import ESTClient
from estcore.clock import SystemClock
from estcore.est.renewal_info import RenewalInfo, cert_id
from estcore.ids import rotation_id
from estcore.messages.permissions import STREAMS_ACCOUNT, Permissions
from estcore.messages.topics import PKI_RENEWAL_INFO
from estcore.runtime.bus import Bus
from estcore.runtime.settings import BusSettings
from estsuite_testing.e2e_stack import Stack, start_stack, stop_stack
from estsuite_testing.polling_service import Service

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
]
ADMINISTRATOR = Permissions(account=STREAMS_ACCOUNT, publish=(">",), subscribe=(">",))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A suite with a second front end, and a NATS user that may delete streams."""
    started = await start_stack(
        tmp_path_factory.mktemp("renewal-info"),
        overrides={
            "est-frontend": {"renewal_info": {"poll_s": 0.2}},
            "renewal": {"renewal_info": {"check_every_s": 0.3}, "scheduler": {"poll_s": 0.2}},
        },
        users={"administrator": ADMINISTRATOR},
    )
    try:
        await started.suite.start_service("est-frontend", "est-frontend-1", wait=True)
        yield started
    finally:
        await stop_stack(started)


async def curl(*arguments: str | Path) -> str:
    """Run curl as the documentation does; returns the status, a space and the body."""
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "-w", "\n%{http_code}", *map(str, arguments), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    body, _, status = out.decode().rpartition("\n")
    return f"{status} {body.strip()}".strip()


async def rows(stack: Stack, query: str, *arguments: Any) -> list[Any]:
    database = await stack.layout.postgres.superuser()
    try:
        return list(await database.fetch(query, *arguments))
    finally:
        await database.close()


async def slot_of(service: Service) -> Any:
    (row,) = await rows(
        service.stack,
        "select s.* from renewal.renewal_slot s join renewal.certificate c using (slot_id)"
        " where c.serial = $1",
        serial(service.certificate),
    )
    return row


def serial(certificate: x509.Certificate) -> str:
    text = f"{certificate.serial_number:x}"
    return text if len(text) % 2 == 0 else "0" + text


def is_over(info: RenewalInfo) -> bool:
    return info.end <= SystemClock().now()


async def test_F14_the_answer_is_what_renewal_scheduled(stack: Stack, tmp_path: Path) -> None:
    service = await Service.enroll(stack, tmp_path / "s", "dev-scheduled")
    info = await service.info()
    slot = await slot_of(service)
    assert info.start == slot["due_at"].replace(microsecond=0)
    assert info.start < info.end < service.certificate.not_valid_after_utc
    assert info.rotation_id == rotation_id(str(slot["slot_id"]), 2)
    assert (info.reason, info.explanation_url) == ("lifetime", None)
    assert info.retry_after_s is not None
    assert 21_600 * 0.75 <= info.retry_after_s <= 21_600


async def test_F15_a_client_that_does_what_the_documentation_says_leaves_no_stalled_rotation(
    stack: Stack, tmp_path: Path
) -> None:
    """One of two services forgets the proof: its rotation stalls, so the other's could have."""
    proving = await Service.enroll(stack, tmp_path / "a", "dev-proving")
    forgetful = await Service.enroll(stack, tmp_path / "b", "dev-forgetful")
    old = {service.name: service.certificate for service in (proving, forgetful)}
    for service in (proving, forgetful):
        await service.renew()
    certificate, key = proving.credential
    ack = f"{proving.url}/.well-known/est/rotation-ack"
    credential = ("--cacert", stack.layout.root_file, "--cert", certificate, "--key", key)
    assert await curl(*credential, "-X", "POST", ack) == "204"
    assert await curl(*credential, "--data", "", ack) == "204"
    # The old certificates come to their end; a rotation stalls an eighth of the lifetime before.
    await rows(
        stack,
        "update renewal.certificate set not_after = now() + interval '10 seconds'"
        " where serial = any($1::text[])",
        [serial(c) for c in old.values()],
    )
    await rows(stack, "update renewal.renewal_slot set check_at = now()")

    async with asyncio.timeout(60):
        while "rotation.stalled" not in {r["action"] for r in await steps(forgetful)}:
            await asyncio.sleep(0.3)
        while "rotation.retired" not in {r["action"] for r in await steps(proving)}:
            await asyncio.sleep(0.3)
    found = {record["action"]: record for record in await steps(proving)}
    assert found["rotation.activated"]["details"]["proof"] == "mtls_seen"
    assert "rotation.stalled" not in found
    assert "rotation.lease_expired" not in found
    assert {r["severity"] for r in found.values()} <= {"info", "notice"}
    assert is_over(await proving.info(old["dev-proving"]))


async def steps(service: Service) -> list[dict[str, Any]]:
    slot = str((await slot_of(service))["slot_id"])
    records = await service.stack.records()
    return [
        r
        for r in records
        if r["action"].startswith("rotation.") and r["target"].get("slot_id") == slot
    ]


async def test_a_service_proves_its_certificate_in_the_moment_it_gets_it(
    stack: Stack, tmp_path: Path
) -> None:
    service = await Service.enroll(stack, tmp_path / "s", "dev-hasty")
    for _ in range(3):
        await service.renew()
        await service.client(service.credential).prove_use()
    slot = await slot_of(service)
    assert (slot["generation"], slot["state"]) == (4, "idle")


async def test_what_proves_nothing_is_refused(stack: Stack, tmp_path: Path) -> None:
    service = await Service.enroll(stack, tmp_path / "s", "dev-ended")
    first = service.credential
    await service.renew()
    await service.client(service.credential).prove_use()
    ack = f"{service.url}/.well-known/est/rotation-ack"
    root = stack.layout.root_file
    old, new = ("--cert", first[0], "--key", first[1]), service.files(2)
    cases: list[tuple[str, tuple[str | Path, ...]]] = [
        ("409 the certificate is ", old),
        ("401", ()),
        ("415", ("--cert", new[0], "--key", new[1], "--data", "x")),
    ]
    for expected, arguments in cases:
        answer = await curl("--cacert", root, *arguments, "-X", "POST", ack)
        assert answer.startswith(expected), answer


async def test_unknown_and_malformed_ids_have_an_answer_of_their_own(
    stack: Stack, tmp_path: Path
) -> None:
    service = await Service.enroll(stack, tmp_path / "s", "dev-unknown")
    await service.info()
    base = f"{service.url}/.well-known/est"
    known = cert_id(service.certificate)
    root = ("--cacert", stack.layout.root_file)
    assert (await curl(*root, f"{base}/services/renewal-info/{known}")).startswith("200")
    assert (await curl(*root, "-I", f"{base}/renewal-info/{known}")).startswith("200")
    assert "renewal_info.unknown" in await curl(*root, f"{base}/renewal-info/AAAA.AIdlQyE")
    for text in ("x", "AAAA", "AAAA.h2VD", known + "=", "%41AAA.AIdlQyE", "." * 100):
        answer = await curl(*root, f"{base}/renewal-info/{text}")
        assert answer.startswith("400"), answer
    for path in (
        "renewal-info",
        "renewal-info/",
        f"renewal-info/{known}/x",
        f"none/{known}",
        f"renewal-info/{'.' * 200}",
    ):
        assert (await curl(*root, f"{base}/{path}")).startswith("404"), path
    assert (await curl(*root, "-X", "POST", f"{base}/renewal-info/{known}")).startswith("405")
    with pytest.raises(ServerRefused) as caught:
        await ESTClient(service.url, trust=stack.layout.root_file, label="nolabel").renewal_info(
            service.certificate
        )
    assert isinstance(caught.value, RenewalInfoUnknown)


async def test_both_front_ends_answer_while_renewal_and_the_signer_are_down(
    stack: Stack, tmp_path: Path
) -> None:
    service = await Service.enroll(stack, tmp_path / "s", "dev-alone")
    wanted = await service.info()
    names = ("renewal", "ca-signer")
    for name in names:
        await stack.suite.stop_service(instance_of(stack, name))
    try:
        for _ in range(8):  # the kernel chooses the front end of each connection
            answer = await service.info()
            assert (answer.start, answer.end) == (wanted.start, wanted.end)
    finally:
        for name in reversed(names):
            await stack.suite.start_service(name, name, wait=True)


def instance_of(stack: Stack, service: str) -> str:
    return next(i for i, r in stack.suite.services.items() if r.service == service)


@pytest.mark.parametrize("folder", ["kept", "empty"])
async def test_a_killed_front_end_answers_again(stack: Stack, tmp_path: Path, folder: str) -> None:
    service = await Service.enroll(stack, tmp_path / "s", f"dev-killed-{folder}")
    wanted = await service.info()
    instances = [i for i, r in stack.suite.services.items() if r.service == "est-frontend"]
    for instance in instances:
        await stack.suite.stop_service(instance, kill=True)
    for instance in instances:
        if folder == "empty":
            shutil.rmtree(stack.layout.folder / "state" / instance)
        await stack.suite.start_service("est-frontend", instance, wait=True)
    assert (await service.info()).start == wanted.start


async def test_a_lost_stream_is_filled_again(stack: Stack, tmp_path: Path) -> None:
    service = await Service.enroll(stack, tmp_path / "s", "dev-stream")
    wanted = await service.info()
    nats = stack.layout.nats
    seed = nats.seed_file("administrator")
    settings = BusSettings(url=nats.url, nkey_seed_file=seed)
    bus = await Bus.connect(
        settings, "administrator", "test", seed=seed.read_text().strip(), signs=False
    )
    jetstream = bus.client.jetstream()
    await jetstream.delete_stream(PKI_RENEWAL_INFO)
    await stack.suite.command(
        "renewal", "migrate", "--config", str(stack.layout.config_file("renewal"))
    )
    async with asyncio.timeout(30):
        while (await jetstream.stream_info(PKI_RENEWAL_INFO)).state.messages < 2:
            await asyncio.sleep(0.1)
    await bus.close()
    for instance in [i for i, r in stack.suite.services.items() if r.service == "est-frontend"]:
        await stack.suite.stop_service(instance)
        shutil.rmtree(stack.layout.folder / "state" / instance)
        await stack.suite.start_service("est-frontend", instance, wait=True)
    assert (await service.info()).start == wanted.start


async def test_polls_of_one_connection_are_answered_one_after_another(
    stack: Stack, tmp_path: Path
) -> None:
    service = await Service.enroll(stack, tmp_path / "s", "dev-polling")
    await service.info()
    url = f"{service.url}/.well-known/est/renewal-info/{cert_id(service.certificate)}"
    connector = aiohttp.TCPConnector(ssl=stack.client_context(), limit=1)
    async with aiohttp.ClientSession(connector=connector) as session:
        for _ in range(50):
            async with session.get(url) as response:
                assert response.status == 200
                assert response.content_type == "application/json"
                assert int(response.headers["Retry-After"]) > 0
                RenewalInfo.decode(await response.read())
