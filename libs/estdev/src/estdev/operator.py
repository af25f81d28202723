"""The operator of a local suite: key, certificate and settings, made once."""

from __future__ import annotations

from pathlib import Path

import yaml

from estclient.est.keys import key_pem, make_csr, make_key
from estdev.local import LocalSuite
from estsetup.keep import keep_secret

SUBJECT = "CN=local operator"


async def make_operator(suite: LocalSuite, subject: str = SUBJECT, name: str = "operator") -> Path:
    """Return the settings file for ``estctl``; key and certificate are made where missing.

    Raises:
        ConfigurationError: the policy or the profiles do not have this operator.
    """
    layout = suite.layout
    key_file, certificate_file = (layout.secrets / f"{name}.{end}" for end in ("key", "pem"))
    settings_file = layout.config_file(name)
    if not certificate_file.exists():
        key, request = make_key(), layout.secrets / f"{name}.csr"
        request.write_bytes(make_csr(key, subject))
        out = ["--csr", str(request), "--out", str(certificate_file)]
        config = ["--config", str(layout.config_file("ca-signer"))]
        await suite.command("ca-signer", "operator", "enroll", *out, *config)
        key_file.unlink(missing_ok=True)
        keep_secret(key_file, key_pem(key).decode())
    seed_file = layout.nats.seed_file("operator")
    settings = {
        "bus": {
            "url": layout.nats.url,
            "nkey_seed_file": str(seed_file),
            "senders_file": str(layout.nats.senders_file),
        },
        "certificate_file": str(certificate_file),
        "key_file": str(key_file),
    }
    settings_file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return settings_file
