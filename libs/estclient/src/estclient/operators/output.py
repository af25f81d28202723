"""How ``estctl`` prints the results of commands: lines for people, certificates as PEM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding


def render(result: Mapping[str, Any]) -> str:
    """Return a result as lines for people."""
    for name in ("requests", "certificates", "bulk_revocations", "submissions"):
        if name in result:
            more = f"next page: --after {result['next']}\n" if result.get("next") else ""
            return ("".join(_line(row) for row in result[name]) or "none\n") + more
    lines = []
    for name, value in result.items():
        if name in {"rollovers", "generations", "lacking", "owners", "some"}:
            lines += [f"{name}:\n", *(f"  {_line(row)}" for row in value)]
        elif name == "certificate":
            lines.append(pem(value))
        else:
            lines.append(f"{name:12} {_text(value)}\n")
    return "".join(lines)


def pem(der_hex: str) -> str:
    """Return a certificate, DER in hexadecimal, as PEM."""
    der = bytes.fromhex(der_hex)
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode()


def _line(row: Mapping[str, Any]) -> str:
    return "  ".join(f"{k}={_text(v)}" for k, v in row.items() if v not in (None, [])) + "\n"


def _text(value: Any) -> str:
    if value is None or value == []:
        return "-"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
