"""Options of commands that work on files: which server, which certificate, how to authenticate."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from estclient.est.client import ESTClient
from estclient.files.credential_files import CredentialFiles
from estclient.files.enrollment import Server, check_pair
from estcore.clock import Clock
from estcore.errors import ConfigurationError
from estcore.pki.durations import parse_duration
from estcore.runtime.command_line import PATH, Converted, options
from estcore.runtime.settings import read_secret

Function = Callable[..., Any]
_WAIT = "300s"
_AUTHENTICATION = ("user", "secret_file", "token_file", "identity", "identity_key")


def with_server(function: Function) -> Function:
    """Give a verb the options of a server; it receives ``server``."""

    @wraps(function)
    def call(
        urls: tuple[str, ...], trust: Path, label: str | None, wait: Any, **values: Any
    ) -> Any:
        return function(server=Server(urls, trust, label, wait.total_seconds()), **values)

    return options(
        click.option(
            "--url",
            "urls",
            multiple=True,
            required=True,
            envvar="EST_URL",
            help="Front end: https://host[:port]; repeatable. Or EST_URL.",
        ),
        click.option(
            "--trust",
            type=PATH,
            required=True,
            envvar="EST_TRUST",
            help="Root certificate, PEM; estctl trust fetches it. Or EST_TRUST.",
        ),
        click.option(
            "--label", envvar="EST_LABEL", help="Label; none is the default. Or EST_LABEL."
        ),
        click.option(
            "--wait",
            type=Converted("duration", parse_duration),
            default=_WAIT,
            help="How long to wait while the request needs an approval.",
        ),
    )(call)


def with_pair(function: Function) -> Function:
    """Give a verb the options of a certificate with its key; it receives ``files``, checked."""

    @wraps(function)
    def call(certificate: Path, key: Path | None, **values: Any) -> Any:
        files = CredentialFiles(certificate, key or key_beside(certificate))
        check_pair(files)
        return function(files=files, **values)

    return options(
        click.option("--certificate", type=PATH, required=True, help="Certificate, PEM."),
        click.option(
            "--key", type=PATH, help="Its key; default: CERTIFICATE with the ending .key."
        ),
    )(call)


def with_authentication(function: Function) -> Function:
    """Give a verb the options of a first certificate; it receives ``connect``."""

    @wraps(function)
    def call(**values: Any) -> Any:
        given = {name: values.pop(name) for name in _AUTHENTICATION}

        def connect(server: Server, clock: Clock) -> ESTClient:
            return _client(server, clock, **given)

        return function(connect=connect, **values)

    return options(
        click.option("--user", help="Id of an enrollment secret, or a user's name."),
        click.option(
            "--secret-file", type=PATH, help="Secret or password; without it you are asked."
        ),
        click.option("--token-file", type=PATH, help="Access token to authenticate with."),
        click.option("--identity", type=PATH, help="Certificate to authenticate with, PEM."),
        click.option("--identity-key", type=PATH, help="Key of --identity."),
    )(call)


def key_beside(certificate: Path) -> Path:
    """Return the file with the ending ``.key`` beside a certificate.

    Raises:
        ConfigurationError: the certificate has this ending itself.
    """
    key = certificate.with_suffix(".key")
    if key == certificate:
        raise ConfigurationError(f"{certificate} is named like a key: give --key")
    return key


def _client(
    server: Server,
    clock: Clock,
    *,
    user: str | None,
    secret_file: Path | None,
    token_file: Path | None,
    identity: Path | None,
    identity_key: Path | None,
) -> ESTClient:
    if len([way for way in (user, token_file, identity) if way is not None]) != 1:
        raise ConfigurationError("give one of --user, --token-file, --identity")
    if identity is not None:
        files = CredentialFiles(identity, identity_key or key_beside(identity))
        check_pair(files)
        return server.client(clock, credential=(files.certificate, files.key))
    if token_file is not None:
        return server.client(clock, token=read_secret(token_file, "the access token"))
    assert user is not None  # noqa: S101 - one of the three
    return server.client(clock, secret=(user, _secret(user, secret_file)))


def _secret(user: str, file: Path | None) -> str:
    if file is not None:
        return read_secret(file, "the enrollment secret")
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    return getpass.getpass(f"Secret of {user}: ")
