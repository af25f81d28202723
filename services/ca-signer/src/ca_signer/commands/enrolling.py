"""``ca-signer operator enroll``: certificates of operators, issued beside the ledger.

Whoever may run this has the signer's settings, its database password and its CA key, so nothing
is gained by it; and no front end, whatever its group, has to be trusted with profile
``operator``. The policy must name the subject as an operator first. It goes through the same
cycle as every certificate: recorded, audited, linted, announced.
"""

from __future__ import annotations

import asyncio
import getpass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca_signer.authority import Authority, Candidate
from ca_signer.building import candidate
from ca_signer.cycle import Cycle
from ca_signer.repeats import Answer, Leased, Repeats, Resume, Stale
from estcore import ids
from estcore.errors import ConfigurationError, IssuerUnavailable, NotAuthorized
from estcore.messages.enrollment import EnrollmentRequested, Principal
from estcore.pki.csr import parse_csr
from estcore.pki.profile import Priority
from estcore.policy.decide import check_profile
from estcore.policy.document import Names, Owner, PrincipalMatch, Rule
from estcore.policy.operators import OPERATOR_PROFILE

TENANT = "operators"
_LABEL = "operator"
_ATTEMPTS = 30


def read_request(path: Path) -> bytes:
    """Return the DER of a PKCS#10 request in PEM or DER.

    Raises:
        ConfigurationError: unreadable, or not one.
    """
    try:
        octets = path.read_bytes()
        if octets.lstrip().startswith(b"-----BEGIN"):
            return x509.load_pem_x509_csr(octets).public_bytes(Encoding.DER)
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"cannot read a request from {path}") from exc
    return octets


def decide_operator(csr: bytes, issuer_id: str, authority: Authority) -> Candidate:
    """Return the candidate for an operator's certificate.

    Raises:
        RequestRejected: the request is not good, or its subject is no operator of the policy.
        IssuerUnavailable: the issuer is not here or has expired.
    """
    request = parse_csr(csr)
    issuer = authority.signing(issuer_id)
    operator = authority.policy.operator(issuer_id, request.subject_canonical)
    if operator is None:
        raise NotAuthorized(
            f"the policy has no operator {request.subject_text} of issuer {issuer_id}",
            code="command.operator",
        )
    profile = authority.profiles.get(OPERATOR_PROFILE)
    check_profile(request, profile)
    # Not a rule of the policy: nobody enrolls or renews by it.
    rule = Rule(
        name=operator.name,
        principal=PrincipalMatch(
            certificate_issuer=issuer_id, certificate_subject=operator.certificate_subject
        ),
        owner=Owner(tenant=TENANT, service=operator.name),
        labels=(_LABEL,),
        profiles=(OPERATOR_PROFILE,),
        names=Names(),
    )
    name = f"{getpass.getuser()}@{issuer_id}"
    message = EnrollmentRequested(
        id=ids.uuid7(),
        source="ca-signer/operator",
        time=authority.clock.now(),
        correlation_id=ids.uuid7(),
        operation="simpleenroll",
        label=_LABEL,
        group="none",
        instance="none",
        issuer=issuer_id,
        priority=Priority.NORMAL,
        principal=Principal(method="password", name=name),
        csr=csr,
    )
    owner = (rule.owner.tenant, rule.owner.service)
    found = candidate(message, request, authority, issuer, profile, rule, owner, None, None)
    found.intent.context = found.intent.context.model_copy(
        update={"principal": f"console:{name}", "auth_method": "console", "mode": "poll"}
    )
    return found


async def enroll(found: Candidate, repeats: Repeats, cycle: Cycle) -> bytes:
    """Take the candidate through the cycle; returns the certificate.

    Raises:
        RequestRejected: the ledger refuses it, for example a key of another owner.
        Unavailable: database, bus, audit or key store is away.
    """
    for _ in range(_ATTEMPTS):
        match await repeats.settle(found):
            case Resume(intent=intent):
                stored = await cycle.finish([intent])
                if stored:
                    await cycle.announce(stored)
                    await cycle.mark()
                    return stored[0].certificate
            case Answer(issued=issued):
                return issued.certificate
            case Stale(intent=intent):
                await cycle.abandon(intent, NotAuthorized("given up", code="intent.stale"))
            case Leased():
                await asyncio.sleep(1)
            case other:
                raise ConfigurationError(f"the ledger answers {type(other).__name__}")
    raise IssuerUnavailable("another process has this enrollment in hand; repeat it later")
