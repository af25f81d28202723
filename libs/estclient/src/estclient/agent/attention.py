"""Failures that an agent cannot overcome by itself: an operator has to act.

A final refusal by a server (RFC 9110 sections 15.5.1 to 15.5.4) repeats itself for the same
request. The agent then needs attention: it says why, and tries again at long pauses only, since an
operator may correct the cause at the server. Excepted are refusals that time or a new request
can end.
"""

from __future__ import annotations

from dataclasses import dataclass

from estclient.errors import CredentialMissing, OutputFailed, ServerRefused, TokenRefused
from estcore.errors import ConfigurationError, ESTSuiteError

_FINAL = frozenset({400, 401, 403, 404, 405, 415, 501})
_PASSING = frozenset(
    {
        "auth.certificate_not_yet_valid",
        "auth.dpop",
        "auth.replayed",
        "auth.token_expired",
        "auth.token_key",
        "auth.token_not_yet_valid",
        "policy.quota",
        "proof.time",
        "request.timeout",
    }
)
"""Codes of refusals that end by themselves: a new token, a clock, a new day."""


@dataclass(frozen=True)
class Attention:
    """Why an operator has to act: the stable code, and one line."""

    code: str
    reason: str


def attention_for(error: BaseException) -> Attention | None:
    """Return why the error needs an operator; None for one that may pass."""
    match error:
        case ServerRefused():
            code = error.server_code or error.code
            if error.status not in _FINAL or code in _PASSING:
                return None
            return Attention(code, error.reason)
        case CredentialMissing() | TokenRefused() | OutputFailed() | ConfigurationError():
            assert isinstance(error, ESTSuiteError)  # noqa: S101 - for the type checker
            return Attention(error.code, error.reason)
        case _:
            return None
