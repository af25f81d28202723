"""What a restore takes of an export: the part under a checkpoint, and nothing unsealed of the ledger."""

from __future__ import annotations

import datetime as dt

import pytest

from ca_signer.recovery.audit_log import read_export
from estcore.errors import ConfigurationError
from estcore.pki.profile import ProfileSet
from estsuite_testing.memory_log import START, MemoryLog, record

NO_PROFILES = ProfileSet.model_construct(profiles={}, version="none")
NOW = START + dt.timedelta(minutes=1)
HARMLESS = ("auth.denied", "est.simpleenroll", "audit.export", "ledger.reconcile_refused")
OF_THE_LEDGER = ("certificate.issue", "certificate.superseded", "operator.certificate-revoke")


def log_with(*actions: str) -> MemoryLog:
    """Six sealed records, then these."""
    log = MemoryLog()
    for number in range(6):
        log.add(record(number))
    log.seal()
    for number, action in enumerate(actions, 6):
        ours = action.startswith(("certificate.", "operator.", "ledger."))
        producer = {"service": "ca-signer", "instance": "s-0", "boot_id": "b"}
        changed = {"producer": producer, "producer_seq": number} if ours else {}
        log.add(record(number, action=action, **changed))
    return log


def read(log: MemoryLog) -> None:
    read_export(log.export(), log.vkey, NO_PROFILES, NOW)


@pytest.mark.parametrize("action", HARMLESS)
def test_an_unsealed_record_of_a_client_or_reader_is_no_hindrance(action: str) -> None:
    read(log_with(action, *HARMLESS))


@pytest.mark.parametrize("action", OF_THE_LEDGER)
def test_an_unsealed_record_of_the_ledger_refuses_the_export(action: str) -> None:
    log = log_with("auth.denied", action, "auth.denied", action)
    with pytest.raises(ConfigurationError, match=r"2 records .* export with --sealed") as refused:
        read(log)
    assert refused.value.code == "reconcile.unsealed"


def test_a_part_of_the_log_is_refused() -> None:
    log = log_with()
    with pytest.raises(ConfigurationError, match="export the whole log"):
        read_export(log.part("call-1"), log.vkey, NO_PROFILES, NOW)
