"""Proofs that are good once stay spent, whatever became of the request they came with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from estcore import ids
from estcore.messages.enrollment import Claim
from estcore.pki.profile import Priority
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import SignerStack, signer_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def signer(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SignerStack]:
    async with signer_stack(platform, tmp_path_factory.mktemp("signer")) as stack:
        yield stack


@pytest.mark.parametrize("kind", ["dpop", "digest"])
@pytest.mark.parametrize("refused_by", ["decision", "ledger", "route"])
async def test_a_proof_of_a_refused_request_is_spent(
    signer: SignerStack, kind: str, refused_by: str
) -> None:
    claim = Claim.model_validate({"kind": kind, "id": ids.uuid7()})
    first = signer.message(claims=(claim,), **await changes(signer, refused_by))
    topic = "est.request.default.issuing.normal" if refused_by == "route" else None
    refused = await signer.ask(first, topic=topic)
    assert refused.outcome == "rejected"
    assert refused.code != "auth.replayed"
    replayed = await signer.ask(signer.message(claims=(claim,)))
    assert (replayed.outcome, replayed.code) == ("rejected", "auth.replayed")


async def changes(signer: SignerStack, refused_by: str) -> dict[str, Any]:
    """Return what makes a request refused there."""
    match refused_by:
        case "decision":
            return {"label": "no-such-label"}
        case "route":
            return {"priority": Priority.HIGH}
        case _:
            # The key belongs to another owner: known when the intent is to be recorded.
            csr = make_csr(f"dev-{ids.uuid7()}")[1]
            message = signer.message(csr)
            assert (await signer.ask(message)).outcome == "issued"
            sql = "update key_binding set tenant = 'another' where true"
            await signer.value(sql)
            await signer.age_certificate(message)
            return {"csr": csr}


@pytest.mark.parametrize("kind", ["dpop", "digest"])
async def test_a_proof_is_good_for_one_request_however_often_it_is_delivered(
    signer: SignerStack, kind: str
) -> None:
    claim = Claim.model_validate({"kind": kind, "id": ids.uuid7()})
    message = signer.message(claims=(claim,))
    assert (await signer.ask(message)).outcome == "issued"
    await signer.send(message, fresh_id=True)
    replayed = await signer.ask(signer.message(claims=(claim,)))
    assert (replayed.outcome, replayed.code) == ("rejected", "auth.replayed")
    assert [a.outcome for a in signer.seen if a.request_id == message.id][-1] == "issued"


async def test_a_refusal_leaves_a_one_time_secret_good(signer: SignerStack) -> None:
    claim = Claim(kind="secret", id=ids.uuid7())
    refused = await signer.ask(signer.message(claims=(claim,), label="no-such-label"))
    assert refused.outcome == "rejected"
    assert await signer.value("select count(*) from claim where id = $1", claim.id) == 0
