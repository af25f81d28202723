"""The verbs of ``estctl`` that give commands: what is asked for, and how answers are shown."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estclient.operators.client import Operator, connect
from estclient.operators.settings import OperatorSettings
from estcore.clock import SystemClock
from estcore.pki.crl import REVOCATION_REASONS
from estcore.pki.durations import parse_duration
from estcore.runtime.settings import load_settings

SIGNER = "ca-signer"
_PAGE = 200
"""Certificates an answer carries: with some 2 kB each it stays below the bus's 1 MiB."""
_OWN = {"verb", "kind", "action", "config", "json", "command", "nats_url", "nats_seed"} | {
    "out",
    "form",
    "operator_certificate",
    "operator_key",
}


def add_verbs(verbs: Any) -> None:
    """Add ``requests``, ``incident``, ``cert`` and ``ca`` to the parsers of ``estctl``."""
    requests = verbs.add_parser("requests", help="requests that wait for an operator")
    actions = requests.add_subparsers(dest="action", required=True)
    waiting = _action(actions, "list", "request-list", "those that wait, oldest first")
    waiting.add_argument("--tenant")
    waiting.add_argument("--service")
    waiting.add_argument("--all", action="store_true", default=None, help="decided ones as well")
    waiting.add_argument("--limit", type=int, default=50)
    for name in ("approve", "reject"):
        one = _action(actions, name, f"request-{name}", f"{name} one request")
        one.add_argument("--id", required=True, help="as listed")
        one.add_argument("--reason", help="for the record; the client reads why it was rejected")
    _incidents(verbs)
    cert = verbs.add_parser("cert", help="look up certificates, revoke and hold them")
    actions = cert.add_subparsers(dest="action", required=True)
    show = _action(actions, "show", "certificate-show", "one certificate of the ledger")
    _one(show)
    listing = _action(actions, "list", "certificate-list", "certificates, newest first")
    _conditions(listing)
    listing.add_argument("--after", help="next of the page before")
    listing.add_argument("--limit", type=int, default=50)
    export = _action(actions, "export", "certificate-list", "all that a list would show, to a file")
    _conditions(export)
    export.add_argument("--out", type=Path, required=True)
    export.add_argument("--form", choices=("jsonl", "pem"), default="jsonl")
    revoke = _action(actions, "revoke", "certificate-revoke", "revoke a certificate for good")
    _one(revoke)
    revoke.add_argument("--reason", required=True, choices=REVOCATION_REASONS)
    hold = _action(actions, "hold", "certificate-hold", "revoke until released")
    _one(hold)
    unhold = _action(actions, "unhold", "certificate-unhold", "release what is held")
    _one(unhold)
    _add_rollover(verbs)
    _add_submissions(verbs)


def _add_rollover(verbs: Any) -> None:
    kinds = verbs.add_parser("ca", help="certification authorities").add_subparsers(
        dest="kind", required=True
    )
    rollover = kinds.add_parser("rollover", help="from one generation of an issuer to the next")
    actions = rollover.add_subparsers(dest="action", required=True)
    texts = {
        "plan": "name the generation that is to sign",
        "publish": "show its chain in /cacerts",
        "sign": "let it sign",
        "retire": "end the overlap with the old one",
        "rollback": "give up what does not sign yet",
        "status": "where it is, and who has fetched the new trust",
    }
    made = {}
    for name, text in texts.items():
        made[name] = _action(actions, name, f"rollover-{name}", text)
        made[name].add_argument("--issuer", required=True, help="the issuer that labels name")
    made["plan"].add_argument("--to", required=True, help="id of the new generation")
    made["sign"].add_argument(
        "--min-fetched",
        type=int,
        metavar="PERCENT",
        help="of the slots must have fetched the new trust; default all",
    )
    made["retire"].add_argument(
        "--left-behind",
        type=int,
        metavar="N",
        help="slots that may have nothing but certificates of the old one; default none",
    )
    status = made["status"]
    status.add_argument("--lacking", action="store_true", default=None, help="who has not fetched")
    status.add_argument("--after", help="the next page, as the last one said")
    status.add_argument("--limit", type=int, default=50)


