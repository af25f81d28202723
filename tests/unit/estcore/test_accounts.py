"""Imports and exports of the NATS accounts follow from the table of permissions."""

from __future__ import annotations

import pytest

from estcore.messages import permissions
from estcore.messages.accounts import intersection, server_accounts
from estcore.messages.permissions import STREAMS_ACCOUNT
from estcore.messages.topics import RENEWAL_REQUESTED_TOPIC

USERS = {
    "migrate": permissions.provisioner(),
    "est-frontend": permissions.frontend("default"),
    "est-frontend-b": permissions.frontend("b", ("issuing", "corporate")),
    "ca-signer": permissions.signer(),
    "ca-signer-upstream": permissions.upstream(["corporate"]),
    "check-store": permissions.check_store(),
    "renewal": permissions.renewal(),
    "audit": permissions.audit(),
    "operator": permissions.operator(),
    "agent-demo-web": permissions.agent("demo", "web"),
    "agent-demo-db": permissions.agent("demo", "db"),
}
ACCOUNTS = server_accounts(USERS, {name: f"U{name}" for name in USERS})


def test_only_ca_signer_requests_renewals() -> None:
    publishers = {
        name
        for name, rights in USERS.items()
        if any(intersection(topic, RENEWAL_REQUESTED_TOPIC) for topic in rights.publish)
    }
    assert publishers == {"ca-signer"}


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ("a.b", "a.b", "a.b"),
        ("a.b", "a.c", None),
        ("a.*", "*.b", "a.b"),
        ("a.>", "a.*.c", "a.*.c"),
        ("a.>", "*.b", "a.b"),
        ("a.>", "a", None),
        ("a.b", "a.b.c", None),
        (">", "a.*", "a.*"),
        ("*.b.>", "a.>", "a.b.>"),
    ],
)
def test_the_intersection_of_two_patterns(one: str, other: str, both: str | None) -> None:
    assert intersection(one, other) == both
    assert intersection(other, one) == both


def imports(account: str, kind: str) -> set[tuple[str, str]]:
    found = [i[kind] for i in ACCOUNTS[account]["imports"] if kind in i]
    return {(i["account"], i["subject"]) for i in found}


def test_an_account_imports_the_services_that_its_users_may_publish_to() -> None:
    for rights in USERS.values():
        published = {
            topic
            for user in USERS.values()
            if user.account == rights.account
            for topic in user.publish
            if not topic.startswith("est.reply.")  # a stream that front ends import
        }
        services = {subject for _, subject in imports(rights.account, "service")}
        if rights.account != STREAMS_ACCOUNT:
            assert services == published


def test_an_account_imports_the_streams_that_its_users_may_subscribe_to() -> None:
    assert imports("est-frontend-b", "stream") == {
        *((signer, "est.reply.b.>") for signer in ("ca-signer", "ca-signer-upstream")),
        *((signer, "pki.certificate.pending.>") for signer in ("ca-signer", "ca-signer-upstream")),
        ("ca-signer", "pki.state.>"),
        ("ca-signer-upstream", "pki.state.cacerts.corporate"),
        ("ca-signer-upstream", "pki.state.revoked.corporate.*"),
    }
    assert imports("agents", "stream") == {
        ("renewal", f"pki.rotation.*.demo.{service}") for service in ("web", "db")
    }
    for account in ("renewal", "audit", "operator", "ca-signer", STREAMS_ACCOUNT):
        assert imports(account, "stream") == set()


def test_every_export_names_the_accounts_that_import_it_and_streams_only_has_jetstream() -> None:
    for name, account in ACCOUNTS.items():
        assert ("jetstream" in account) == (name == STREAMS_ACCOUNT)
        for export in account["exports"]:
            (kind,) = export.keys() & {"service", "stream"}
            subject = export[kind]
            importers = {a for a in ACCOUNTS if (name, subject) in imports(a, kind)}
            assert set(export["accounts"]) == importers
            assert importers


def test_only_migrate_is_in_the_account_of_the_streams() -> None:
    assert [u["nkey"] for u in ACCOUNTS[STREAMS_ACCOUNT]["users"]] == ["Umigrate"]
    accounts = [rights.account for name, rights in USERS.items() if "agent" not in name]
    assert len(set(accounts)) == len(accounts)
