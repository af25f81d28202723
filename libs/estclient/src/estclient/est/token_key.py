"""Reference to a private key in a PKCS#11 token: its URI (RFC 7512) and its public key.

In a file it is the PEM block that OpenSSL's pkcs11-provider reads as a private key, followed by the
public key (RFC 7468 section 13). Nothing in it is secret.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from estclient.errors import BundleInvalid
from estcore.errors import MalformedRequest
from estcore.pki.der import SEQUENCE, children, content, tlv

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
_LABEL = "PKCS#11 PROVIDER URI"
_DESCRIPTION = b"PKCS#11 Provider URI v1.0"
_VISIBLE_STRING, _UTF8_STRING = 0x1A, 0x0C
_BLOCK = re.compile(rf"-----BEGIN {_LABEL}-----\s+([A-Za-z0-9+/=\s]+?)\s+-----END {_LABEL}-----")
_ID = re.compile(r"[:;]id=((?:%[0-9A-Fa-f]{2})+)(?:;|$)")


@dataclass(frozen=True)
class TokenKey:
    """A key that stays in its token."""

    uri: str
    public: PublicKey

    def public_key(self) -> PublicKey:
        """Return the public key, as private keys in memory do."""
        return self.public

    @property
    def key_id(self) -> bytes:
        """The id of the key's object (CKA_ID)."""
        match = _ID.search(self.uri)
        return unquote_to_bytes(match[1]) if match else b""

    def pem(self) -> bytes:
        """Return the reference as it is stored."""
        uri = self.uri.encode()
        der = tlv(SEQUENCE, tlv(_VISIBLE_STRING, _DESCRIPTION), tlv(_UTF8_STRING, uri))
        text = base64.encodebytes(der).decode("ascii")
        block = f"-----BEGIN {_LABEL}-----\n{text}-----END {_LABEL}-----\n".encode()
        return block + self.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def is_reference(pem: bytes) -> bool:
    """Return whether a key file holds a reference and no key."""
    return f"BEGIN {_LABEL}".encode() in pem


def parse_reference(pem: bytes) -> TokenKey:
    """Return the key that a file refers to.

    Raises:
        BundleInvalid: it is none.
    """
    match = _BLOCK.search(pem.decode("ascii", "replace"))
    try:
        der = base64.b64decode("".join(match[1].split()), validate=True) if match else b""
        description, uri = children(der)
        public = load_pem_public_key(pem[pem.index(b"-----BEGIN PUBLIC KEY-----") :])
        text = content(uri, _UTF8_STRING).decode("ascii")
        is_uri = content(description, _VISIBLE_STRING) == _DESCRIPTION
    except (ValueError, MalformedRequest, UnsupportedAlgorithm) as exc:
        raise BundleInvalid("the key file refers to no key") from exc
    if not is_uri or not isinstance(public, PublicKey):
        raise BundleInvalid("the key file refers to no EC or RSA key")
    key = TokenKey(text, public)
    if key != TokenKey(uri_of(_token_label(text), key.key_id), public):
        raise BundleInvalid("the URI of the key is not one of ours")
    return key


def uri_of(token_label: str, key_id: bytes) -> str:
    """Return the URI of a private key (RFC 7512 section 2.3)."""
    identifier = "".join(f"%{octet:02X}" for octet in key_id)
    return f"pkcs11:token={quote(token_label, safe='')};id={identifier};type=private"


def _token_label(uri: str) -> str:
    match = re.match(r"pkcs11:token=([A-Za-z0-9._~%-]{1,256});", uri)
    return unquote_to_bytes(match[1]).decode("utf-8", "replace") if match else ""
