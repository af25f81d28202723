"""Issuance inside ca-signer: certificates of operators and OCSP responders.

They take the same cycle as every certificate: recorded, audited, linted, published.
"""

from __future__ import annotations

import asyncio

from ca_signer.issuance.decision_context import Candidate
from ca_signer.issuance.idempotency import (
    Answer,
    ExpiredIntent,
    InProgress,
    RequestResolver,
    Resume,
)
from ca_signer.model import EXPIRED, IssuanceIntent
from ca_signer.signing.cycle import IssuanceCycle
from estcore.errors import ConfigurationError, IssuerUnavailable

_ATTEMPTS = 30


async def issue_internally(
    candidate: Candidate, resolver: RequestResolver[IssuanceIntent], cycle: IssuanceCycle
) -> bytes:
    """Take the candidate through the cycle; returns the certificate.

    Raises:
        RequestRejected: the ledger refuses it, for example a key of another owner.
        Unavailable: database, bus, audit or key store is unavailable.
    """
    for _ in range(_ATTEMPTS):
        match await resolver.resolve(candidate):
            case Resume(intent=intent):
                stored = await cycle.sign_and_store([intent])
                if stored:
                    await cycle.publish(stored)
                    await cycle.flush_unpublished()
                    await cycle.flush_published_marks()
                    return stored[0].certificate
            case Answer(issued=issued):
                return issued.certificate
            case ExpiredIntent(intent=intent):
                await cycle.abandon(intent, EXPIRED)
            case InProgress():
                await asyncio.sleep(1)
            case other:
                raise ConfigurationError(f"the ledger answers {type(other).__name__}")
    raise IssuerUnavailable("another process has this enrollment in hand; repeat it later")
