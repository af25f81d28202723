"""``ca-signer ca csr``: a key for an issuing CA and the request for a CA above to sign.

The counterpart of ``ca import``. A key that is to live in a token is made there instead
(``ca-signer token generate``).
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from ca_signer.ceremony.offline_ca import write_key
from ca_signer.signing.hsm.csr import CA_KEY_USAGE
from estcore.errors import ConfigurationError
from estcore.pki.certificate import signing_hash
from estcore.runtime.settings import read_secret

IssuingKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
_CURVES: dict[str, type[ec.EllipticCurve]] = {
    "ec-p256": ec.SECP256R1,
    "ec-p384": ec.SECP384R1,
    "ec-p521": ec.SECP521R1,
}
_SIZES = {"rsa-3072": 3072, "rsa-4096": 4096}
ALGORITHMS = (*_CURVES, *_SIZES, "ed25519")


def request(folder: Path, *, subject: str, algorithm: str, passphrase_file: Path) -> None:
    """Write ``issuing.key``, encrypted, and ``issuing.csr`` into ``folder``.

    ``subject`` is an RFC 4514 name. Asks for a CA with path length 0 (RFC 2986 section 4).

    Raises:
        ConfigurationError: the folder holds a key or a CA already, or the subject is no name.
    """
    for name in ("issuing.key", "issuing.pem"):
        if (folder / name).exists():
            raise ConfigurationError(f"{folder} holds {name} already", code="ca.exists")
    try:
        name_ = x509.Name.from_rfc4514_string(subject)
    except ValueError as exc:
        raise ConfigurationError(f"not a name as of RFC 4514: {subject}") from exc
    if not name_.rdns:
        raise ConfigurationError("an issuing CA has a name")
    passphrase = read_secret(passphrase_file, "the passphrase").encode()
    key = _new_key(algorithm)
    csr = (
        x509.CertificateSigningRequestBuilder(name_)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(CA_KEY_USAGE, critical=True)
        .sign(key, signing_hash(key.public_key()))
    )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_key(folder / "issuing.key", key, passphrase)
    (folder / "issuing.csr").write_bytes(csr.public_bytes(Encoding.PEM))


def _new_key(algorithm: str) -> IssuingKey:
    if algorithm in _CURVES:
        return ec.generate_private_key(_CURVES[algorithm]())
    if algorithm in _SIZES:
        return rsa.generate_private_key(65537, _SIZES[algorithm])
    return ed25519.Ed25519PrivateKey.generate()
