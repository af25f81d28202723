"""What goes wrong at the client's end.

ESTClientError
├── ServerRefused      the server said no, with its text
│   ├── RenewalInfoUnknown   404: it has no renewal information about this certificate
│   └── RenewalInfoExpired   410: this certificate has expired
├── TokenRefused       no access token: the authorization server said no
├── ServerAway         no server answered, or all answered "retry later"
├── StillPending       202 for longer than we wait
├── AnswerInvalid      an answer that is not what we asked for
├── BundleInvalid      key, certificate and chain do not fit together
├── TokenFailed        the PKCS#11 token with the key is not there, or failed
├── OutputFailed       a file for the service cannot be written as the settings say
├── CredentialMissing  no credential that can be used, and none can be asked for
└── NotInUse           the service does not present its new certificate
"""

from __future__ import annotations

import re

from estcore.errors import ESTSuiteError

_CODE = re.compile(r"\[([a-z_]{1,40}\.[a-z0-9_]{1,60})\]\s*$")


class ESTClientError(ESTSuiteError):
    """Root of the client's errors."""

    default_code = "client.error"


class ServerRefused(ESTClientError):
    """The server refused; ``reason`` is its text."""

    default_code = "client.refused"

    def __init__(self, status: int, text: str, *, correlation_id: str | None = None) -> None:
        super().__init__(f"the server answers {status}: {text}" if text else f"status {status}")
        self.status, self.text, self.correlation_id = status, text, correlation_id

    @property
    def server_code(self) -> str | None:
        """The stable code in brackets at the end of the server's text; None without one."""
        match = _CODE.search(self.text)
        return match[1] if match else None


class TokenRefused(ESTClientError):
    """The authorization server refuses the client, or its answer has no access token."""

    default_code = "client.token_refused"


class RenewalInfoUnknown(ServerRefused):
    """The server has no renewal information about the certificate; renew by the own clock."""

    default_code = "client.renewal_info_unknown"


class RenewalInfoExpired(ServerRefused):
    """The certificate has expired, so it cannot renew itself; enroll by other credentials."""

    default_code = "client.renewal_info_expired"


class _Later(ESTClientError):
    """The same may succeed later; ``retry_after_s`` is when, if the server said so."""

    def __init__(self, reason: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class ServerAway(_Later):
    """No server answered, or each asked to come back later than we wait."""

    default_code = "client.server_away"


class StillPending(_Later):
    """The request waits for approval longer than this client does."""

    default_code = "client.pending"


class AnswerInvalid(ESTClientError):
    """The answer is not a certificate for the key that asked."""

    default_code = "client.answer_invalid"


class BundleInvalid(ESTClientError):
    """A credential that must not be put into use."""

    default_code = "client.bundle_invalid"


class CredentialMissing(ESTClientError):
    """No credential that can be used now, and no bootstrap to get one with."""

    default_code = "client.no_credential"


class NotInUse(ESTClientError):
    """The service was not seen with its new certificate."""

    default_code = "client.not_in_use"


class OutputFailed(ESTClientError):
    """A file for the service cannot be written as the settings say."""

    default_code = "agent.output"


class TokenFailed(ESTClientError):
    """The PKCS#11 token that holds the key is not there, or failed."""

    default_code = "client.pkcs11"
