"""estctl's verbs for people: what a policy decides, verifiers of passwords, parts of exports."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import pytest
import yaml
from argon2 import PasswordHasher
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from estclient.cli import main
from estclient.operators.audit_log import unpacked
from estcore.errors import Unavailable
from estcore.est.http_digest import verifier
from estsuite_testing.e2e_stack import make_csr

POLICY = """
default_label: services
labels:
  services: {issuer: issuing, profiles: [service-mtls, server-only],
             authentication: [token, secret, certificate]}
  bare: {issuer: issuing, profiles: [service-mtls], authentication: [certificate]}
rules:
  - name: other-realm
    principal: {token: {issuer: partner, claims: {azp: "*"}}}
    owner: {tenant: clinic, service: other}
    labels: [services]
    profiles: [service-mtls]
    names: {}
  - name: clients
    principal: {token: {issuer: keycloak, claims: {azp: "clinic-*"}}}
    owner: {tenant: clinic, service: "{azp}"}
    labels: [services]
    profiles: [service-mtls, server-only]
    names: {common_names: ["{azp}.example"], dns: ["{azp}.example"]}
  - name: records
    principal: {token: {issuer: bound, claims: {azp: "*"}, profiles_by_role: false,
                sender_constrained: true}}
    owner: {tenant: clinic, service: records}
    labels: [services]
    profiles: [service-mtls]
    names: {common_names: [web]}
  - name: web
    principal: {secret: web}
    owner: {tenant: clinic, service: web}
    labels: [services]
    profiles: [service-mtls]
    max_per_day: 5
    names: {common_names: [web]}
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "policy.yaml").write_text(POLICY)
    for name in ("web", "clinic-web.example", "clinic-lab.example"):
        pem = x509.load_der_x509_csr(make_csr(name)[1]).public_bytes(Encoding.PEM)
        (tmp_path / f"{name}.csr").write_bytes(pem)
    roles = {"est": {"roles": ["server-only"]}}
    token = {"azp": "clinic-web", "sub": "1", "resource_access": roles, "exp": 1}
    (tmp_path / "token.json").write_text(json.dumps(token))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    return main(arguments), capsys.readouterr().out


def explained(
    files: Path, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, list[str]]:
    policy = ("policy", "explain", "--policy", str(files / "policy.yaml"))
    status, out = run(capsys, *policy, *arguments)
    return status, out.splitlines()


def test_N1_a_tokens_rule_profile_and_names_are_shown(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    who = ("--claims", str(files / "token.json"), "--issuer", "keycloak")
    status, steps = explained(files, capsys, *who, "--csr", str(files / "clinic-web.example.csr"))
    assert status == 0
    assert "rule other-realm: for tokens of partner" in steps
    assert "rule clients: owner clinic/clinic-web, profile server-only" in steps
    assert steps[-1] == "allowed"


def test_L14_a_token_of_one_service_does_not_get_anothers_name(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    who = ("--claims", str(files / "token.json"), "--issuer", "keycloak")
    status, steps = explained(files, capsys, *who, "--csr", str(files / "clinic-lab.example.csr"))
    assert status == 1
    assert steps[-1].endswith("[policy.subject]")


def test_L13_a_rule_can_demand_a_token_bound_to_a_key(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    who = ("--issuer", "bound", "--csr", str(files / "web.csr"))
    status, steps = explained(files, capsys, "--claims", str(files / "token.json"), *who)
    assert (status, steps[-1].endswith("[policy.sender_constraint]")) == (1, True)
    bound = files / "bound.json"
    bound.write_text(json.dumps({"azp": "x", "cnf": "jkt"}))
    assert explained(files, capsys, "--claims", str(bound), *who)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--secret", "unknown"), "policy.no_rule"),
        (("--secret", "web", "--label", "bare"), "auth.required"),
        (("--secret", "web", "--label", "nosuch"), "request.not_found"),
        (("--secret", "web", "--operation", "serverkeygen"), "request.not_implemented"),
    ],
)
def test_N1_a_refusal_names_its_code(
    files: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: str
) -> None:
    status, steps = explained(files, capsys, *arguments)
    assert status == 1
    assert steps[-1].endswith(f"[{code}]")


def test_conditions_of_a_rule_are_shown(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, steps = explained(files, capsys, "--secret", "web", "--csr", str(files / "web.csr"))
    assert status == 0
    assert "at most 5 certificates in 24 hours" in steps


def test_a_password_becomes_verifiers_and_is_in_none_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "password"
    file.write_text("correct horse battery\n")
    file.chmod(0o600)
    assert main(["password", "--user", "alice", "--digest", "--password-file", str(file)]) == 0
    out = capsys.readouterr().out
    assert "horse" not in out
    entry = yaml.safe_load(out)["users"]["alice"]
    assert PasswordHasher().verify(entry["argon2id"], "correct horse battery")
    assert entry["digest"]["MD5"] == verifier("alice", "est", "correct horse battery", "MD5")


def test_a_user_is_added_to_the_users_file_and_the_others_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret, users = tmp_path / "password", tmp_path / "users.yaml"
    secret.write_text("correct horse battery\n")
    secret.chmod(0o600)
    for user in ("alice", "bob", "alice"):
        arguments = ["--user", user, "--password-file", str(secret), "--users-file", str(users)]
        assert main(["password", *arguments]) == 0
        assert users.stat().st_mode & 0o777 == 0o600
    assert capsys.readouterr().out == ""
    assert list(yaml.safe_load(users.read_text())["users"]) == ["alice", "bob"]
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


@pytest.mark.parametrize("text", ["", "[]", "users: 3", "a: {b", "people: {}"])
def test_what_is_not_a_users_file_is_left_alone(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret, users = tmp_path / "password", tmp_path / "users.yaml"
    secret.write_text("correct horse battery\n")
    secret.chmod(0o600)
    users.write_text(text)
    arguments = ["--user", "a", "--password-file", str(secret), "--users-file", str(users)]
    assert main(["password", *arguments]) == 2
    assert users.read_text() == text
    assert str(users) in capsys.readouterr().err


def test_a_short_password_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("short\n")
    file.chmod(0o600)
    assert main(["password", "--user", "alice", "--password-file", str(file)]) == 2


@pytest.mark.parametrize(
    "octets",
    [b"", b"no zlib", zlib.compress(b"x" * 100)[:-1], zlib.compress(bytes(64 * 1024 * 1024))],
    ids=["empty", "other", "cut", "a bomb"],
)
def test_a_part_that_is_none_is_refused_before_it_fills_memory(octets: bytes) -> None:
    with pytest.raises(Unavailable, match="est-audit answered"):
        unpacked(base64.b64encode(octets).decode())
    with pytest.raises(Unavailable, match="est-audit answered"):
        unpacked("%%%")


@given(st.binary(max_size=2000))
def test_a_part_is_what_was_packed(octets: bytes) -> None:
    assert unpacked(base64.b64encode(zlib.compress(octets)).decode()) == octets
