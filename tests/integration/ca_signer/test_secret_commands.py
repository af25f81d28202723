"""Enrollment secrets by signed commands: sealed for who asked, on record, never readable."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from estcore.messages.commands import CommandAnswered
from estcore.pki.sealed_text import RecipientKey
from estsuite_testing.operators import TestOperator, operator, policy_with_operators
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import SignerStack, signer_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def signer(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SignerStack]:
    folder: Path = tmp_path_factory.mktemp("signer")
    async with signer_stack(platform, folder, policy_file=policy_with_operators(folder)) as stack:
        yield stack


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def boss(signer: SignerStack) -> TestOperator:
    return await operator(signer, "CN=boss")


async def create(
    signer: SignerStack, boss: TestOperator, secret_id: str, **more: Any
) -> tuple[CommandAnswered, RecipientKey]:
    key = RecipientKey()
    arguments = {"id": secret_id, "recipient": key.public, **more}
    return await boss.give(signer, "secret-create", arguments), key


async def listed(signer: SignerStack, boss: TestOperator, secret_id: str) -> dict[str, Any]:
    answer = await boss.give(signer, "secret-list", {"limit": 500})
    assert answer.result is not None
    rows: Any = answer.result["secrets"]
    (row,) = [row for row in rows if row["id"] == secret_id]
    return dict(row)


async def test_a_secret_reaches_its_operator_and_no_other_place(
    signer: SignerStack, boss: TestOperator
) -> None:
    answer, key = await create(signer, boss, "new-1", lifetime_s=3600, one_time=True)
    assert answer.outcome == "done", answer
    assert answer.result is not None
    secret = key.open(str(answer.result["sealed"]))
    assert len(secret) == 32
    stored = await signer.value("select sha256 from secret where secret_id = 'new-1'")
    assert stored == sha256(secret.encode()).digest()

    everything = await signer.rows("select * from command")
    assert not any(secret in str(dict(row)) for row in everything)
    record = next(r for r in everything if str(r["command_id"]) == answer.command_id)
    assert "operator.secret-create" in record["announcement"]
    row = await listed(signer, boss, "new-1")
    assert (row["state"], row["one_time"]) == ("live", True)
    left = dt.datetime.fromisoformat(row["not_after"]) - dt.datetime.fromisoformat(
        row["created_at"]
    )
    assert left == dt.timedelta(hours=1)


async def test_front_ends_get_the_verifier_from_the_outbox(
    signer: SignerStack, boss: TestOperator
) -> None:
    await create(signer, boss, "new-2")
    await signer.operations.outbox.flush()
    unannounced = "select count(*) from secret where announced_at is null"
    assert await signer.value(unannounced) == 0
    announced = "select max(announced_at) from secret"
    created = await signer.value(announced)
    assert (await boss.give(signer, "secret-revoke", {"id": "new-2"})).outcome == "done"
    await signer.operations.outbox.flush()
    assert await signer.value(unannounced) == 0
    assert await signer.value(announced) > created
    assert (await listed(signer, boss, "new-2"))["state"] == "revoked"


async def test_ids_in_use_unknown_ids_and_other_ids_are_refused(
    signer: SignerStack, boss: TestOperator
) -> None:
    await create(signer, boss, "new-3")
    answer, _ = await create(signer, boss, "new-3")
    assert answer.code == "secret.exists"
    assert (await boss.give(signer, "secret-revoke", {"id": "none"})).code == "secret.unknown"
    for wrong in ("", "a:b", "-a", "é", "a b", "x" * 129, "a\nb", "a\n"):
        answer, _ = await create(signer, boss, wrong)
        assert answer.code == "command.arguments", wrong


async def test_a_secret_is_made_for_a_key_only(signer: SignerStack, boss: TestOperator) -> None:
    for recipient in ("", "{}", "x" * 301, RecipientKey().public[:-1]):
        arguments = {"id": "new-4", "recipient": recipient}
        answer = await boss.give(signer, "secret-create", arguments)
        assert answer.code in {"sealed.recipient", "command.arguments"}
    assert await signer.value("select count(*) from secret where secret_id = 'new-4'") == 0


async def test_the_role_is_asked(signer: SignerStack) -> None:
    auditor = await operator(signer, "CN=auditor")
    answer, _ = await create(signer, auditor, "new-5")
    assert answer.code == "command.role"
    assert (await auditor.give(signer, "secret-revoke", {"id": "load"})).code == "command.role"
    assert (await auditor.give(signer, "secret-list")).outcome == "done"
    revoker = await operator(signer, "CN=revoker")
    assert (await revoker.give(signer, "secret-list")).code == "command.role"
