"""An EST server to be tried from outside: which one, what to trust, who we are."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from estsuite_testing.raw_client import BASE, Client


@dataclass
class Target:
    """An EST server, what to trust, who we are, what we may ask for."""

    host: str
    port: int
    ca: Path
    user: str
    password: str = field(repr=False)
    base: str
    label: str
    common_name: str
    serverkeygen: bool
    timeout_s: float = 15
    ours: bool = False
    """The suite of this repository, where every item must have a verdict."""
    refusal: str | None = field(default=None, repr=False)
    """Why a good CSR is refused; empty if it is accepted, None if that was not tried."""

    def context(self) -> ssl.SSLContext:
        """A client context that trusts the server."""
        return ssl.create_default_context(cafile=str(self.ca))

    def client(self) -> Client:
        """A client of this server."""
        return Client(
            host=self.host,
            port=self.port,
            context=self.context(),
            user=self.user,
            password=self.password,
            timeout_s=self.timeout_s,
        )

    def path(self, operation: str) -> str:
        """The path of an operation under the label the credentials are for."""
        return f"{self.base}/{operation}"


def from_environment(url: str) -> Target:
    """The server named by the environment (see ``run.py``)."""
    parts = urlsplit(url)
    if parts.scheme != "https" or parts.hostname is None:
        raise pytest.UsageError("EST_TARGET is not an https URL")
    label = os.environ.get("EST_TARGET_LABEL", "")
    password = Path(os.environ["EST_TARGET_PASSWORD_FILE"]).read_text().strip()
    return Target(
        host=parts.hostname,
        port=parts.port or 443,
        ca=Path(os.environ["EST_TARGET_CA"]),
        user=os.environ.get("EST_TARGET_USER", ""),
        password=password,
        base=f"{BASE}/{label}" if label else BASE,
        label=label or os.environ.get("EST_TARGET_OTHER_LABEL", ""),
        common_name=os.environ.get("EST_TARGET_COMMON_NAME", "conformance.test"),
        serverkeygen=os.environ.get("EST_TARGET_SERVERKEYGEN", "") == "yes",
        timeout_s=float(os.environ.get("EST_TARGET_TIMEOUT_S", "15")),
    )
