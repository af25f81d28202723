"""Proof of use: what the new certificate's key signs once the service presents it."""

from __future__ import annotations

import datetime as dt
import json

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

from estclient.est.keys import PrivateKey

CONTENT_TYPE = "application/jose"
_CURVES = {256: "ES256", 384: "ES384", 521: "ES512"}


def sign_ack(key: PrivateKey, *, rotation_id: str, serial: str, now: dt.datetime) -> str:
    """Return the compact JWS over rotation id, serial number (hex) and time."""
    claims = {"rotation_id": rotation_id, "serial": serial, "iat": int(now.timestamp())}
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    signer: ECKey | RSAKey | OKPKey
    if isinstance(key, ec.EllipticCurvePrivateKey):
        signer, algorithm = ECKey.import_key(pem), _CURVES[key.curve.key_size]
    elif isinstance(key, rsa.RSAPrivateKey):
        signer, algorithm = RSAKey.import_key(pem), "PS256"
    else:
        signer, algorithm = OKPKey.import_key(pem), "Ed25519"
    body = json.dumps(claims, separators=(",", ":")).encode()
    return jws.serialize_compact({"alg": algorithm}, body, signer, algorithms=[algorithm])
