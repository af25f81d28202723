"""One call of a foreign EST client: what it is given, what it returns, how it fails."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from cryptography import x509

Operation = Literal["cacerts", "csrattrs", "simpleenroll", "simplereenroll", "serverkeygen"]
_CALL_S = 60


class Failed(AssertionError):
    """The client failed; with what it wrote."""


@dataclass(frozen=True)
class Call:
    """What a client is asked to do; files are PEM."""

    operation: Operation
    port: int
    root: Path
    issuing: Path
    folder: Path
    """For files of the client; empty."""
    label: str | None = None
    csr: Path | None = None
    user: str | None = None
    password: str = ""
    digest: bool = False
    certificate: Path | None = None
    key: Path | None = None
    tls: Literal["1.2", "1.3"] | None = None

    @property
    def path(self) -> str:
        """Path of the operation."""
        label = f"/{self.label}" if self.label else ""
        return f"/.well-known/est{label}/{self.operation}"

    @property
    def arguments(self) -> list[str]:
        """The call as ``name=value``, as the clients written for these tests read it."""
        given = {
            "operation": self.operation,
            "host": "localhost",
            "port": self.port,
            "url": f"https://localhost:{self.port}",
            "ca": self.root,
            "out": self.folder / "out.pem",
            "key-out": self.folder / "out.key",
            "label": self.label,
            "csr": self.csr,
            "user": self.user,
            "password": self.password if self.user is not None else None,
            "certificate": self.certificate,
            "key": self.key,
            "tls": self.tls,
        }
        return [f"{name}={value}" for name, value in given.items() if value is not None]

    def result(self) -> Result:
        """Read what such a client wrote."""
        out, key = self.folder / "out.pem", self.folder / "out.key"
        if self.operation == "csrattrs":
            return Result(attributes=out.read_text())
        generated = key.read_bytes() if key.exists() else None
        return Result(x509.load_pem_x509_certificates(out.read_bytes()), generated_key=generated)


@dataclass(frozen=True)
class Result:
    """What a client understood of the answer."""

    certificates: list[x509.Certificate] = field(default_factory=list)
    attributes: str = ""
    """Object identifiers of csrattrs, with whatever else the client prints of them."""
    generated_key: bytes | None = None
    """PEM."""


class ForeignClient(Protocol):
    """A client, ready to run."""

    name: str

    def run(self, call: Call) -> Result:
        """Carry out one call.

        Raises:
            Failed: the client says that it failed.
        """
        ...


def run_client(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> bytes:
    """Run a client and return its standard output.

    Raises:
        Failed: its exit code is not 0.
    """
    done = subprocess.run(
        command, capture_output=True, env=env, cwd=cwd, timeout=_CALL_S, check=False
    )
    if done.returncode != 0:
        said = (done.stderr + done.stdout).decode(errors="replace").strip()
        raise Failed(f"{Path(command[0]).name} ended with {done.returncode}: {said[-1500:]}")
    return done.stdout
