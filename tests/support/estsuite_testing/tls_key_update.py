"""KeyUpdate messages of a TLS 1.3 client (RFC 8446 sections 4.6.3 and 7), which no library sends."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

CIPHER = "TLS_AES_256_GCM_SHA384"
_UPDATE_REQUESTED = b"\x18\x00\x00\x01\x01"
_HANDSHAKE, _APPLICATION_DATA = b"\x16", b"\x17"
_TAG = 16


class KeyUpdates:
    """The records of one client; it has sent nothing else since its handshake."""

    def __init__(self, key_log: Path) -> None:
        """Read the client's traffic secret from a key log file of one connection."""
        for line in key_log.read_text().splitlines():
            name, *_, secret = line.split()
            if name == "CLIENT_TRAFFIC_SECRET_0":
                self._secret = bytes.fromhex(secret)

    def next_record(self) -> bytes:
        """Return the next record: a KeyUpdate that asks the server for one."""
        key, nonce = self._derived(b"key", 32), self._derived(b"iv", 12)
        plain = _UPDATE_REQUESTED + _HANDSHAKE
        head = _APPLICATION_DATA + b"\x03\x03" + (len(plain) + _TAG).to_bytes(2, "big")
        self._secret = self._derived(b"traffic upd", len(self._secret))
        return head + AESGCM(key).encrypt(nonce, plain, head)

    def _derived(self, label: bytes, length: int) -> bytes:
        label = b"tls13 " + label
        info = length.to_bytes(2, "big") + bytes([len(label)]) + label + b"\x00"
        return HKDFExpand(hashes.SHA384(), length, info).derive(self._secret)
