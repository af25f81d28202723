"""Access tokens for a first enrollment: from a file, or by client credentials (RFC 6749).

- A file is read at each request, since the kubelet replaces a projected token while it runs.
- Client credentials (section 4.4) authenticate by a secret (HTTP Basic, section 2.3.1) or by a JWT
  that a private key signs (RFC 7523 section 2.2). The request carries a DPoP proof; where the
  answer says ``token_type: DPoP`` the token is used with proofs of the same key (RFC 9449).
- A token is requested for each enrollment and kept nowhere.
"""

from __future__ import annotations

import base64
import json
import secrets
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import aiohttp

from estclient.errors import ServerAway, TokenRefused
from estclient.est.dpop import DPoPKey
from estclient.est.keys import load_key
from estclient.est.response_body import read_limited
from estcore.clock import Clock
from estcore.errors import ConfigurationError, in_words
from estcore.pki.jws import sign_compact
from estcore.runtime.secret_files import read_secret, read_secret_octets

_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_ASSERTION_S = 60
_LIMIT = 1 << 16
_MAX_TOKEN = 8192
_OK = 200
_LATER = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True)
class AccessToken:
    """A token; ``dpop`` is the key it is bound to, None for a bearer token."""

    text: str
    dpop: DPoPKey | None = None


@dataclass(frozen=True)
class ClientCredentials:
    """A client of an authorization server; it has a secret or a private key."""

    token_url: str
    client_id: str
    client_secret_file: Path | None = None
    private_key_file: Path | None = None
    scope: str | None = None
    audience: str | None = None
    ca_file: Path | None = None
    dpop: bool = True
    timeout_s: float = 15


def token_in_file(file: Path, *, mode_is_ours: bool) -> AccessToken:
    """Return the bearer token in a file.

    ``mode_is_ours``: an operator made the file, so others may not read it; the kubelet, not an
    operator, chooses the mode of a projected token.

    Raises:
        ConfigurationError: the file cannot be read, or others may read it.
        TokenRefused: it holds no token.
    """
    if mode_is_ours:
        return AccessToken(_checked(read_secret(file, "the access token"), str(file)))
    try:
        with file.open("rb") as opened:
            octets = opened.read(_MAX_TOKEN + 1)
    except OSError as exc:
        raise ConfigurationError(f"cannot read the access token: {in_words(exc)}") from exc
    return AccessToken(_checked(octets.decode("utf-8", "replace").strip(), str(file)))


async def request_token(client: ClientCredentials, clock: Clock) -> AccessToken:
    """Request a token of the token endpoint.

    Raises:
        ConfigurationError: a file cannot be read.
        TokenRefused: the endpoint refuses the client, or its answer has no token.
        ServerAway: the endpoint does not answer, or asks for a later attempt.
    """
    key = DPoPKey() if client.dpop else None
    answer = await _send(client, key, clock)
    if answer.wants_nonce:
        answer = await _send(client, key, clock)
    found = _object(answer.body)
    if answer.status in _LATER:
        raise ServerAway(f"{client.token_url} answers {answer.status}")
    if answer.status != _OK:
        error = str(found.get("error") or "no error code")[:100]
        raise TokenRefused(f"{client.token_url} answers {answer.status}: {error}")
    token = _checked(found.get("access_token"), client.token_url)
    bound = str(found.get("token_type", "")).lower() == "dpop"
    return AccessToken(token, key if bound else None)


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes
    wants_nonce: bool


async def _send(client: ClientCredentials, key: DPoPKey | None, clock: Clock) -> _Answer:
    form, headers = _request(client, clock)
    url = client.token_url
    if key is not None:
        headers["DPoP"] = key.proof("POST", url, now=clock.now())
    timeout = aiohttp.ClientTimeout(total=client.timeout_s)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(
                url, data=form, headers=headers, ssl=_tls(client), allow_redirects=False
            ) as response,
        ):
            body = await read_limited(response, _LIMIT)
            new = key is not None and key.keep_nonce(url, response.headers.get("DPoP-Nonce"))
            return _Answer(response.status, body, new and response.status != _OK)
    except (aiohttp.ClientError, TimeoutError, OSError) as exc:
        raise ServerAway(f"{url}: {str(exc) or in_words(exc)}") from exc


def _request(client: ClientCredentials, clock: Clock) -> tuple[dict[str, str], dict[str, str]]:
    """Return form and header fields that authenticate the client."""
    form = {"grant_type": "client_credentials"}
    form |= {"scope": client.scope} if client.scope else {}
    form |= {"audience": client.audience} if client.audience else {}
    headers = {"Accept": "application/json"}
    if client.private_key_file is not None:
        assertion = _assertion(client, client.private_key_file, clock)
        form |= {"client_assertion_type": _ASSERTION, "client_assertion": assertion}
        return form | {"client_id": client.client_id}, headers
    if client.client_secret_file is None:
        raise ConfigurationError("the token client has neither a secret nor a private key")
    secret = read_secret(client.client_secret_file, "the client secret")
    pair = f"{quote_plus(client.client_id)}:{quote_plus(secret)}"
    headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode("ascii")
    return form, headers


def _assertion(client: ClientCredentials, file: Path, clock: Clock) -> str:
    now = int(clock.now().timestamp())
    claims = {
        "iss": client.client_id,
        "sub": client.client_id,
        "aud": client.token_url,
        "jti": secrets.token_urlsafe(18),
        "iat": now,
        "exp": now + _ASSERTION_S,
    }
    key = load_key(read_secret_octets(file, "the private key of the token client"))
    return sign_compact(json.dumps(claims).encode(), key, {"typ": "JWT"})


def _tls(client: ClientCredentials) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=client.ca_file)
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"cannot read the roots for the token endpoint: {exc}") from exc


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _checked(token: object, place: str) -> str:
    """Return a token that fits into a header field."""
    if not isinstance(token, str) or not 0 < len(token) <= _MAX_TOKEN:
        raise TokenRefused(f"{place} has no access token of at most {_MAX_TOKEN} characters")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise TokenRefused(f"the access token of {place} has characters that no token has")
    return token