def _incidents(verbs: Any) -> None:
    parser = verbs.add_parser("incident", help="revoke many certificates, by two operators")
    actions = parser.add_subparsers(dest="action", required=True)
    propose = _action(actions, "propose", "incident-propose", "select; nothing is revoked yet")
    for name in ("issuer", "profile", "tenant", "service", "team", "cluster"):
        propose.add_argument(f"--{name}")
    propose.add_argument("--name", help="a SAN entry or subject value, exactly")
    propose.add_argument("--key-sha256", type=_hex, help="SHA-256 of the public key")
    propose.add_argument("--key-algorithm", help="as ec-p256, rsa-2048")
    propose.add_argument("--issued-before", type=_moment, help="ISO 8601")
    propose.add_argument("--issued-after", type=_moment, help="ISO 8601")
    propose.add_argument("--reason", required=True, choices=REVOCATION_REASONS)
    propose.add_argument("--per-minute", type=int, help="pace; default 600")
    show = _action(actions, "show", "incident-show", "who is concerned, and how far it is")
    confirm = _action(actions, "confirm", "incident-confirm", "by another operator: revoke them")
    confirm.add_argument("--count", type=int, required=True, help="of certificates, as shown")
    stop = _action(actions, "stop", "incident-stop", "revoke no more of them")
    for one in (show, confirm, stop):
        one.add_argument("--id", required=True)
    listing = _action(actions, "list", "incident-list", "incidents, newest first")
    listing.add_argument("--limit", type=int, default=20)


def _add_submissions(verbs: Any) -> None:
    parser = verbs.add_parser("submissions", help="what another CA was asked and nobody knows")
    actions = parser.add_subparsers(dest="action", required=True)
    listing = _action(actions, "list", "submission-list", "those that wait for a person")
    listing.add_argument("--issuer", help="issuer id")
    listing.add_argument("--state", help="instead of unknown: pending, quarantined, …")
    listing.add_argument("--limit", type=int, default=50)
    for name, text in (
        ("retry", "nothing was issued: send it again when the client comes back"),
        ("adopt", "this certificate was issued for it"),
        ("abandon", "nobody wants it any more"),
    ):
        one = _action(actions, name, f"submission-{name}", text)
        one.add_argument("--id", required=True, help="as listed")
        one.add_argument("--reason", help="for the record")
        if name == "adopt":
            one.add_argument(
                "--certificate",
                type=_certificate,
                required=True,
                help="the certificate, PEM or DER",
            )


def _certificate(text: str) -> str:
    octets = Path(text).read_bytes()
    if octets.lstrip().startswith(b"-----BEGIN"):
        octets = x509.load_pem_x509_certificate(octets).public_bytes(Encoding.DER)
    return octets.hex()


def _action(actions: Any, name: str, command: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text)
    parser.set_defaults(command=command)
    parser.add_argument("--config", type=Path, help="YAML settings; or ESTCTL_CONFIG")
    parser.add_argument("--operator-certificate", type=Path, help="instead of certificate_file")
    parser.add_argument("--operator-key", type=Path, help="instead of key_file")
    parser.add_argument("--nats-url", help="instead of bus.url")
    parser.add_argument("--nats-seed", type=Path, help="instead of bus.nkey_seed_file")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    return parser


