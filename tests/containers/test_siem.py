"""``deploy/compose/siem.yml``: rsyslog writes what happens in the suite."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from estsuite_testing.compose import Compose, cloned, enrolled

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    with cloned(tmp_path_factory.mktemp("clone"), "siem") as compose:
        compose.up()
        yield compose


def records(compose: Compose) -> list[dict[str, Any]]:
    """What rsyslog has written so far."""
    printed = compose("exec", "-T", "rsyslog", "cat", "/var/log/estsuite/audit.jsonl", check=False)
    entries = [json.loads(line) for line in printed.stdout.splitlines()]
    return [entry["record"] for entry in entries if "record" in entry]


def test_rsyslog_writes_the_records_of_an_enrollment(compose: Compose) -> None:
    assert enrolled(compose.client(compose.make_secret())) == 200

    def written() -> set[tuple[str, str, str]]:
        return {
            (record["producer"]["service"], record["action"], record["phase"])
            for record in records(compose)
            if record.get("target", {}).get("service") == "web"
        }

    wanted = {
        ("ca-signer", "certificate.issue", "intent"),
        ("ca-signer", "certificate.issue", "outcome"),
        ("renewal", "renewal.scheduled", "outcome"),
    }
    compose.until(lambda: wanted <= written(), seconds=60)
    everything = compose(
        *("exec", "-T", "audit", "est-audit", "export", "--sealed"),
        *("--config", "/etc/estsuite/audit.yaml", "--out", "-"),
    ).stdout
    for record in records(compose):
        assert record["record_id"] in everything
    assert "unparsed.log" not in compose("exec", "-T", "rsyslog", "ls", "/var/log/estsuite").stdout


def test_records_of_an_outage_of_rsyslog_arrive_after_it(compose: Compose) -> None:
    compose("stop", "--timeout", "20", "rsyslog")
    refused = "refused.clinic.example"
    assert enrolled(compose.client(compose.secret), refused) == 403
    compose("start", "rsyslog")
    compose.until(lambda: refused in json.dumps(records(compose)), seconds=90)


def test_rsyslog_refuses_who_has_no_certificate(compose: Compose) -> None:
    program = (
        "import socket, ssl\n"
        "context = ssl.create_default_context(cafile='/run/secrets/servers-ca.pem')\n"
        "plain = socket.create_connection(('rsyslog', 6514), 5)\n"
        "context.wrap_socket(plain, server_hostname='rsyslog').recv(1)\n"
    )
    done = compose("exec", "-T", "audit", "python", "-c", program, check=False)
    assert "CERTIFICATE_REQUIRED" in done.stderr, done.stdout
