"""The EST client of the demo: curl and openssl in a folder of its own."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from estcore.errors import ESTSuiteError

_COMMAND_TIMEOUT_S = 60


class DemoFailedError(ESTSuiteError):
    """Something the demo wanted to see did not happen."""

    default_code = "demo.failed"


class CurlClient:
    """Enrolls with curl; each certificate has a name, as its files in the folder do."""

    def __init__(self, folder: Path, root_file: Path, url: str) -> None:
        self._folder = folder
        self._root_file = root_file
        self._url = url

    async def fetch_cacerts(self) -> int:
        """Fetch the CA certificates into ``ca.pem``; return how many there are."""
        body = await self._curl("cacerts")
        certificates = pkcs7.load_der_pkcs7_certificates(base64.b64decode(body))
        (self._folder / "ca.pem").write_bytes(
            b"".join(c.public_bytes(Encoding.PEM) for c in certificates)
        )
        return len(certificates)

    async def make_csr(self, name: str, host: str) -> None:
        """Make a key and a CSR for a host name."""
        await self._run(
            "openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-keyout", f"{name}.key", "-subj", f"/CN={host}", "-addext",
            f"subjectAltName=DNS:{host}", "-outform", "DER", "-out", f"{name}.der",
        )  # fmt: skip
        der = (self._folder / f"{name}.der").read_bytes()
        (self._folder / f"{name}.b64").write_bytes(base64.encodebytes(der))

    async def enroll(self, name: str, *, user: str) -> x509.Certificate:
        """Enroll with the CSR of this name and an enrollment secret, ``id:secret``."""
        return self._keep(name, await self._curl("simpleenroll", csr=name, user=user))

    async def reenroll(self, name: str, *, certificate: str) -> x509.Certificate:
        """Re-enroll with the CSR of this name over mutual TLS with another certificate."""
        return self._keep(
            name, await self._curl("simplereenroll", csr=name, certificate=certificate)
        )

    async def verify(self, name: str) -> None:
        """Verify a certificate with openssl.

        Raises:
            DemoFailedError: openssl refuses it.
        """
        await self._run(
            "openssl", "verify", "-x509_strict", "-CAfile", str(self._root_file),
            "-untrusted", "ca.pem", f"{name}.pem",
        )  # fmt: skip

    def header(self, name: str) -> str | None:
        """Return a header of the last answer; None where it has none."""
        for line in (self._folder / "headers").read_text().splitlines():
            if line.lower().startswith(name + ":"):
                return line.partition(":")[2].strip()
        return None

    async def _curl(
        self, operation: str, *, csr: str = "", user: str = "", certificate: str = ""
    ) -> bytes:
        """Call EST with curl; the secret goes in by standard input, never by an argument."""
        answer = self._folder / "answer"
        arguments = ["curl", "-sS", "--cacert", str(self._root_file), "-K", "-"]
        arguments += ["-D", str(self._folder / "headers"), "-o", str(answer), "-w", "%{http_code}"]
        if csr:
            arguments += ["-H", "Content-Type: application/pkcs10", "--data-binary", f"@{csr}.b64"]
        if certificate:
            arguments += ["--cert", f"{certificate}.pem", "--key", f"{certificate}.key"]
        config = f'user = "{user}"\n' if user else ""
        status = await self._run(*arguments, f"{self._url}/{operation}", stdin=config)
        body = answer.read_bytes()
        if status != b"200":
            text = body.decode(errors="replace").strip()
            raise DemoFailedError(f"/{operation} answered {status.decode()}: {text}")
        return body

    def _keep(self, name: str, body: bytes) -> x509.Certificate:
        (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(body))
        (self._folder / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        return certificate

    async def _run(self, *command: str, stdin: str = "") -> bytes:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self._folder,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_COMMAND_TIMEOUT_S):
                out, err = await process.communicate(stdin.encode())
        except TimeoutError as exc:
            process.kill()
            raise DemoFailedError(f"{command[0]} did not end") from exc
        if process.returncode != 0:
            lines = err.decode(errors="replace").strip().splitlines() or ["no message"]
            raise DemoFailedError(f"{command[0]}: {lines[-1]}")
        return out
