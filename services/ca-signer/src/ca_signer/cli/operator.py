"""``ca-signer operator enroll``: issue the certificate of an operator, beside the ledger.

It runs with the signer's settings, its database password and its CA key.
"""

from __future__ import annotations

import sys
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
from estcore.runtime.terminal import STANDARD_OUTPUT, write_document, write_line

STANDARD_INPUT = STANDARD_OUTPUT

_DUE = 2 / 3
"""Part of a lifetime after which a certificate is renewed."""


@click.option(
    "--csr", "csr_file", type=PATH, required=True, help="PKCS#10, PEM or DER; - reads it."
)
@click.option("--out", type=PATH, required=True, help="File for the certificate, PEM; - prints it.")
@click.option("--issuer", help="Issuer id; default: the first one of the settings.")
@click.option(
    "--if-due",
    is_flag=True,
    help="Keep the certificate in --out while it is of this key and by no more than 2/3 over.",
)
async def enroll(
    settings: SignerSettings, csr_file: Path, out: Path, issuer: str | None, if_due: bool
) -> None:
    """Issue the certificate of an operator.

    Raises:
        ConfigurationError: the request cannot be read, the certificate cannot be written.
        RequestRejected: policy or profile do not allow it.
    """
    csr = read_request(csr_file)
    if if_due and _good(out, csr):
        write_line(f"{out}: kept")
        return
    decision_context = main.load_signing_context(settings)
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
    if out == STANDARD_OUTPUT:
        write_document(pem.decode())
        return
    try:
        out.write_bytes(pem)
    except OSError as exc:
        raise ConfigurationError(f"cannot write {out}: {exc.strerror}") from exc
    write_line(f"{out}: certificate of operator {candidate.intent.service}")


def _good(path: Path, csr: bytes) -> bool:
    """Whether a file has a certificate for the key of a request, and it is not due."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        wanted = x509.load_der_x509_csr(csr).public_key()
    except (OSError, ValueError):
        return False
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return certificate.public_key() == wanted and main.CLOCK.now() < begin + (end - begin) * _DUE


def read_request(path: Path) -> bytes:
    """Return the DER of a PKCS#10 request in PEM or DER; ``-`` is standard input.

    Raises:
        ConfigurationError: unreadable, or not one.
    """
    try:
        octets = sys.stdin.buffer.read() if path == STANDARD_INPUT else path.read_bytes()
        if octets.lstrip().startswith(b"-----BEGIN"):
            return x509.load_pem_x509_csr(octets).public_bytes(Encoding.DER)
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"cannot read a request from {path}") from exc
    return octets