def _one(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--serial", type=_hex, help="serial number, hexadecimal")
    which.add_argument("--fingerprint", type=_hex, help="SHA-256 of the certificate, hexadecimal")
    parser.add_argument("--issuer", help="issuer id, where several have this serial number")


def _conditions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", help="SAN entry or subject value; one * first or last")
    parser.add_argument("--serial", type=_hex, help="serial number, hexadecimal")
    for name in ("issuer", "profile", "tenant", "service", "team", "cluster"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--state", choices=("good", "expired", "revoked", "held"))
    parser.add_argument("--expires-within", type=_within, help="as 30d; good ones, by expiry")
    parser.add_argument("--expires-before", type=_moment, help="ISO 8601; by expiry")
    parser.add_argument("--expires-after", type=_moment, help="ISO 8601; by expiry")


def _moment(text: str) -> str:
    moment = dt.datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).isoformat()


def _within(text: str) -> dt.timedelta:
    return parse_duration(text)


def _hex(text: str) -> str:
    plain = text.replace(":", "").lower()
    int(plain, 16)
    return plain


async def run(parsed: argparse.Namespace, home: Path, environ: Mapping[str, str]) -> None:
    """Give the command and print what came of it.

    Raises:
        ConfigurationError: settings, certificate or key cannot be used.
        RequestRejected: refused.
        Unavailable: no answer, or not now.
    """
    arguments = {k: v for k, v in vars(parsed).items() if k not in _OWN and v is not None}
    _soon(arguments, SystemClock().now())
    operator, bus = await connect(_settings(parsed, home, environ), SystemClock())
    try:
        if parsed.action == "export":
            await _export(operator, arguments, parsed.out, parsed.form)
            return
        result = await operator.send(SIGNER, parsed.command, arguments)
    finally:
        await bus.close()
    sys.stdout.write(json.dumps(result, indent=1) + "\n" if parsed.json else shown(result))


def _soon(arguments: dict[str, Any], now: dt.datetime) -> None:
    within = arguments.pop("expires_within", None)
    if within is not None:
        arguments |= {"expires_after": now.isoformat(), "state": "good"}
        arguments["expires_before"] = (now + within).isoformat()


async def _export(operator: Operator, arguments: dict[str, Any], out: Path, form: str) -> None:
    """Write every page; a file that is not whole is not left behind."""
    partial, count = out.with_name(out.name + ".partial"), 0
    asked = {**arguments, "limit": _PAGE, "with_certificate": form == "pem"}
    with partial.open("w", encoding="utf-8") as file:
        while True:
            page = await operator.send(SIGNER, "certificate-list", asked)
            for row in page["certificates"]:
                file.write(_pem(row["certificate"]) if form == "pem" else json.dumps(row) + "\n")
            count += len(page["certificates"])
            if page["next"] is None:
                break
            asked["after"] = page["next"]
    partial.replace(out)
    sys.stdout.write(f"{count} certificates in {out}\n")


def _settings(
    parsed: argparse.Namespace, home: Path, environ: Mapping[str, str]
) -> OperatorSettings:
    local = home / "config" / "operator.yaml"
    path = parsed.config
    if path is None and "ESTCTL_CONFIG" not in environ and local.exists():
        path = local
    given = {
        "ESTCTL__BUS__URL": parsed.nats_url,
        "ESTCTL__BUS__NKEY_SEED_FILE": parsed.nats_seed,
        "ESTCTL__CERTIFICATE_FILE": parsed.operator_certificate,
        "ESTCTL__KEY_FILE": parsed.operator_key,
    }
    said = {name: json.dumps(str(value)) for name, value in given.items() if value is not None}
    return load_settings(OperatorSettings, "ESTCTL", path, {**environ, **said})


def shown(result: Mapping[str, Any]) -> str:
    """Return a result as lines for people."""
    for name in ("requests", "certificates", "incidents", "submissions"):
        if name in result:
            more = f"next page: --after {result['next']}\n" if result.get("next") else ""
            return ("".join(_line(row) for row in result[name]) or "none\n") + more
    lines = []
    for name, value in result.items():
        if name in {"rollovers", "generations", "lacking", "owners", "some"}:
            lines += [f"{name}:\n", *(f"  {_line(row)}" for row in value)]
        elif name == "certificate":
            lines.append(_pem(value))
        else:
            lines.append(f"{name:12} {_text(value)}\n")
    return "".join(lines)


def _pem(der_hex: str) -> str:
    der = bytes.fromhex(der_hex)
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode()


def _line(row: Mapping[str, Any]) -> str:
    return "  ".join(f"{k}={_text(v)}" for k, v in row.items() if v not in (None, [])) + "\n"


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
