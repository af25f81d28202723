"""The command line of ``ca-signer token …``: list keys, make one, ask for its CA certificate.

Needs no settings, bus or database: it runs where the token is, beside the ceremony.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

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
from estcore.errors import ConfigurationError, ESTSuiteError, KeyStoreUnavailable, WeakKey
from estcore.pki.keys import KEY_ALGORITHMS, key_algorithm
from estcore.pki.profile import parse_model
from estcore.runtime.settings import read_secret

_TIMEOUT_S = 120.0  # an RSA key takes its time in small tokens


def main(arguments: Sequence[str]) -> int:
    """Carry out a verb; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        asyncio.run(_run(parsed))
    except ConfigurationError as exc:
        sys.stderr.write(f"ca-signer: {exc.reason} [{exc.code}]\n")
        return 2
    except ESTSuiteError as exc:
        sys.stderr.write(f"ca-signer: {exc.reason} [{exc.code}]\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ca-signer token")
    verbs = parser.add_subparsers(dest="verb", required=True)
    every = verbs.add_parser("list", help="list the token's private keys")
    make = verbs.add_parser("generate", help="make a key that never leaves the token")
    make.add_argument("--algorithm", choices=KEY_ALGORITHMS, default="ec-p256")
    ask = verbs.add_parser("csr", help="make a request for a CA certificate of a key")
    ask.add_argument("--subject", required=True, help="RFC 4514, for example CN=Issuing CA,O=Org")
    ask.add_argument("--out", type=Path, required=True)
    for one in (every, make, ask):
        one.add_argument("--module", required=True, help="the PKCS#11 module")
        name = one.add_mutually_exclusive_group(required=True)
        name.add_argument("--label", help="the token's label")
        name.add_argument("--serial", help="its serial number")
        one.add_argument("--pin-file", required=True)
    for one in (make, ask):
        one.add_argument("--key-id", required=True, help="CKA_ID, hex")
        one.add_argument("--key-label")
    return parser


async def _run(parsed: argparse.Namespace) -> None:
    raw = {
        "module": parsed.module,
        "label": parsed.label,
        "serial": parsed.serial,
        "pin_file": parsed.pin_file,
        "key_id": getattr(parsed, "key_id", "00"),
        "key_label": getattr(parsed, "key_label", None),
    }
    settings = parse_model(TokenSettings, raw, Path("the command line"))
    check_token(settings)
    async with _opened(settings, write=parsed.verb == "generate") as link:
        if parsed.verb == "list":
            for key in decode_keys(_expect(await link.request(Kind.LIST), Kind.KEYS).body):
                sys.stdout.write(_line(key))
        elif parsed.verb == "generate":
            await _generate(link, settings, parsed.algorithm)
        else:
            await _request(link, settings, subject=parsed.subject, out=parsed.out)


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


def _line(key: Key) -> str:
    public_key = signatures.public_key(key)
    try:
        algorithm = key_algorithm(public_key) if public_key is not None else key.kind
    except WeakKey as exc:
        algorithm = f"unusable: {exc.reason}"
    leaves = "may leave the token" if key.extractable or not key.sensitive else "stays"
    return f"{key.key_id}\t{algorithm}\t{leaves}\t{key.label}\n"


async def _generate(link: WorkerProcess, settings: TokenSettings, algorithm: str) -> None:
    request = Generate(settings.key_id, settings.key_label or "", algorithm)
    answer = await link.request(Kind.GENERATE, request.encode())
    key = Key.decode(_expect(answer, Kind.KEY).body)
    if key.extractable or not key.sensitive:
        raise ConfigurationError("the token made a key that may leave it", code="keystore.key")
    sys.stdout.write(_line(key))


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
