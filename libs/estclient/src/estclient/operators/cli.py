"""Verbs of ``estctl`` that send signed commands to ca-signer: names, options, help.

A verb makes an ``Order``; the context's ``obj`` takes it, or else it is sent.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estclient.operators.connection_options import connection_options
from estclient.operators.orders import Connection, Order, carry_out
from estcore.messages.events import EarlyReason
from estcore.pki.crl import REVOCATION_REASONS
from estcore.pki.durations import parse_duration
from estcore.runtime.command_line import PATH, Command, Converted, Group, given_options

requests = Group("requests")
bulk_revocation = Group("bulk-revocation")
campaign = Group("campaign")
cert = Group("cert")
ca = Group("ca")
rollover = Group("rollover", help="Move an issuer from one generation to the next.")
ca.add_command(rollover)
submissions = Group("submissions")
secret = Group("secret")


Give = Callable[[Order], None]


def _option(name: str, text: str, **more: Any) -> click.Option:
    return click.Option([f"--{name}"], help=text, **more)


def _verb(
    group: Group, name: str, command: str, text: str, *params: click.Parameter, **more: Any
) -> None:
    """Add a verb that sends ``command``, with ``params`` as its arguments."""

    @click.pass_context
    def callback(context: click.Context, /, **values: Any) -> None:
        connection = Connection(**{f.name: values.pop(f.name) for f in fields(Connection)})
        as_json = values.pop("json")
        give: Give = context.obj or carry_out
        give(Order(command, given_options(values), connection, as_json))

    as_json = _option("json", "Print the result as JSON.", is_flag=True)
    everything = [*params, *connection_options(), as_json]
    group.add_command(Command(name, help=text, callback=callback, params=everything, **more))


def _hex(text: str) -> str:
    plain = text.replace(":", "").lower()
    int(plain, 16)
    return plain


def _moment(text: str) -> str:
    moment = dt.datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).isoformat()


def _certificate(text: str) -> str:
    octets = Path(text).read_bytes()
    if octets.lstrip().startswith(b"-----BEGIN"):
        octets = x509.load_pem_x509_certificate(octets).public_bytes(Encoding.DER)
    return octets.hex()


HEX = Converted("hex", _hex)
MOMENT = Converted("time", _moment)
DURATION = Converted("duration", parse_duration)
CERTIFICATE = Converted("file", _certificate)
REASON = click.Choice(REVOCATION_REASONS)
EARLY_REASON = click.Choice(get_args(EarlyReason))


def _id() -> click.Option:
    return _option("id", "Id, as listed.", required=True)


def _limit(default: int = 50) -> click.Option:
    return _option("limit", "At most so many rows.", type=int, default=default)


def _owner_options() -> list[click.Parameter]:
    return [
        _option("issuer", "Issuer id."),
        _option("profile", "Profile."),
        _option("tenant", "Tenant of the owner."),
        _option("service", "Service of the owner."),
        _option("team", "Team of the owner."),
        _option("cluster", "Cluster of the owner."),
    ]


def _selector_options() -> list[click.Parameter]:
    return [
        *_owner_options(),
        _option("name", "SAN entry or subject value, exactly."),
        _option("key-sha256", "SHA-256 of the public key.", type=HEX),
        _option("key-algorithm", "Algorithm of the key, as ec-p256 or rsa-2048."),
        _option("issued-before", "Issued before, ISO 8601.", type=MOMENT),
        _option("issued-after", "Issued after, ISO 8601.", type=MOMENT),
    ]


def _which() -> list[click.Parameter]:
    return [
        _option("serial", "Serial number, hexadecimal.", type=HEX),
        _option("fingerprint", "SHA-256 of the certificate, hexadecimal.", type=HEX),
        _option("issuer", "Issuer id, where several have this serial number."),
    ]


def _conditions() -> list[click.Parameter]:
    return [
        _option("name", "SAN entry or subject value; one * at the beginning or the end."),
        _option("serial", "Serial number, hexadecimal.", type=HEX),
        *_owner_options(),
        _option("state", "State.", type=click.Choice(["good", "expired", "revoked", "held"])),
        _option(
            "expires-within", "Good ones that expire within, as 30d; by expiry.", type=DURATION
        ),
        _option("expires-before", "Expiring before, ISO 8601; by expiry.", type=MOMENT),
        _option("expires-after", "Expiring after, ISO 8601; by expiry.", type=MOMENT),
    ]


_verb(
    requests,
    "list",
    "request-list",
    "List requests awaiting approval, oldest first.",
    _option("tenant", "Tenant of the owner."),
    _option("service", "Service of the owner."),
    _option("all", "List approved and rejected requests too.", is_flag=True),
    _limit(),
)
for _name, _text in (
    ("approve", "Approve a request: its certificate is issued when the client asks again."),
    ("reject", "Reject a request; the client reads the reason."),
):
    _verb(
        requests,
        _name,
        f"request-{_name}",
        _text,
        _id(),
        _option("reason", "Reason, for the audit log."),
    )

_ONE = {"one_of": ("serial", "fingerprint")}
_verb(cert, "show", "certificate-show", "Show a certificate of the ledger.", *_which(), **_ONE)
_verb(
    cert,
    "list",
    "certificate-list",
    "List certificates, newest first.",
    *_conditions(),
    _option("after", "Next page, as the page before said."),
    _limit(),
)
_verb(
    cert,
    "export",
    "certificate-list",
    "Export all certificates that a list would show to a file.",
    *_conditions(),
    _option("out", "File to write.", type=PATH, required=True),
    _option("form", "Form.", type=click.Choice(["jsonl", "pem"]), default="jsonl"),
)
_verb(
    cert,
    "revoke",
    "certificate-revoke",
    "Revoke a certificate permanently.",
    *_which(),
    _option("reason", "Reason code of RFC 5280.", type=REASON, required=True),
    **_ONE,
)
_verb(
    cert,
    "hold",
    "certificate-hold",
    "Revoke a certificate until it is released (certificateHold).",
    *_which(),
    **_ONE,
)
_verb(cert, "unhold", "certificate-unhold", "Release a held certificate.", *_which(), **_ONE)

_verb(
    bulk_revocation,
    "propose",
    "bulk-revocation-propose",
    "Select the certificates to revoke; nothing is revoked yet.",
    *_selector_options(),
    _option("reason", "Reason code of RFC 5280.", type=REASON, required=True),
    _option("per-minute", "Revocations per minute; default 600.", type=int),
)
_verb(
    bulk_revocation,
    "show",
    "bulk-revocation-show",
    "Show the affected certificates and the progress of a bulk revocation.",
    _id(),
)
_verb(
    bulk_revocation,
    "confirm",
    "bulk-revocation-confirm",
    "Confirm a bulk revocation as a second operator: its certificates are revoked.",
    _option("count", "Number of certificates, as shown.", type=int, required=True),
    _id(),
)
_verb(
    bulk_revocation,
    "stop",
    "bulk-revocation-stop",
    "Stop the revocations of a bulk revocation.",
    _id(),
)
_verb(
    bulk_revocation,
    "list",
    "bulk-revocation-list",
    "List bulk revocations, newest first.",
    _limit(20),
)


_verb(
    campaign,
    "propose",
    "campaign-propose",
    "Select the certificates to renew early; no renewal is requested yet.",
    *_selector_options(),
    _option("reason", "Reason that clients receive.", type=EARLY_REASON, required=True),
    _option("explanation-url", "URL of a page that explains it; clients show it."),
    _option("per-minute", "Renewals requested per minute; default 600.", type=int),
    _option("starts-at", "First request, ISO 8601; default at once.", type=MOMENT),
    _option(
        "renew-by",
        "End of the window, ISO 8601; by default each client renews at once.",
        type=MOMENT,
    ),
    _option(
        "revoke",
        "Revoke each replaced certificate after proof of use, for this reason.",
        type=REASON,
    ),
)
_verb(
    campaign,
    "show",
    "campaign-show",
    "Show the certificates and the progress of a campaign.",
    _id(),
    _option("watch", "Print the progress again until the campaign ends.", is_flag=True),
)
_verb(
    campaign,
    "confirm",
    "campaign-confirm",
    "Confirm a campaign: the renewals of its certificates are requested.",
    _option("count", "Number of certificates, as shown.", type=int, required=True),
    _id(),
)
_verb(
    campaign,
    "pause",
    "campaign-pause",
    "Pause a campaign: nothing more is requested or revoked until it is resumed.",
    _id(),
)
_verb(campaign, "resume", "campaign-resume", "Resume a paused campaign.", _id())
_verb(
    campaign,
    "stop",
    "campaign-stop",
    "Stop a campaign: nothing more is requested or revoked.",
    _id(),
)
_verb(campaign, "list", "campaign-list", "List campaigns, newest first.", _limit(20))


def _rollover(name: str, text: str, *params: click.Parameter) -> None:
    issuer = _option("issuer", "Issuer id, as labels name it.", required=True)
    _verb(rollover, name, f"rollover-{name}", text, issuer, *params)


_rollover(
    "plan",
    "Plan the generation that signs next.",
    _option("to", "Id of the new generation.", required=True),
)
_rollover("publish", "Publish the chain of the new generation in /cacerts.")
_rollover(
    "sign",
    "Sign with the new generation.",
    _option(
        "min-fetched",
        "Share of the slots that must have downloaded the new CA certificates; default all.",
        type=int,
        metavar="PERCENT",
    ),
    _option(
        "renew-per-minute",
        "Start a campaign for the certificates of the old generation, at this pace.",
        type=int,
        metavar="N",
    ),
    _option("renew-by", "End of the window of that campaign, ISO 8601.", type=MOMENT),
)
_rollover(
    "retire",
    "Retire the old generation: end the overlap.",
    _option(
        "left-behind",
        "Slots that may hold nothing but certificates of the old generation; default none.",
        type=int,
        metavar="N",
    ),
)
_rollover("rollback", "Cancel a generation that does not sign yet.")
_rollover(
    "status",
    "Show the progress of a rollover and the slots that downloaded the new CA certificates.",
    _option("lacking", "List the slots that have not downloaded them.", is_flag=True),
    _option("after", "Next page, as the page before said."),
    _limit(),
)

_verb(
    secret,
    "create",
    "secret-create",
    "Create an enrollment secret; its answer is sealed, and shown once.",
    _option("id", "Id: the user name of HTTP Basic.", required=True),
    _option("lifetime", "As 36h or 30d.", type=DURATION, default="30d", show_default=True),
    _option("one-time", "The secret serves one enrollment.", is_flag=True),
    _option(
        "secret-file", "File to write the secret to, mode 0600, in place of showing it.", type=PATH
    ),
)
_verb(
    secret,
    "revoke",
    "secret-revoke",
    "Revoke an enrollment secret.",
    _option("id", "Id, as listed.", required=True),
)
_verb(
    secret,
    "list",
    "secret-list",
    "List enrollment secrets by id; never the secrets.",
    _option("after", "Next page, as the page before said."),
    _limit(),
)

_verb(
    submissions,
    "list",
    "submission-list",
    "List upstream submissions that need an operator.",
    _option("issuer", "Issuer id."),
    _option("state", "State instead of unknown: pending, quarantined and others."),
    _limit(),
)
_verb(
    submissions,
    "retry",
    "submission-retry",
    "Send a submission again when the client asks again: nothing was issued for it.",
    _id(),
    _option("reason", "Reason, for the audit log."),
)
_verb(
    submissions,
    "adopt",
    "submission-adopt",
    "Adopt the certificate that the upstream CA issued for a submission.",
    _id(),
    _option("reason", "Reason, for the audit log."),
    _option("certificate", "The certificate, PEM or DER.", type=CERTIFICATE, required=True),
)
_verb(
    submissions,
    "abandon",
    "submission-abandon",
    "Abandon a submission: no client needs it.",
    _id(),
    _option("reason", "Reason, for the audit log."),
)
