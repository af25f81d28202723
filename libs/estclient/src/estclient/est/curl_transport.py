"""HTTPS with a client key in a PKCS#11 token, by curl and OpenSSL's engine ``pkcs11``.

Python's ``ssl`` takes a client key from a file only. curl takes it from a token by its URI
(``--engine pkcs11 --key-type ENG``). All options go to curl by standard input, and the PIN by the
path of its file, so a list of processes shows neither. Only ``trust`` is trusted: the system's
folder of roots is replaced by an empty one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from urllib.parse import quote

from estclient.est.token import ClientToken
from estclient.est.token_key import TokenKey
from estcore.errors import ConfigurationError

_NO_ENGINE = frozenset({53, 54, 58, 66})
"""Exit codes of curl: the engine is missing or failed, or the key cannot be used."""


@dataclass(frozen=True)
class TokenCredential:
    """A certificate chain in a file, and its key in a token."""

    chain: Path
    key: TokenKey
    token: ClientToken


@dataclass(frozen=True)
class CurlAnswer:
    """Status, header fields and body."""

    status: int
    headers: Message
    body: bytes


async def curl_request(  # noqa: PLR0913 - the parts of a request
    credential: TokenCredential,
    trust: bytes,
    *,
    method: str,
    url: str,
    headers: dict[str, str],
    body: bytes | None,
    timeout_s: float,
    limit: int,
) -> CurlAnswer:
    """Send one request.

    Raises:
        ConnectionError: no answer.
        ConfigurationError: curl or its engine are missing, or the PIN is wrong.
        TokenFailed: the token is not there.
    """
    await credential.token.check()
    with tempfile.TemporaryDirectory(prefix="estctl-") as name:  # mode 0700
        folder = Path(name)
        (folder / "roots").mkdir()
        (folder / "trust.pem").write_bytes(trust)
        source = quote(str(credential.token.pin_file.absolute()), safe="/")
        options: list[tuple[str, str]] = [
            ("url", url),
            ("request", method),
            ("proto", "=https"),
            ("noproxy", "*"),
            ("http1.1", ""),
            ("tlsv1.2", ""),
            ("cacert", str(folder / "trust.pem")),
            ("capath", str(folder / "roots")),
            ("cert", str(credential.chain)),
            ("engine", "pkcs11"),
            ("key-type", "ENG"),
            ("key", f"{credential.key.uri}?pin-source=file:{source}"),
            ("max-time", f"{timeout_s:.0f}"),
            ("max-filesize", str(limit)),
            ("dump-header", str(folder / "head")),
            ("output", str(folder / "body")),
            ("silent", ""),
            ("show-error", ""),
            # Fields that curl would add by itself.
            *(("header", f"{field}:") for field in ("Content-Type", "Expect", "User-Agent")),
            *(("header", f"{field}: {value}") for field, value in headers.items()),
        ]
        if body is not None:
            (folder / "sent").write_bytes(body)
            options.append(("data-binary", f"@{folder / 'sent'}"))
        await _run(options, credential.token.module, timeout_s)
        return _answer(folder, limit)


async def _run(options: list[tuple[str, str]], module: Path, timeout_s: float) -> None:
    curl = shutil.which("curl")
    if curl is None:
        raise ConfigurationError("a client key in a token needs curl", code="client.pkcs11_tls")
    process = await asyncio.create_subprocess_exec(
        curl, "--disable", "--config", "-",
        env=os.environ | {"PKCS11_MODULE_PATH": str(module)},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    text = "".join(
        f"{name}\n" if not value else f"{name} = {_quoted(value)}\n" for name, value in options
    )
    try:
        async with asyncio.timeout(timeout_s + 5):
            _, error = await process.communicate(text.encode())
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode in _NO_ENGINE:
        raise ConfigurationError(
            f"curl cannot use the key in the token: {_line(error)}; is OpenSSL's engine pkcs11 "
            "installed (libengine-pkcs11-openssl)?",
            code="client.pkcs11_tls",
        )
    if process.returncode != 0:
        raise ConnectionError(_line(error))


def _answer(folder: Path, limit: int) -> CurlAnswer:
    blocks = [b for b in (folder / "head").read_bytes().split(b"\r\n\r\n") if b]
    status, _, fields = blocks[-1].partition(b"\r\n")
    words = status.split()
    if len(words) < 2 or not words[1].isdigit():  # noqa: PLR2004 - version and status
        raise ConnectionError("the answer has no status line")
    file = folder / "body"
    body = file.read_bytes() if file.exists() else b""
    if len(body) > limit:
        raise ConnectionError(f"the answer has more than {limit} bytes")
    return CurlAnswer(int(words[1]), BytesParser().parsebytes(fields, headersonly=True), body)


def _quoted(value: str) -> str:
    """Return a value of curl's configuration file; nothing in it begins another option."""
    if not value.isprintable():
        raise ConfigurationError("a path or URL has characters that curl does not take")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _line(error: bytes) -> str:
    return " ".join(error.decode("utf-8", "replace").split())[:200] or "curl failed"
