"""What ``estctl`` shows operators, and where it takes their settings from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from estclient.cli import estctl, main
from estclient.operators.orders import Order, operator_settings
from estclient.operators.output import render
from estcore.clock import SystemClock
from estcore.errors import ConfigurationError
from estcore.runtime import command_line


def ordered(*arguments: str) -> Order:
    """Return what ``estctl`` would send."""
    orders: list[Order] = []
    assert command_line.run(estctl, "estctl", arguments, obj=orders.append) == 0
    return orders[0]


def settings_file(path: Path, **changes: Any) -> Path:
    raw = {
        "bus": {"url": "tls://from-file:4222", "nkey_seed_file": "seed"},
        "certificate_file": "me.pem",
        "key_file": "me.key",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(raw | changes))
    return path


def test_a_certificate_is_shown_with_its_pem() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "web")])
    now = SystemClock().now()
    made = x509.CertificateBuilder(name, name, key.public_key(), 7, now, now).sign(key, SHA256())
    der = made.public_bytes(Encoding.DER)
    text = render({"subject": "CN=web", "san": [], "certificate": der.hex()})
    assert "subject      CN=web\n" in text
    assert x509.load_pem_x509_certificate(text.encode()) == made


def test_lists_are_one_line_each_and_say_none() -> None:
    rows = [{"id": "1", "san": ["dns:a", "dns:b"], "reason": None}, {"id": "2", "san": []}]
    assert render({"requests": rows}) == "id=1  san=dns:a,dns:b\nid=2\n"
    assert render({"certificates": []}) == "none\n"
    assert render({"id": "1", "reason": None, "san": []}) == (
        "id           1\nreason       -\nsan          -\n"
    )


def test_a_rollover_is_shown_with_its_generations_and_who_lacks_the_trust() -> None:
    rows = [{"issuer": "issuing", "state": "accepted"}, {"issuer": "issuing-2", "state": "signing"}]
    text = render({"issuer": "issuing", "fetched": 3, "generations": rows})
    assert text.splitlines() == [
        "issuer       issuing",
        "fetched      3",
        "generations:",
        "  issuer=issuing  state=accepted",
        "  issuer=issuing-2  state=signing",
    ]
    assert render({"lacking": []}) == "lacking:\n"


def test_a_rollover_command_says_what_is_not_the_default() -> None:
    order = ordered("ca", "rollover", "sign", "--issuer", "issuing", "--min-fetched", "95")
    assert order.verb == "rollover-sign"
    assert order.arguments == {"issuer": "issuing", "min_fetched": 95}
    assert ordered("ca", "rollover", "sign", "--issuer", "x").arguments == {"issuer": "x"}


def test_a_rollover_may_start_a_campaign_with_a_pace_and_a_window() -> None:
    arguments = ("--renew-per-minute", "300", "--renew-by", "2026-12-01T06:00")
    order = ordered("ca", "rollover", "sign", "--issuer", "issuing", *arguments)
    assert order.arguments == {
        "issuer": "issuing",
        "renew_per_minute": 300,
        "renew_by": "2026-12-01T06:00:00+00:00",
    }


def test_a_campaign_is_proposed_with_selector_pace_window_and_revocation() -> None:
    order = ordered(
        *("campaign", "propose", "--profile", "device", "--reason", "incident"),
        *("--explanation-url", "https://ca.test/17", "--per-minute", "60"),
        *("--renew-by", "2026-12-01T06:00Z", "--revoke", "keyCompromise"),
    )
    assert (order.verb, order.arguments) == (
        "campaign-propose",
        {
            "profile": "device",
            "reason": "incident",
            "explanation_url": "https://ca.test/17",
            "per_minute": 60,
            "renew_by": "2026-12-01T06:00:00+00:00",
            "revoke": "keyCompromise",
        },
    )
    assert ordered("campaign", "show", "--id", "1", "--watch").arguments == {
        "id": "1",
        "watch": True,
    }


def test_the_progress_of_a_campaign_is_a_table_of_less_than_100_columns() -> None:
    counts = {
        "members": 1_000_000, "requested": 812_000, "skipped": 3, "renewed": 800_000,
        "proven": 790_000, "revoked": 0, "late": 12_000,
    }  # fmt: skip
    text = render({"id": "1", "state": "running", "progress": counts})
    title, header, row = text.splitlines()[-3:]
    assert title == "progress:"
    assert header.split() == ["state", *counts]
    assert row.split() == ["running", *map(str, counts.values())]
    assert len(header) == len(row) < 100


def test_a_serial_number_may_be_written_as_openssl_does() -> None:
    assert ordered("cert", "show", "--serial", "01:AB:0F").arguments == {"serial": "01ab0f"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("cert", "revoke", "--serial", "01"),
        ("cert", "revoke", "--serial", "01", "--reason", "certificateHold"),
        ("cert", "hold"),
        ("cert", "show", "--serial", "01", "--fingerprint", "02"),
        ("cert", "show", "--serial", "xyz"),
        ("requests", "approve"),
        ("ca", "rollover", "sign"),
        ("campaign", "propose", "--profile", "device"),
        ("campaign", "propose", "--profile", "device", "--reason", "lifetime"),
        ("campaign", "confirm", "--id", "1"),
        ("ca", "rollover", "plan", "--issuer", "issuing"),
    ],
)
def test_incomplete_commands_are_not_sent(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    orders: list[Order] = []
    assert command_line.run(estctl, "estctl", arguments, obj=orders.append) == 2
    assert orders == []
    errors = capsys.readouterr().err
    assert errors.startswith("estctl: ")
    assert errors.count("\n") == 1


def test_flags_and_defaults_of_a_list_are_sent() -> None:
    assert ordered("requests", "list").arguments == {"limit": 50}
    assert ordered("requests", "list", "--all").arguments == {"limit": 50, "all": True}
    assert ordered("bulk-revocation", "list", "--json").as_json


def test_an_unknown_verb_is_one_line_that_names_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["cert", "revoek"]) == 2
    expected = "estctl: no command revoek, did you mean revoke? (see estctl cert --help)\n"
    assert capsys.readouterr().err == expected


def test_settings_come_from_file_variable_and_option_the_last_counts(tmp_path: Path) -> None:
    home = tmp_path / "home"
    settings_file(home / "config" / "operator.yaml")
    order = ordered("cert", "list", "--nats-url", "tls://option:1")
    found = operator_settings(order.connection, home, {"ESTCTL__KEY_FILE": "variable.key"})
    assert found.bus.url == "tls://option:1"
    assert (str(found.key_file), str(found.certificate_file)) == ("variable.key", "me.pem")
    other = settings_file(tmp_path / "other.yaml", certificate_file="other.pem")
    connection = ordered("cert", "list").connection
    found = operator_settings(connection, home, {"ESTCTL_CONFIG": str(other)})
    assert str(found.certificate_file) == "other.pem"


def test_without_settings_one_line_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="bus"):
        operator_settings(ordered("requests", "list").connection, tmp_path, {})


def test_a_certificate_to_adopt_may_be_pem_or_der(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "web")])
    now = SystemClock().now()
    made = x509.CertificateBuilder(name, name, key.public_key(), 7, now, now).sign(key, SHA256())
    der = made.public_bytes(Encoding.DER)
    for encoding in (Encoding.PEM, Encoding.DER):
        file = tmp_path / "found"
        file.write_bytes(made.public_bytes(encoding))
        order = ordered("submissions", "adopt", "--id", "1", "--certificate", str(file))
        assert order.verb == "submission-adopt"
        assert order.arguments == {"id": "1", "certificate": der.hex()}
