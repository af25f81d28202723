"""A rotation is over: the replaced certificate is revoked where its profile says so, never else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from ca_signer.revocation.after_rotation import RevokeAfterRotation
from estcore import ids
from estcore.messages.enrollment import Principal
from estcore.runtime.bus import Bus
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.operators import operator, policy_with_operators
from estsuite_testing.platform import Platform
from estsuite_testing.rotation_events import publish_rotation
from estsuite_testing.signer_stack import PROFILES, SignerStack, signer_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def signer(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SignerStack]:
    folder: Path = tmp_path_factory.mktemp("signer")
    raw = yaml.safe_load(PROFILES.read_text())
    for profile in raw["profiles"]:
        if profile["name"] == "service-mtls":
            profile["renewal"]["revoke_replaced"] = True
    path = folder / "profiles.yaml"
    path.write_text(yaml.safe_dump(raw))
    policy = policy_with_operators(folder)
    async with signer_stack(platform, folder, policy_file=policy, profiles_file=path) as stack:
        stop = asyncio.Event()
        job = RevokeAfterRotation(
            stack.bus, stack.database, stack.publisher, stack.decision_context
        )
        running = asyncio.ensure_future(job.run(stop))
        try:
            yield stack
        finally:
            stop.set()
            await running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def renewal(platform: Platform) -> AsyncIterator[Bus]:
    bus = await Bus.connect(platform.bus("renewal"), "renewal", "test")
    yield bus
    await bus.close()


async def rotated(signer: SignerStack) -> tuple[bytes, bytes]:
    """A certificate and the one that renewed it."""
    name = f"dev-{ids.uuid7()}"
    first = (await signer.ask(signer.message(make_csr(name)[1]))).certificate
    assert first is not None
    principal = Principal(
        method="certificate",
        name=f"issuing/CN={name}",
        certificate=first,
        certificate_issuer="issuing",
    )
    message = signer.message(make_csr(name)[1], operation="simplereenroll", principal=principal)
    second = (await signer.ask(message)).certificate
    assert second is not None
    return first, second


async def standing(signer: SignerStack, der: bytes) -> tuple[str | None, str | None, int]:
    sql = (
        "select revocation_reason, revoked_by, revocation_seq from issuance "
        "where certificate_sha256 = $1"
    )
    (row,) = await signer.rows(sql, sha256(der).digest())
    return tuple(row)


async def test_F10_a_replaced_certificate_is_revoked_once_and_on_record(
    signer: SignerStack, renewal: Bus
) -> None:
    old, new = await rotated(signer)
    rotation = await publish_rotation(renewal, old, new)
    expected = ("superseded", f"rotation:{rotation}", 1)
    async with asyncio.timeout(10):
        while await standing(signer, old) != expected:
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    assert await standing(signer, old) == expected
    assert await standing(signer, new) == (None, None, 0)
    found = [
        r for r in await signer.audited("certificate.revoked")
        if r.actor.subject == f"rotation:{rotation}"
    ]  # fmt: skip
    assert len({r.record_id for r in found}) == 1
    assert (found[0].details or {})["reason"] == "superseded"


@pytest.mark.parametrize("why", ["new is revoked", "another slot", "the wrong way round", "step"])
async def test_nothing_is_revoked_without_a_good_successor(
    signer: SignerStack, renewal: Bus, why: str
) -> None:
    old, new = await rotated(signer)
    step = "deprecated"
    if why == "new is revoked":
        boss = await operator(signer, "CN=boss")
        which = {"fingerprint": sha256(new).hexdigest(), "reason": "superseded"}
        await boss.give(signer, "certificate-revoke", which)
    elif why == "another slot":
        _, new = await rotated(signer)
    elif why == "the wrong way round":
        old, new = new, old
    else:
        step = "activated"
    await publish_rotation(renewal, old, new, step)
    control = await rotated(signer)
    await publish_rotation(renewal, *control)
    async with asyncio.timeout(10):
        while (await standing(signer, control[0]))[0] is None:
            await asyncio.sleep(0.05)
    assert await standing(signer, old) == (None, None, 0)


async def test_without_the_profiles_word_old_ones_run_to_their_end(
    signer: SignerStack, renewal: Bus
) -> None:
    old, new = await rotated(signer)
    decision_context = signer.decision_context
    before = decision_context.profiles
    plain = before.profiles["service-mtls"]
    rules = plain.renewal.model_copy(update={"revoke_replaced": False})
    changed = {**before.profiles, "service-mtls": plain.model_copy(update={"renewal": rules})}
    decision_context.profiles = before.model_copy(update={"profiles": changed})
    try:
        await publish_rotation(renewal, old, new)
        await asyncio.sleep(1)
        assert await standing(signer, old) == (None, None, 0)
    finally:
        decision_context.profiles = before
