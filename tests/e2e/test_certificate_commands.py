"""``estctl trust``, ``enroll``, ``renew``, ``prove`` against a whole suite: one line each, no openssl."""

from __future__ import annotations

import re
import subprocess
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import pytest
import pytest_asyncio
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estcore.errors import ConfigurationError
from estsuite_testing.e2e_stack import POLICY, Stack, start_stack, stop_stack

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    folder: Path = tmp_path_factory.mktemp("commands")
    policy = yaml.safe_load(POLICY.read_text())
    device = {"certificate_issuer": "issuing", "certificate_subject": "CN=dev-csr"}
    policy["rules"].append(dict(policy["rules"][0]) | {"name": "device", "principal": device})
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy))
    whole = await start_stack(folder, policy=folder / "policy.yaml")
    secret = folder / "load.secret"
    secret.write_text(whole.secret)
    secret.chmod(0o600)
    try:
        yield whole
    finally:
        await stop_stack(whole)


def url(stack: Stack) -> str:
    return f"https://localhost:{stack.layout.ports.est}"


async def estctl(stack: Stack, *arguments: str, label: str | None = None) -> str:
    server = ("--url", url(stack), "--trust", str(stack.folder / "root.pem"))
    named = ("--label", label) if label else ()
    return await stack.suite.run("estctl", arguments[0], *server, *named, *arguments[1:])


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def trusted(stack: Stack) -> None:
    root = x509.load_pem_x509_certificate(stack.layout.root_file.read_bytes())
    fingerprint = sha256(root.public_bytes(Encoding.DER)).hexdigest()
    out = str(stack.folder / "root.pem")
    await stack.suite.run(
        "estctl", "trust", "--url", url(stack), "--out", out, "--fingerprint", fingerprint
    )


def bootstrap(stack: Stack, name: str, *, user: str = "load") -> list[str]:
    secret = str(stack.folder / "load.secret")
    names = ["--subject", f"CN={name}", "--out", str(stack.folder / f"{name}.pem")]
    return ["enroll", "--user", user, "--secret-file", secret, *names]


def openssl_verifies(stack: Stack, name: str) -> bool:
    file = str(stack.folder / f"{name}.pem")
    command = ["openssl", "verify", "-x509_strict", "-CAfile", str(stack.folder / "root.pem")]
    done = subprocess.run([*command, "-untrusted", file, file], check=False, capture_output=True)
    return done.returncode == 0


def modulus(stack: Stack, name: str) -> tuple[bytes, bytes]:
    """The public keys of certificate and key file, by openssl."""
    found = []
    for command in (["x509", "-pubkey", "-noout"], ["pkey", "-pubout"]):
        file = stack.folder / f"{name}.{'pem' if command[0] == 'x509' else 'key'}"
        done = subprocess.run(
            ["openssl", command[0], "-in", str(file), *command[1:]], check=True, capture_output=True
        )
        found.append(done.stdout)
    return found[0], found[1]


async def test_a_first_certificate_and_its_renewal_in_one_line_each(stack: Stack) -> None:
    shown = await estctl(stack, *bootstrap(stack, "dev-line"))
    assert "CN=dev-line" in shown
    assert re.search(r"valid until .* \(in \d+ \w+\)", shown)
    assert openssl_verifies(stack, "dev-line")
    first, key = modulus(stack, "dev-line")
    assert first == key

    pair = ("--certificate", str(stack.folder / "dev-line.pem"))
    await estctl(stack, "renew", *pair)
    second, key = modulus(stack, "dev-line")
    assert second == key != first
    assert openssl_verifies(stack, "dev-line")
    await estctl(stack, "renew", *pair, "--same-key")
    assert modulus(stack, "dev-line") == (second, second)
    left = {path.name for path in stack.folder.glob("*dev-line*")}
    assert left == {"dev-line.pem", "dev-line.key"}


async def test_a_repetition_after_an_interruption_gets_the_same_certificate(stack: Stack) -> None:
    """The process ended after the request and before the file was written."""
    await estctl(stack, *bootstrap(stack, "dev-again"))
    file = stack.folder / "dev-again.pem"
    before = file.read_bytes()
    with pytest.raises(ConfigurationError, match="estctl renew"):
        await estctl(stack, *bootstrap(stack, "dev-again"))
    file.unlink()
    await estctl(stack, *bootstrap(stack, "dev-again"))
    assert file.read_bytes() == before


async def test_a_request_of_a_device_gets_its_certificate(stack: Stack) -> None:
    csr, key, out = (str(stack.folder / f"dev-csr.{end}") for end in ("csr", "key", "pem"))
    names = ("--subject", "CN=dev-csr", "--key", key, "--out", csr)
    await stack.suite.run("estctl", "csr", *names)
    secret = str(stack.folder / "load.secret")
    more = ("--user", "load", "--secret-file", secret, "--csr", csr, "--out", out)
    await estctl(stack, "enroll-csr", *more)
    assert openssl_verifies(stack, "dev-csr")
    # Its certificate authenticates an enrollment by itself.
    identity = ("--identity", out, "--identity-key", key)
    other = ("--subject", "CN=dev-csr", "--out", str(stack.folder / "dev-second.pem"))
    await estctl(stack, "enroll", *identity, *other)
    assert openssl_verifies(stack, "dev-second")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"user": "nobody-knows"}, r"auth\.secret"),
        ({"name": "not-mine"}, r"40[39]|403"),
    ],
)
async def test_a_refusal_is_one_line_that_says_what_to_do(
    stack: Stack, changed: dict[str, str], said: str
) -> None:
    arguments = bootstrap(stack, changed.get("name", "dev-no"), user=changed.get("user", "load"))
    with pytest.raises(ConfigurationError, match=said) as refused:
        await estctl(stack, *arguments)
    assert len(refused.value.reason.strip().splitlines()) == 1
    assert not (stack.folder / "dev-no.pem").exists()


async def test_a_server_of_a_different_root_is_not_believed(stack: Stack, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-keyout", str(tmp_path / "k"), "-subj", "/CN=other", "-out", str(other)]
    subprocess.run(command, check=True, capture_output=True)
    arguments = bootstrap(stack, "dev-other")
    server = ("--url", url(stack), "--trust", str(other))
    with pytest.raises(ConfigurationError, match="certificate verify failed"):
        await stack.suite.run("estctl", arguments[0], *server, *arguments[1:])
    assert not (stack.folder / "dev-other.pem").exists()
