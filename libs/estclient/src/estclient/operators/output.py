"""How ``estctl`` prints the results of commands: lines for people, certificates as PEM.

Values hold text of clients, by which an operator approves or revokes. A line break in one is
escaped, and so are runs of spaces, which separate the columns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estclient.errors import AnswerInvalid
from estcore.display import visible

_SPACES = re.compile("  +")
_LISTS = ("requests", "certificates", "bulk_revocations", "campaigns", "submissions", "secrets")
_STEPS = ("members", "requested", "skipped", "renewed", "proven", "revoked", "late")
_WIDTH = 10


def render(result: Mapping[str, Any]) -> str:
    """Return a result as lines for people.

    Raises:
        AnswerInvalid: what should be a certificate is none.
    """
    for name in _LISTS:
        if name in result:
            more = f"next page: --after {_text(result['next'])}\n" if result.get("next") else ""
            return ("".join(_line(row) for row in result[name]) or "none\n") + more
    lines = []
    for name, value in result.items():
        if name in {"rollovers", "generations", "lacking", "owners", "some"}:
            lines += [f"{name}:\n", *(f"  {_line(row)}" for row in value)]
        elif name == "certificate":
            lines.append(pem(value))
        elif name == "progress" and isinstance(value, Mapping):
            lines += ["progress:\n", progress_header(), progress_row(result)]
        else:
            lines.append(f"{visible(name):12} {_text(value)}\n")
    return "".join(lines)


def progress_header() -> str:
    """Return the line with the names of the columns of a campaign's progress."""
    return f"  {'state':{_WIDTH}}" + "".join(f"{name:>{_WIDTH}}" for name in _STEPS) + "\n"


def progress_row(result: Mapping[str, Any]) -> str:
    """Return the line with the progress of a campaign: how many certificates are how far."""
    progress = result.get("progress") or {}
    counts = "".join(f"{_text(progress.get(name)):>{_WIDTH}}" for name in _STEPS)
    return f"  {_text(result.get('state')):{_WIDTH}}{counts}\n"


def pem(der_hex: str) -> str:
    """Return a certificate, DER in hexadecimal, as PEM.

    Raises:
        AnswerInvalid: it is none.
    """
    try:
        certificate = x509.load_der_x509_certificate(bytes.fromhex(der_hex))
    except (ValueError, TypeError) as exc:
        raise AnswerInvalid("the answer has something else than a certificate") from exc
    return certificate.public_bytes(Encoding.PEM).decode()


def _line(row: Mapping[str, Any]) -> str:
    columns = (f"{visible(k)}={_text(v)}" for k, v in row.items() if v not in (None, []))
    return "  ".join(columns) + "\n"


def _text(value: Any) -> str:
    if value is None or value == []:
        return "-"
    text = visible(",".join(map(str, value)) if isinstance(value, list) else str(value))
    return _SPACES.sub(lambda run: " " + "\\u0020" * (len(run[0]) - 1), text)
