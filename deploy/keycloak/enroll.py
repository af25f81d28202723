"""Get a token for ``clinic-web`` from Keycloak, and a certificate with it from est-frontend.

    enroll.py [NAME]    clinic-web.clinic.example by default, which is what the policy permits

What deploy/compose/keycloak.yml runs as ``keycloak-enroll``; a service does the same with its own
client. Secret and token stay in files: they are in no argument and in no variable.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

CLIENT = "clinic-web"
TOKEN_URL = "https://keycloak:8443/realms/est/protocol/openid-connect/token"  # noqa: S105 - a URL
SECRETS = Path("/run/secrets")
TOKEN_FILE = Path("/tmp/token")  # noqa: S108 - a file system of this container alone


def token() -> str:
    """Return an access token, by client credentials."""
    form = {
        "grant_type": "client_credentials",
        "client_id": CLIENT,
        "client_secret": (SECRETS / f"{CLIENT}.secret").read_text(encoding="utf-8"),
    }
    trust = ssl.create_default_context(cafile=str(SECRETS / "servers-ca.pem"))
    body = urllib.parse.urlencode(form).encode()
    with urllib.request.urlopen(TOKEN_URL, body, timeout=20, context=trust) as answer:
        return str(json.load(answer)["access_token"])


def main() -> int:
    """Enroll; returns the exit code of ``estctl enroll``."""
    name = sys.argv[1] if len(sys.argv) > 1 else f"{CLIENT}.clinic.example"
    descriptor = os.open(TOKEN_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token())
    return subprocess.run(
        [
            *("estctl", "enroll", "--url", "https://est-frontend:8443"),
            *("--trust", "/etc/estsuite/root.pem", "--label", "tokens"),
            *("--token-file", str(TOKEN_FILE), "--subject", f"CN={name}", "--san", f"dns:{name}"),
            *("--out", f"/var/lib/estsuite/{name}.pem"),
        ],
        check=False,
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
