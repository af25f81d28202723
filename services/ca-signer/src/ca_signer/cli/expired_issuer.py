"""``ca-signer replace-expired``: the next generation signs after a CA certificate has expired.

It runs with the signer's settings, its database password and the key of the new CA.
"""

from __future__ import annotations

import click

from ca_signer import main
from ca_signer.operators import expired_issuer
from ca_signer.operators.console import Console
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.recovery.ledger_check import StaleLedgerCheck
from ca_signer.settings import SignerSettings
from ca_signer.signing.hsm.token import opened
from ca_signer.signing.issuers import tokens_of
from estcore.runtime.terminal import write_line


@click.option("--issuer", required=True, help="Issuer that labels name.")
@click.option("--to", "to_issuer", required=True, help="Issuer id of the new generation.")
async def replace_expired(settings: SignerSettings, issuer: str, to_issuer: str) -> None:
    """Let the new generation sign, without an operator: theirs have expired with the CA.

    Raises:
        Conflict: the CA certificate that signs has not expired, or the new one cannot sign.
    """
    decision_context = main.load_signing_context(settings)
    async with (
        opened(tokens_of(decision_context.issuers)),
        main.connected(settings) as (bus, database),
    ):
        await StaleLedgerCheck(bus, database, decision_context.issuers).require()
        changed = await expired_issuer.replace_expired(
            database,
            Console(EventPublisher(bus, main.CLOCK, settings.instance), main.CLOCK),
            decision_context,
            issuer,
            to_issuer,
        )
    done = "signs from now on" if changed else "signs already"
    write_line(f"{to_issuer} {done} for {issuer}; enroll the operators again")
