"""Several issuers on one label: by profile and by kind of key, each renewed by its own."""

from __future__ import annotations

import subprocess
from base64 import b64decode
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    pkcs7,
)
from cryptography.x509.oid import NameOID

from ca_signer.ceremony import offline_ca
from estcore.clock import SystemClock
from estsuite_testing.e2e_stack import POLICY, Stack, certificate_in, start_stack, stop_stack
from estsuite_testing.raw_client import BASE, Client, b64

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    folder: Path = tmp_path_factory.mktemp("issuers")
    policy = yaml.safe_load(POLICY.read_text())
    policy["labels"]["services"]["other_issuers"] = [{"issuer": "classic", "keys": ["rsa"]}]
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(policy))
    passphrase = folder / "classic.passphrase"
    passphrase.write_text("a long enough passphrase")
    passphrase.chmod(0o600)
    offline_ca.init(
        folder / "classic", name="Classic", passphrase_file=passphrase, clock=SystemClock()
    )
    own = folder / "suite"
    issuers = [
        {
            "issuer_id": name,
            "certificate_file": str(ca / "issuing.pem"),
            "chain_file": str(ca / "chain.pem"),
            "key_file": str(ca / "issuing.key"),
            "passphrase_file": str(secret),
        }
        for name, ca, secret in (
            ("issuing", own / "ca", own / "secrets" / "ca.passphrase"),
            ("classic", folder / "classic", passphrase),
        )
    ]
    stack = await start_stack(folder, policy=path, overrides={"ca-signer": {"issuers": issuers}})
    try:
        yield stack
    finally:
        await stop_stack(stack)


def request(name: str, key: Key) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    csr = x509.CertificateSigningRequestBuilder(subject).sign(key, SHA256())
    return b64(csr.public_bytes(Encoding.DER))


async def test_a_label_has_an_issuer_for_each_kind_of_key(stack: Stack, tmp_path: Path) -> None:
    client = Client.of(stack)
    keys: dict[str, Key] = {
        "dev-modern": ec.generate_private_key(ec.SECP256R1()),
        "dev-classic": rsa.generate_private_key(65537, 2048),
    }
    found = await client.request("GET", f"{BASE}/cacerts")
    chain = pkcs7.load_der_pkcs7_certificates(b64decode(found.body))
    roots = [c for c in chain if c.subject == c.issuer]
    assert (len(chain), len(roots)) == (4, 2)
    (tmp_path / "all.pem").write_bytes(b"".join(c.public_bytes(Encoding.PEM) for c in chain))
    serials: dict[str, x509.Name] = {}
    for name, key in keys.items():
        # 1. A first certificate is by the issuer of its kind of key.
        answer = await client.enroll(request(name, key))
        assert answer.status == 200, answer.text
        first = certificate_in(answer.body)
        serials[name] = first.issuer
        # 2. Its renewal is by the same issuer, also with a key of the other kind.
        pem = tmp_path / f"{name}.pem"
        pem.write_bytes(first.public_bytes(Encoding.PEM))
        pem.with_suffix(".key").write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        context = stack.client_context(pem, pem.with_suffix(".key"))
        other = next(k for n, k in keys.items() if n != name)
        path = f"{BASE}/simplereenroll"
        for again in (key, _new_key_like(other)):
            renewed = await client.request("POST", path, request(name, again), context=context)
            assert renewed.status == 200, renewed.text
            assert certificate_in(renewed.body).issuer == first.issuer
        # 3. What /cacerts says is enough to verify it.
        done = subprocess.run(
            ["openssl", "verify", "-x509_strict", "-CAfile", "all.pem", pem.name],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert serials["dev-modern"] != serials["dev-classic"]


def _new_key_like(key: Key) -> Key:
    if isinstance(key, rsa.RSAPrivateKey):
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1())
