"""The PKCS#11 side: one module, one token, one login, one session (only in the worker process)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pkcs11
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass, TokenFlag
from pkcs11 import Mechanism as TokenMechanism
from pkcs11 import exceptions as errors

from ca_signer.signing.hsm.protocol import Find, Generate, Key, Mechanism, Open

_MECHANISMS = {
    Mechanism.ECDSA: TokenMechanism.ECDSA,
    Mechanism.RSA_PKCS: TokenMechanism.RSA_PKCS,
    Mechanism.EDDSA: TokenMechanism.EDDSA,
}
CURVES = {
    "ec-p256": bytes.fromhex("06082a8648ce3d030107"),
    "ec-p384": bytes.fromhex("06052b81040022"),
    "ec-p521": bytes.fromhex("06052b81040023"),
    "ed25519": bytes.fromhex("06032b6570"),
}
RSA_BITS = {"rsa-2048": 2048, "rsa-3072": 3072, "rsa-4096": 4096}


class TokenFailed(Exception):
    """A request failed; ``phase``, ``error`` and ``text`` go into the answer."""

    def __init__(self, phase: str, error: str, text: str = "") -> None:
        super().__init__(f"{phase}: {error}")
        self.phase, self.error, self.text = phase, error, text


@contextmanager
def _phase(name: str) -> Iterator[None]:
    try:
        yield
    except errors.PKCS11Error as exc:
        # The text of "module" is the loader's, the only one that helps; none is near the PIN.
        text = str(exc) if name == "module" else ""
        raise TokenFailed(name, type(exc).__name__, text) from exc


class TokenSession:
    """A session in one token, logged in."""

    def __init__(self, request: Open) -> None:
        with _phase("module"):
            library = pkcs11.lib(request.module)
        serial = request.serial.encode() or None
        with _phase("token"):
            token = library.get_token(token_label=request.label or None, token_serial=serial)
        # A PIN that is wrong once more would lock the token: then people do it, not we.
        if token.flags & TokenFlag.USER_PIN_LOCKED:
            raise TokenFailed("login", "PinLocked")
        if token.flags & TokenFlag.USER_PIN_FINAL_TRY:
            raise TokenFailed("login", "PinFinalTry")
        with _phase("login"):
            self._session: Any = token.open(rw=request.write, user_pin=request.pin)
        self._keys: list[Any] = []

    def find(self, request: Find) -> Key:
        """Find a private key and give it the next number.

        Raises:
            TokenFailed: none or more than one.
        """
        wanted: dict[Attribute, Any] = {Attribute.CLASS: ObjectClass.PRIVATE_KEY}
        wanted[Attribute.ID] = bytes.fromhex(request.key_id)
        if request.label:
            wanted[Attribute.LABEL] = request.label
        with _phase("key"):
            objects = list(self._session.get_objects(wanted))
        if len(objects) != 1:
            raise TokenFailed("key", "MultipleObjectsReturned" if objects else "NoSuchKey")
        self._keys.append(objects[0])
        with _phase("key"):
            return self._result(objects[0])

    def sign(self, key: int, mechanism: Mechanism, data: bytes) -> bytes:
        """Return the raw signature of the token.

        Raises:
            TokenFailed: the token did not sign.
        """
        if key >= len(self._keys):
            raise TokenFailed("sign", "NoSuchKey")
        with _phase("sign"):
            signature: bytes = self._keys[key].sign(data, mechanism=_MECHANISMS[mechanism])
        return signature

    def keys(self) -> list[Key]:
        """Return every private key of the token."""
        with _phase("key"):
            objects = list(self._session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}))
            return [self._result(key) for key in objects]

    def generate(self, request: Generate) -> Key:
        """Make a key pair in the token: sensitive, not extractable, for signing only.

        Raises:
            TokenFailed: the id is taken, or the token cannot make such a key.
        """
        key_id = bytes.fromhex(request.key_id)
        with _phase("generate"):
            if list(self._session.get_objects({Attribute.ID: key_id})):
                raise TokenFailed("generate", "KeyIdTaken")
            _, private = self._pair(request.algorithm)(
                id=key_id,
                label=request.label,
                store=True,
                capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
                private_template={
                    Attribute.PRIVATE: True,
                    Attribute.SENSITIVE: True,
                    Attribute.EXTRACTABLE: False,
                },
            )
            return self._result(private)

    def _pair(self, algorithm: str) -> Any:
        if algorithm in RSA_BITS:
            session, bits = self._session, RSA_BITS[algorithm]
            return lambda **more: session.generate_keypair(KeyType.RSA, bits, **more)
        if algorithm not in CURVES:
            raise TokenFailed("generate", "AlgorithmUnknown")
        kind = KeyType.EC_EDWARDS if algorithm == "ed25519" else KeyType.EC
        parameters = self._session.create_domain_parameters(
            kind, {Attribute.EC_PARAMS: CURVES[algorithm]}, local=True
        )
        return parameters.generate_keypair

    def _result(self, private: Any) -> Key:
        """Return the attributes of the private object, else those of the public one."""
        key_id = _attribute(private, Attribute.ID) or b""
        objects = self._session.get_objects(
            {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.ID: key_id}
        )
        sources = [*list(objects)[:1], private]
        kind = _attribute(private, Attribute.KEY_TYPE)
        return Key(
            key_id=key_id.hex(),
            label=str(_attribute(private, Attribute.LABEL) or ""),
            kind=kind.name if isinstance(kind, KeyType) else "",
            ec_params=_first(sources, Attribute.EC_PARAMS),
            ec_point=_first(sources, Attribute.EC_POINT),
            modulus=_first(sources, Attribute.MODULUS),
            exponent=_first(sources, Attribute.PUBLIC_EXPONENT),
            sensitive=bool(_attribute(private, Attribute.SENSITIVE)),
            extractable=bool(_attribute(private, Attribute.EXTRACTABLE)),
        )


def _attribute(source: Any, attribute: Attribute) -> Any:
    """Return an attribute, None where the token has none or its value is of no known form."""
    try:
        return source[attribute]
    except (errors.AttributeTypeInvalid, errors.AttributeSensitive, ValueError):
        return None


def _first(sources: list[Any], attribute: Attribute) -> str:
    values = (_attribute(source, attribute) for source in sources)
    return next((value.hex() for value in values if value), "")
