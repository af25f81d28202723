"""``ca-signer operator enroll``: issue the certificate of an operator, beside the ledger.

It runs with the signer's settings, its database password and its CA key.
"""

from __future__ import annotations

from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca_signer import main
from ca_signer.issuance.idempotency import IntendedIssuances, RequestResolver
from ca_signer.issuers.generations import read_generations
from ca_signer.ledger.issuances import IssuanceStore
from ca_signer.operators.enrollment import decide_operator
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.recovery.ledger_check import StaleLedgerCheck
from ca_signer.settings import SignerSettings
from ca_signer.signing.cycle import IssuanceCycle
from ca_signer.signing.hsm.token import opened
from ca_signer.signing.internal_issuance import issue_internally
from ca_signer.signing.issuers import tokens_of
from estcore.errors import ConfigurationError
from estcore.runtime.command_line import PATH
from estcore.runtime.terminal import write_line


@click.option("--csr", "csr_file", type=PATH, required=True, help="PKCS#10, PEM or DER.")
@click.option("--out", type=PATH, required=True, help="File to write the certificate to, PEM.")
@click.option("--issuer", help="Issuer id; default: the first one of the settings.")
async def enroll(settings: SignerSettings, csr_file: Path, out: Path, issuer: str | None) -> None:
    """Issue the certificate of an operator.

    Raises:
        ConfigurationError: the request cannot be read.
        RequestRejected: policy or profile do not allow it.
    """
    decision_context = main.load_signing_context(settings)
    csr = read_request(csr_file)
    async with (
        opened(tokens_of(decision_context.issuers)),
        main.connected(settings) as (bus, database),
    ):
        await StaleLedgerCheck(bus, database, decision_context.issuers).require()
        decision_context.generations = await read_generations(database)
        candidate = decide_operator(csr, issuer or decision_context.families[0], decision_context)
        ledger = IssuanceStore(database, lease_s=settings.lease_s)
        cycle = IssuanceCycle(
            ledger, EventPublisher(bus, main.CLOCK, settings.instance), decision_context.issuers
        )
        certificate = await issue_internally(
            candidate, RequestResolver(ledger, IntendedIssuances(ledger)), cycle
        )
    pem = x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM)
    out.write_bytes(pem)
    write_line(f"{out}: certificate of operator {candidate.intent.service}")


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
