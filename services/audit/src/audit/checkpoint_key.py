"""The key that signs checkpoints: made once, kept in a file of its own."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from audit.settings import CheckpointSettings
from estcore.errors import ConfigurationError
from estcore.runtime.settings import read_secret
from estcore.tlog.checkpoint import VerifierKey


def load_key(settings: CheckpointSettings) -> Ed25519PrivateKey:
    """Return the signing key.

    Raises:
        ConfigurationError: missing, not for its owner alone, or not an Ed25519 key.
    """
    pem = read_secret(settings.key_file, "the checkpoint key")
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise ConfigurationError(f"not a PKCS#8 key without password: {settings.key_file}") from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"the checkpoint key is not Ed25519: {settings.key_file}")
    return key


def verifier_key(settings: CheckpointSettings) -> VerifierKey:
    """Return the public half of the configured key, under the log's origin."""
    return VerifierKey(settings.origin, load_key(settings).public_key())


def create_key(path: Path, origin: str) -> VerifierKey:
    """Write a new key to ``path``, which must not exist; returns its verifier key.

    Raises:
        ConfigurationError: the file exists or cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as exc:
        raise ConfigurationError(f"cannot create {path}: {exc.strerror}") from exc
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
    return VerifierKey(origin, key.public_key())
