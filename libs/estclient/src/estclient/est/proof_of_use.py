"""Proof of use: what the new certificate's key signs once the service presents it."""

from __future__ import annotations

import datetime as dt
import json

from estclient.est.keys import PrivateKey
from estcore.pki.jws import sign_compact

CONTENT_TYPE = "application/jose"


def sign_ack(key: PrivateKey, *, rotation_id: str, serial: str, now: dt.datetime) -> str:
    """Return the compact JWS over rotation id, serial number (hex) and time."""
    claims = {"rotation_id": rotation_id, "serial": serial, "iat": int(now.timestamp())}
    return sign_compact(json.dumps(claims, separators=(",", ":")).encode(), key)
