"""A PKCS#11 token of a client: makes keys that never leave it, and signs requests with them.

Every operation opens a session of its own. A PIN that the token refused is not sent to it again
while this process lives, and none is sent when the next wrong one would lock the token.
Calls block, so they are made in a thread, one at a time.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from estclient.errors import TokenFailed
from estclient.est.token_key import PublicKey, TokenKey, uri_of
from estcore.errors import ConfigurationError
from estcore.pki.profile import KeyAlgorithm
from estcore.runtime.secret_files import read_secret

T = TypeVar("T")

_CURVES = {"ec-p256": "secp256r1", "ec-p384": "secp384r1", "ec-p521": "secp521r1"}
_HASHES: dict[int, hashes.HashAlgorithm] = {
    256: hashes.SHA256(),
    384: hashes.SHA384(),
    521: hashes.SHA512(),
}
_ID_OCTETS = 16
_TIMEOUT_S = 60
_LOCK = threading.Lock()
_REFUSED: set[bytes] = set()
"""Digests of module, token and PIN that a token refused."""


@dataclass(frozen=True)
class ClientToken:
    """One token: its module, its label, the file with its PIN, the label of our keys in it."""

    module: Path
    token_label: str
    pin_file: Path
    key_label: str

    async def generate(self, algorithm: KeyAlgorithm) -> TokenKey:
        """Make a key pair in the token.

        Raises:
            TokenFailed: the token is not there, or cannot do it.
            ConfigurationError: PIN, module or algorithm are wrong.
        """
        return await _in_thread(lambda: self._generate(algorithm))

    async def sign(self, key: TokenKey, octets: bytes) -> bytes:
        """Return the signature over octets: ECDSA in DER, or RSA PKCS #1 v1.5 with SHA-256.

        Raises:
            TokenFailed, ConfigurationError: as ``generate``.
        """
        return await _in_thread(lambda: self._sign(key, octets))

    async def keep_only(self, kept: Collection[bytes]) -> None:
        """Destroy our keys whose ids are not among these.

        Raises:
            TokenFailed, ConfigurationError: as ``generate``.
        """
        await _in_thread(lambda: self._keep_only(kept))

    async def check(self) -> None:
        """Log in once, so that a wrong PIN reaches the token once only.

        Raises:
            TokenFailed, ConfigurationError: as ``generate``.
        """
        await _in_thread(self._check)

    def _check(self) -> None:
        with self._session(write=False):
            pass

    def _generate(self, algorithm: KeyAlgorithm) -> TokenKey:
        import pkcs11
        from pkcs11.util import ec as curves
        from pkcs11.util import rsa

        key_id = secrets.token_bytes(_ID_OCTETS)
        named: dict[str, Any] = {
            "id": key_id,
            "label": self.key_label,
            "store": True,
            "capabilities": pkcs11.MechanismFlag.SIGN | pkcs11.MechanismFlag.VERIFY,
            "private_template": {
                pkcs11.Attribute.PRIVATE: True,
                pkcs11.Attribute.SENSITIVE: True,
                pkcs11.Attribute.EXTRACTABLE: False,
            },
        }
        with self._session(write=True) as session:
            if algorithm in _CURVES:
                parameters = session.create_domain_parameters(
                    pkcs11.KeyType.EC,
                    {
                        pkcs11.Attribute.EC_PARAMS: curves.encode_named_curve_parameters(
                            _CURVES[algorithm]
                        )
                    },
                    local=True,
                )
                public, _ = parameters.generate_keypair(**named)
                der = curves.encode_ec_public_key(public)
            elif algorithm.startswith("rsa-"):
                bits = int(algorithm.removeprefix("rsa-"))
                public, _ = session.generate_keypair(pkcs11.KeyType.RSA, bits, **named)
                der = rsa.encode_rsa_public_key(public)
            else:
                raise ConfigurationError(f"a token makes no key of the kind {algorithm} here")
        return TokenKey(uri_of(self.token_label, key_id), _public(der))

    def _sign(self, key: TokenKey, octets: bytes) -> bytes:
        import pkcs11

        with self._session(write=False) as session:
            private = session.get_key(pkcs11.ObjectClass.PRIVATE_KEY, id=key.key_id)
            if not isinstance(key.public, ec.EllipticCurvePublicKey):
                return bytes(private.sign(octets, mechanism=pkcs11.Mechanism.SHA256_RSA_PKCS))
            digest = hashes.Hash(_HASHES[key.public.curve.key_size])
            digest.update(octets)
            raw = bytes(private.sign(digest.finalize(), mechanism=pkcs11.Mechanism.ECDSA))
        half = len(raw) // 2
        return encode_dss_signature(
            int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big")
        )

    def _keep_only(self, kept: Collection[bytes]) -> None:
        import pkcs11

        with self._session(write=True) as session:
            wanted = {pkcs11.Attribute.LABEL: self.key_label}
            for key in list(session.get_objects(wanted)):
                if bytes(key[pkcs11.Attribute.ID]) not in kept:
                    key.destroy()

    @contextmanager
    def _session(self, *, write: bool) -> Iterator[Any]:
        """Open a session, logged in.

        Raises:
            TokenFailed: what the token or its module said.
            ConfigurationError: the PIN was refused, or the extra is not installed.
        """
        try:
            import pkcs11
            from pkcs11 import TokenFlag
            from pkcs11.exceptions import PKCS11Error
        except ImportError as exc:
            raise ConfigurationError(
                "keys in a token need the extra: install estsuite-client[pkcs11]"
            ) from exc
        pin = read_secret(self.pin_file, "the PIN of the token")
        mark = sha256(f"{self.module}\0{self.token_label}\0{pin}".encode()).digest()
        if mark in _REFUSED:
            raise _wrong_pin(self.token_label)
        try:
            library = pkcs11.lib(str(self.module))
            token = library.get_token(token_label=self.token_label)
            if token.flags & (TokenFlag.USER_PIN_LOCKED | TokenFlag.USER_PIN_FINAL_TRY):
                raise _wrong_pin(self.token_label)
            with token.open(user_pin=pin, rw=write) as session:
                yield session
        except PKCS11Error as exc:
            name = type(exc).__name__
            if name.startswith("Pin"):
                _REFUSED.add(mark)
                raise _wrong_pin(self.token_label) from exc
            raise TokenFailed(f"the token {self.token_label} failed: {name}") from exc


def _wrong_pin(label: str) -> ConfigurationError:
    return ConfigurationError(
        f"the token {label} refused the PIN, or the next wrong one would lock it; correct the PIN "
        "file, and log in once by hand",
        code="client.pkcs11_pin",
    )


def _public(der: bytes) -> PublicKey:
    key = load_der_public_key(der)
    if not isinstance(key, PublicKey):
        raise TokenFailed("the token made a key of a different kind")
    return key


async def _in_thread(work: Callable[[], T]) -> T:
    def alone() -> T:
        with _LOCK:
            return work()

    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return await asyncio.to_thread(alone)
    except TimeoutError as exc:
        raise TokenFailed("the token did not answer in time") from exc
