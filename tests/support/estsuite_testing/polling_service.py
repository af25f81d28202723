"""A service that polls renewal information, renews and proves over HTTPS, and has nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from estclient.est.client import ESTClient, Limits
from estcore.est.renewal_info import RenewalInfo
from estsuite_testing.e2e_stack import Stack, make_csr, write_key

PATIENT = Limits(timeout_s=10, attempts=10, longest_pause_s=5)


@dataclass
class Service:
    """A client with its newest credential in files, as a user of curl has it."""

    stack: Stack
    folder: Path
    name: str
    certificate: x509.Certificate
    number: int = 1

    @property
    def url(self) -> str:
        return f"https://localhost:{self.stack.layout.ports.est}"

    @property
    def credential(self) -> tuple[Path, Path]:
        return self.files(self.number)

    def files(self, number: int) -> tuple[Path, Path]:
        return self.folder / f"{number}.pem", self.folder / f"{number}.key"

    def client(self, credential: tuple[Path, Path] | None = None) -> ESTClient:
        return ESTClient(
            self.url, trust=self.stack.layout.root_file, credential=credential, limits=PATIENT
        )

    async def renew(self) -> x509.Certificate:
        key, csr = make_csr(self.name)
        enrolled = await self.client(self.credential).simplereenroll(csr)
        self.number += 1
        self._keep(enrolled.certificate, key)
        return enrolled.certificate

    def _keep(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        file, key_file = self.credential
        file.write_bytes(certificate.public_bytes(Encoding.PEM))
        write_key(key_file, key)
        self.certificate = certificate

    async def info(self, certificate: x509.Certificate | None = None) -> RenewalInfo:
        return await self.client().renewal_info(certificate or self.certificate)

    @classmethod
    async def enroll(cls, stack: Stack, folder: Path, name: str) -> Service:
        folder.mkdir()
        key, csr = make_csr(name)
        url = f"https://localhost:{stack.layout.ports.est}"
        client = ESTClient(
            url, trust=stack.layout.root_file, secret=("load", stack.secret), limits=PATIENT
        )
        service = cls(stack, folder, name, (await client.simpleenroll(csr)).certificate)
        service._keep(service.certificate, key)
        return service
