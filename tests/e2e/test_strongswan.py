"""strongSwan's ``pki`` as a client: what it needs on the wire it finds, or it fails here."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    load_der_private_key,
)

from estsuite_testing.e2e_stack import POLICY, Stack, same_key, start_stack, stop_stack
from estsuite_testing.strongswan import Pki, strongswan_pki

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A suite whose default label answers on one line.

    strongSwan to 5.9.10 cannot read base64 with line breaks, and this ``pki`` knows no labels.
    """
    folder = tmp_path_factory.mktemp("swan")
    policy = folder / "policy.yaml"
    label = "retry_after_s: 1"
    policy.write_text(
        POLICY.read_text().replace(label, f"{label}\n    response_base64: single-line", 1)
    )
    started = await start_stack(folder / "suite", policy=policy)
    try:
        yield started
    finally:
        await stop_stack(started)


@pytest.fixture(scope="module")
def pki() -> Iterator[Pki]:
    with strongswan_pki() as found:
        yield found


def request(pki: Pki, folder: Path, name: str) -> tuple[Path, Path]:
    """A key and a CSR, both made by pki."""
    key, csr = folder / f"{name}.key", folder / f"{name}.csr"
    key.write_bytes(pki.run("--gen", "--type", "ecdsa", "--size", "256").stdout)
    made = pki.run("--req", "--type", "priv", "--in", str(key), "--dn", f"CN={name}")
    csr.write_bytes(made.stdout)
    return key, csr


async def est(pki: Pki, stack: Stack, csr: Path, *more: str) -> bytes:
    """Enroll with pki; returns the certificate (DER)."""
    done = await asyncio.to_thread(
        pki.run,
        *("--est", "--url", f"https://localhost:{stack.layout.ports.est}"),
        *("--in", str(csr), "--cacert", str(stack.layout.root_file)),
        *("--cacert", str(stack.layout.ca / "issuing.pem"), *more),
    )
    return done.stdout


async def test_SW_gets_the_ca_certificates(stack: Stack, pki: Pki, tmp_path: Path) -> None:
    await asyncio.to_thread(
        pki.run,
        *("--estca", "--url", f"https://localhost:{stack.layout.ports.est}"),
        *("--cacert", str(stack.layout.root_file), "--caout", str(tmp_path / "ca.pem")),
        *("--outform", "pem"),
    )
    root = x509.load_pem_x509_certificate(stack.layout.root_file.read_bytes())
    issuing = x509.load_pem_x509_certificate((stack.layout.ca / "issuing.pem").read_bytes())
    found = {x509.load_pem_x509_certificate(file.read_bytes()) for file in tmp_path.glob("ca*.pem")}
    assert found == {root, issuing}


async def test_SW_enrolls_with_a_secret_and_renews_with_its_certificate(
    stack: Stack, pki: Pki, tmp_path: Path
) -> None:
    key, csr = request(pki, tmp_path, "dev-swan")
    der = await est(pki, stack, csr, "--userpass", f"load:{stack.secret}")
    old = x509.load_der_x509_certificate(der)
    private = load_der_private_key(key.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert same_key(old, private)
    (tmp_path / "old.der").write_bytes(der)
    (tmp_path / "new").mkdir()
    _, again = request(pki, tmp_path / "new", "dev-swan")
    renewed = x509.load_der_x509_certificate(
        await est(pki, stack, again, "--cert", str(tmp_path / "old.der"), "--key", str(key))
    )
    assert renewed.subject == old.subject
    assert renewed.serial_number != old.serial_number
    pem = tmp_path / "renewed.pem"
    pem.write_bytes(renewed.public_bytes(Encoding.PEM))
    checked = await asyncio.to_thread(
        subprocess.run,
        [
            *("openssl", "verify", "-x509_strict", "-CAfile", str(stack.layout.root_file)),
            *("-untrusted", str(stack.layout.ca / "issuing.pem"), str(pem)),
        ],
        capture_output=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


async def test_G2_SW_polls_until_the_signer_is_back(stack: Stack, pki: Pki, tmp_path: Path) -> None:
    _, csr = request(pki, tmp_path, "dev-patient")
    signer = stack.suite.services["ca-signer"].process
    os.kill(signer.pid, signal.SIGSTOP)
    polling = asyncio.ensure_future(
        est(
            *(pki, stack, csr, "--userpass", f"load:{stack.secret}"),
            *("--interval", "1", "--maxpolltime", "30"),
        )
    )
    await asyncio.sleep(7)  # longer than the front end waits: it answered 202
    assert not polling.done()
    os.kill(signer.pid, signal.SIGCONT)
    certificate = x509.load_der_x509_certificate(await polling)
    assert certificate.subject.rfc4514_string() == "CN=dev-patient"


async def test_SW_is_refused_with_a_wrong_secret(stack: Stack, pki: Pki, tmp_path: Path) -> None:
    _, csr = request(pki, tmp_path, "dev-wrong")
    with pytest.raises(AssertionError):
        await est(pki, stack, csr, "--userpass", "load:wrong")
