"""Keys with a certificate of their own, to encrypt for and to sign with."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from estcore.pki.certificate import signing_hash

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@dataclass
class Holder:
    """A key with a certificate that has a subjectKeyIdentifier."""

    key: Any
    certificate: x509.Certificate

    @property
    def identifier(self) -> bytes:
        extension = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        return extension.value.digest

    def write(self, folder: Path) -> tuple[str, str]:
        certificate, key = folder / "recipient.pem", folder / "recipient.key"
        certificate.write_bytes(self.certificate.public_bytes(Encoding.PEM))
        key.touch(mode=0o600)
        key.write_bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return str(certificate), str(key)


def holder(key: Any) -> Holder:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "key holder")])
    builder = x509.CertificateBuilder(
        issuer_name=name,
        subject_name=name,
        public_key=key.public_key(),
        serial_number=0x8001,
        not_valid_before=START,
        not_valid_after=START + dt.timedelta(days=3650),
    ).add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return Holder(key, builder.sign(key, signing_hash(key.public_key())))
