"""The command line of ``ca-signer token …``: list keys, make one, ask for its CA certificate.

Needs no settings, bus or database: it runs where the token is, beside the ceremony.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from ca_signer.settings import TokenSettings
from ca_signer.signing import signatures
from ca_signer.signing.hsm import csr
from ca_signer.signing.hsm.protocol import (
    Find,
    Frame,
    Generate,
    Key,
    Kind,
    Open,
    decode_keys,
    encode_sign,
)
from ca_signer.signing.hsm.worker_process import WORKER, Answer, WorkerProcess, explained, failed
from ca_signer.signing.issuers import check_token
from estcore.errors import ConfigurationError, KeyStoreUnavailable, WeakKey
from estcore.pki.keys import KEY_ALGORITHMS, key_algorithm
from estcore.pki.profile import parse_model
from estcore.runtime.command_line import PATH, Group, options
from estcore.runtime.settings import read_secret
from estcore.runtime.terminal import write_fields

T = TypeVar("T")
Where = Mapping[str, str | None]
token = Group("token")
_TIMEOUT_S = 120.0  # an RSA key takes its time in small tokens


def _token_options(function: Callable[..., T]) -> Callable[..., T]:
    """Decorate a verb with the options that name a token; it gets them as ``where``."""

    @functools.wraps(function)
    def packed(**values: Any) -> T:
        names = ("module", "label", "serial", "pin_file")
        return function(where={name: values.pop(name) for name in names}, **values)

    return options(
        click.option("--module", required=True, help="PKCS#11 module, a shared library."),
        click.option("--label", help="Label of the token."),
        click.option("--serial", help="Serial number of the token."),
        click.option("--pin-file", required=True, help="File with the PIN of the token."),
    )(packed)


_key_options = options(
    click.option("--key-id", required=True, help="CKA_ID of the key, hexadecimal."),
    click.option("--key-label", help="CKA_LABEL of the key."),
)
_ONE_TOKEN = {"one_of": ("label", "serial")}


@token.command("list", **_ONE_TOKEN)
@_token_options
def _list(where: Where) -> None:
    """List the private keys of a token."""

    async def carry_out() -> None:
        async with _opened(_settings(where), write=False) as link:
            for key in decode_keys(_expect(await link.request(Kind.LIST), Kind.KEYS).body):
                write_fields(*_columns(key))

    asyncio.run(carry_out())


@token.command("generate", **_ONE_TOKEN)
@click.option(
    "--algorithm",
    type=click.Choice(KEY_ALGORITHMS),
    default="ec-p256",
    help="Algorithm of the key.",
)
@_token_options
@_key_options
def _generate_key(algorithm: str, where: Where, key_id: str, key_label: str | None) -> None:
    """Generate a key that never leaves the token."""

    async def carry_out() -> None:
        settings = _settings(where, key_id, key_label)
        async with _opened(settings, write=True) as link:
            await _generate(link, settings, algorithm)

    asyncio.run(carry_out())


@token.command("csr", **_ONE_TOKEN)
@click.option("--subject", required=True, help="RFC 4514, for example CN=Issuing CA,O=Org.")
@click.option("--out", type=PATH, required=True, help="File to write the request to, PEM.")
@_token_options
@_key_options
def _csr(subject: str, out: Path, where: Where, key_id: str, key_label: str | None) -> None:
    """Write a request for a CA certificate, signed by a key of the token."""

    async def carry_out() -> None:
        settings = _settings(where, key_id, key_label)
        async with _opened(settings, write=False) as link:
            await _request(link, settings, subject=subject, out=out)

    asyncio.run(carry_out())


def _settings(where: Where, key_id: str = "00", key_label: str | None = None) -> TokenSettings:
    raw = {**where, "key_id": key_id, "key_label": key_label}
    settings = parse_model(TokenSettings, raw, Path("the command line"))
    check_token(settings)
    return settings


@asynccontextmanager
async def _opened(settings: TokenSettings, *, write: bool) -> AsyncIterator[WorkerProcess]:
    link = await WorkerProcess.start(
        WORKER, timeout_s=_TIMEOUT_S, lost=lambda _link, _error: None, took=lambda _seconds: None
    )
    try:
        request = Open(
            module=str(settings.module),
            label=settings.label or "",
            serial=settings.serial or "",
            pin=read_secret(settings.pin_file, "the PIN of the token"),
            write=write,
        )
        _expect(await link.request(Kind.OPEN, request.encode()), Kind.OPENED)
        yield link
    finally:
        link.fail(KeyStoreUnavailable("done"))
        await link.ended()


def _expect(answer: Answer, kind: Kind) -> Frame:
    if isinstance(answer, KeyStoreUnavailable):
        raise answer
    wrong = failed(answer)
    if wrong is not None:
        raise ConfigurationError(f"the token refuses: {explained(wrong)}", code="keystore.key")
    if answer.kind is not kind:
        raise KeyStoreUnavailable("another answer than asked for", code="keystore.worker")
    return answer


def _columns(key: Key) -> tuple[str, ...]:
    public_key = signatures.public_key(key)
    try:
        algorithm = key_algorithm(public_key) if public_key is not None else key.kind
    except WeakKey as exc:
        algorithm = f"unusable: {exc.reason}"
    leaves = "may leave the token" if key.extractable or not key.sensitive else "stays"
    return key.key_id, algorithm, leaves, key.label


async def _generate(link: WorkerProcess, settings: TokenSettings, algorithm: str) -> None:
    request = Generate(settings.key_id, settings.key_label or "", algorithm)
    answer = await link.request(Kind.GENERATE, request.encode())
    key = Key.decode(_expect(answer, Kind.KEY).body)
    if key.extractable or not key.sensitive:
        raise ConfigurationError("the token made a key that may leave it", code="keystore.key")
    write_fields(*_columns(key))


async def _request(
    link: WorkerProcess, settings: TokenSettings, *, subject: str, out: Path
) -> None:
    find = Find(settings.key_id, settings.key_label or "")
    answer = await link.request(Kind.FIND, find.encode())
    public_key = signatures.public_key(Key.decode(_expect(answer, Kind.KEY).body))
    if public_key is None:
        raise ConfigurationError("the token does not report the public key", code="keystore.key")
    info, algorithm = csr.request_info(subject, public_key)
    body = encode_sign(0, *signatures.for_token(public_key, info))
    raw = _expect(await link.request(Kind.SIGN, body), Kind.SIGNED).body
    try:
        signature = signatures.from_token(public_key, raw)
        signatures.verify(public_key, info, signature)
    except InvalidSignature as exc:
        raise KeyStoreUnavailable(
            "the token gave a wrong signature", code="keystore.wrong_signature"
        ) from exc
    request = csr.assemble(info, algorithm, signature)
    out.write_bytes(request.public_bytes(Encoding.PEM))
