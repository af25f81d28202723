"""What operators decide by: a stranger's text hides no line, column or fingerprint of theirs."""

from __future__ import annotations

import datetime as dt
import unicodedata
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from estclient.cli import main
from estclient.cli_trust import _show
from estclient.errors import AnswerInvalid
from estclient.est.bootstrap import Found
from estclient.operators.output import render
from estcore.tlog import export
from estsuite_testing.memory_log import make_log

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
CONCEAL = "\x1b[8m\x9b2J\r\u202egnp\u2028\u200b\n\tapproved"
LISTS = ("requests", "certificates", "bulk_revocations", "campaigns", "submissions")
hostile = st.text(
    st.one_of(st.characters(), st.sampled_from("\x1b\x9b\x7f\r\n\t \u202e\u200b\u2028\ufeff\ud800"))
)
values = st.one_of(
    hostile, st.none(), st.integers(), st.lists(hostile), st.dictionaries(hostile, hostile)
)
rows = st.dictionaries(st.one_of(hostile, st.sampled_from(["subject", "san"])), values)


def assert_visible(text: str) -> None:
    assert [c for c in text if c not in "\n\t" and unicodedata.category(c) in HIDDEN] == []


@pytest.mark.parametrize("name", LISTS)
@given(st.lists(rows), hostile)
def test_a_list_has_one_visible_line_for_each_row(
    name: str, content: list[dict[str, object]], after: str
) -> None:
    text = render({name: content, "next": after})
    assert_visible(text)
    assert text.count("\n") == (len(content) or 1) + bool(after)


@given(rows, st.lists(rows))
def test_one_row_and_the_lists_in_it_are_visible(
    row: dict[str, object], inner: list[dict[str, object]]
) -> None:
    row = {k: v for k, v in row.items() if k not in {*LISTS, "certificate"}}
    lists = dict.fromkeys(("rollovers", "generations", "lacking", "owners", "some"), inner)
    text = render({**row, **lists})
    assert_visible(text)
    assert text.count("\n") == len({*row} - {*lists}) + len(lists) * (1 + len(inner))


def test_a_value_cannot_look_like_another_column() -> None:
    text = render({"requests": [{"subject": "CN=dev  state=approved", "state": "waiting"}]})
    assert text.split("  ") == [r"subject=CN=dev \u0020state=approved", "state=waiting\n"]


def test_something_else_than_a_certificate_is_an_error_of_one_line() -> None:
    for wrong in ("", "zz", "3000", None):
        with pytest.raises(AnswerInvalid):
            render({"certificate": wrong})


def certificate(subject: str) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, subject, _validate=False)])
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    return x509.CertificateBuilder(name, name, key.public_key(), 7, now, now).sign(key, SHA256())


@pytest.mark.parametrize("subject", [CONCEAL, "\n" * 500, "a " * 5000, "\x1b[1;1H" * 300])
def test_the_fingerprint_comes_first_and_no_name_hides_it(
    subject: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Found(certificate("server" + subject), certificate("root" + subject))
    _show(found)
    text = capsys.readouterr().out
    assert_visible(text)
    lines = text.splitlines()
    assert len(lines) == 7
    assert lines[1].strip().replace(":", "").lower() == found.root_fingerprint
    assert lines[3].strip().replace(":", "").lower() == found.server_fingerprint
    assert "gnp" not in "".join(lines[:5])
    assert max(map(len, lines)) < 220


def test_a_log_of_hostile_text_is_verified_visibly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each line of an export is replaced: header, records, checkpoints, and what is none of them."""
    lines = make_log(3).export()
    header = export.Header(CONCEAL, CONCEAL, 3, 1).line()
    for place in range(len(lines)):
        for wrong in (header, CONCEAL.encode(), b'{"' + CONCEAL.encode() + b'": 1}', b"\xff\x1b"):
            file = tmp_path / "log.jsonl"
            file.write_bytes(b"\n".join([*lines[:place], wrong, *lines[place + 1 :]]) + b"\n")
            for form in ([], ["--json"]):
                assert main(["audit", "verify", "--export", str(file), *form]) != 0
                captured = capsys.readouterr()
                assert_visible(captured.out + captured.err)


def test_a_policy_of_hostile_text_is_explained_visibly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = {
        "name": CONCEAL,
        "principal": {"secret": "*"},
        "owner": {"tenant": CONCEAL, "service": CONCEAL},
        "labels": ["services"],
        "profiles": [CONCEAL],
        "names": {"common_names": [CONCEAL]},
    }
    label = {"issuer": "issuing", "profiles": ["service"], "authentication": ["secret"]}
    for policy in (
        {"default_label": CONCEAL},
        {"labels": {"services": label}, "rules": [rule]},
        {"default_label": "services", "labels": {"services": label}, "rules": []},
        {CONCEAL: CONCEAL},
    ):
        file = tmp_path / "policy.yaml"
        file.write_text(yaml.safe_dump(policy))
        main(["policy", "explain", "--policy", str(file), "--secret", CONCEAL, "--label", CONCEAL])
        captured = capsys.readouterr()
        assert_visible(captured.out + captured.err)
        assert captured.out + captured.err


def test_what_a_person_types_is_shown_visibly(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        [CONCEAL],
        [f"--{CONCEAL}"],
        ["cert", CONCEAL],
        ["cert", "show", "--serial", CONCEAL],
        ["agent", "--config", CONCEAL],
        ["audit", "verify", "--export", CONCEAL],
        ["trust", "--url", CONCEAL, "--out", "x"],
    ):
        assert main(words) != 0
        captured = capsys.readouterr()
        assert_visible(captured.out + captured.err)
        assert captured.err.count("\n") == 1
