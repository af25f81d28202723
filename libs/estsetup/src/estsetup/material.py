"""The keys of an installation in one folder: passwords, NKeys, a CA, an operator's key.

    <folder>/ca      root and issuing CA; the key of the root is needed here only
    <folder>/keys    everything else that is secret, a file each, mode 0600

What exists is kept, so that a second run continues with the same keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from estcore.messages.accounts import server_accounts
from estsetup import nats
from estsetup.keep import keep_password, keep_secret, run

SCHEMAS = ("ca_signer", "renewal", "audit")
"""PostgreSQL schemas; each has a role of its name, and ``<schema>_owner``."""
ROLES = (
    *(role for schema in SCHEMAS for role in (schema, f"{schema}_owner")),
    "ca_signer_reader",
)
OPERATOR_SUBJECT = "CN=local operator"
"""The operator of the example policy."""


@dataclass(frozen=True)
class Material:
    """Where the keys are; ``make`` fills the folder."""

    folder: Path

    @property
    def ca(self) -> Path:
        """The CA: ``root.pem``, ``issuing.pem``, ``issuing.key``, ``chain.pem``, ``server/``."""
        return self.folder / "ca"

    @property
    def keys(self) -> Path:
        """Secrets by file name."""
        return self.folder / "keys"

    def make(self, *, ca_name: str, hosts: Sequence[str], origin: str) -> None:
        """Make what is missing; ``hosts`` are those of the server certificate.

        Raises:
            ConfigurationError: a ceremony failed; with its own line.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in (self.ca, self.keys):
            path.mkdir(exist_ok=True, mode=0o700)
        keep_password(self.keys / "ca.passphrase")
        keep_password(self.keys / "postgres-superuser.password")
        for role in ROLES:
            keep_password(self.keys / f"{role}.password")
        nats.public_keys(self.keys, nats.users())
        self._make_ca(ca_name, hosts)
        self._make_checkpoint_key(origin)
        self._make_operator()

    def accounts(self) -> dict[str, object]:
        """Return the ``accounts`` block of nats-server for these keys."""
        names = nats.users()
        return dict(server_accounts(names, nats.public_keys(self.keys, names)))

    def senders(self) -> str:
        """Return the senders file for these keys."""
        return nats.senders(self.keys, nats.users())

    @property
    def operator_request(self) -> Path:
        """The operator's request (PEM): ``ca-signer operator enroll --csr`` answers it."""
        return self.folder / "operator.csr"

    @property
    def verifier_key(self) -> Path:
        """The audit log's verifier key, public."""
        return self.folder / "audit.vkey"

    def _make_ca(self, name: str, hosts: Sequence[str]) -> None:
        common = ["--folder", str(self.ca), "--passphrase-file", str(self.keys / "ca.passphrase")]
        if not (self.ca / "root.pem").exists():
            run("ca-signer", "ca", "init", "--name", name, *common)
        if not (self.ca / "server" / "server.pem").exists():
            named = [argument for host in hosts for argument in ("--host", host)]
            out = ["--out", str(self.ca / "server"), *named]
            run("ca-signer", "ca", "server-certificate", *common, *out)
        for source in (self.ca / "issuing.key", self.ca / "server" / "server.key"):
            keep_secret(self.keys / source.name, source.read_text(encoding="utf-8"))

    def _make_checkpoint_key(self, origin: str) -> None:
        key = self.keys / "audit-checkpoint.pem"
        if not key.exists():
            printed = run("est-audit", "keygen", "--origin", origin, "--out", str(key))
            self.verifier_key.write_text(printed.strip() + "\n", encoding="utf-8")

    def _make_operator(self) -> None:
        path = self.keys / "operator.key"
        if not path.exists():
            new = ec.generate_private_key(ec.SECP256R1())
            form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            keep_secret(path, new.private_bytes(*form).decode())
        if not self.operator_request.exists():
            key = load_pem_private_key(path.read_bytes(), None)
            assert isinstance(key, ec.EllipticCurvePrivateKey)  # noqa: S101 - made above
            request = (
                x509.CertificateSigningRequestBuilder()
                .subject_name(x509.Name.from_rfc4514_string(OPERATOR_SUBJECT))
                .sign(key, hashes.SHA256())
            )
            self.operator_request.write_bytes(request.public_bytes(Encoding.PEM))
