"""Ceremonies of a rollover: a further issuing CA, and what links an old root and a new one.

Where the root stays, a further issuing CA is all there is to make. Where it changes, both root
keys sign once more, offline (RFC 4210 section 4.4.1):

- NewWithOld, the new key signed with the old one, good from the new root's beginning to the old
  root's end: who trusts the old root can verify what is under the new one.
- OldWithNew, the old key signed with the new one, good as long as the old root: who trusts the
  new root alone can verify what is still under the old one.
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384

from ca_signer.ceremony.offline_ca import (
    OfflineCA,
    intermediate,
    issued_by,
    open_ca,
    pem,
    requested_key,
    write_key,
)
from estcore import ids
from estcore.clock import Clock
from estcore.errors import ConfigurationError
from estcore.runtime.settings import read_secret


def issuing(
    folder: Path,
    *,
    out: Path,
    name: str,
    passphrase_file: Path,
    clock: Clock,
    issuing_csr: Path | None = None,
    generation: int = 2,
) -> None:
    """Make a further issuing CA under the root in ``folder``; its files go to ``out``.

    Raises:
        ConfigurationError: ``out`` holds a CA already, or the root cannot be opened.
    """
    if (out / "issuing.pem").exists():
        raise ConfigurationError(f"{out} holds a CA already", code="ca.exists")
    passphrase = read_secret(passphrase_file, "the passphrase").encode()
    root = open_ca(folder, "root", passphrase)
    key = None if issuing_csr else ec.generate_private_key(ec.SECP256R1())
    public_key = key.public_key() if key else requested_key(issuing_csr or Path())
    now = clock.now().replace(microsecond=0)
    common_name = f"{name} Issuing CA {generation}"
    certificate = intermediate(common_name, name, root, now, public_key)
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    if key is not None:
        write_key(out / "issuing.key", key, passphrase)
    (out / "issuing.pem").write_bytes(pem(certificate))
    (out / "chain.pem").write_bytes(pem(root.certificate))


def cross(
    old_folder: Path,
    new_folder: Path,
    *,
    out: Path,
    passphrase_file: Path,
    new_passphrase_file: Path | None = None,
) -> None:
    """Write NewWithOld and OldWithNew of the roots in two folders into one file.

    Raises:
        ConfigurationError: a root cannot be opened, both are one, or the file is there.
    """
    if out.exists():
        raise ConfigurationError(f"{out} is there already", code="ca.exists")
    old_secret = read_secret(passphrase_file, "the passphrase").encode()
    new_secret = read_secret(new_passphrase_file or passphrase_file, "the passphrase").encode()
    old, new = open_ca(old_folder, "root", old_secret), open_ca(new_folder, "root", new_secret)
    if old.certificate == new.certificate:
        raise ConfigurationError("both folders have the same root")
    out.write_bytes(pem(_signed(new, old)) + pem(_signed(old, new)))


def _signed(subject: OfflineCA, issuer: OfflineCA) -> x509.Certificate:
    """Return a certificate of one root's key, signed by the other root.

    It says of the key what its own root certificate says, and ends with the first of the two.
    """
    own, above = subject.certificate, issuer.certificate
    end = min(own.not_valid_after_utc, above.not_valid_after_utc)
    if end <= own.not_valid_before_utc:
        raise ConfigurationError("the roots are not valid at the same time")
    builder = x509.CertificateBuilder(
        issuer_name=above.subject,
        subject_name=own.subject,
        public_key=own.public_key(),
        serial_number=ids.new_serial_number(),
        not_valid_before=own.not_valid_before_utc,
        not_valid_after=end,
    )
    for extension in own.extensions:
        if not isinstance(extension.value, x509.AuthorityKeyIdentifier):
            builder = builder.add_extension(extension.value, extension.critical)
    builder = builder.add_extension(issued_by(above), critical=False)
    return builder.sign(issuer.key, SHA384())
