"""Every error of the suite, in one tree.

    ESTSuiteError
    ├── RequestRejected            the client's fault, final
    │   ├── MalformedRequest       not what the protocol says it must be
    │   ├── InvalidCSR             parses, but its signature or content is wrong
    │   ├── WeakKey                a public key that must not be certified
    │   ├── ProfileViolation       not allowed by the certificate profile
    │   ├── NotAuthenticated       no valid credentials
    │   ├── NotAuthorized          known, but not allowed this
    │   ├── IdentityMismatch       re-enrollment for another identity
    │   └── Conflict               allowed, but not in the present state
    ├── Unavailable                the surroundings' fault, try later
    │   ├── BusUnavailable
    │   ├── LedgerUnavailable
    │   ├── KeyStoreUnavailable
    │   ├── IssuerUnavailable
    │   └── AuditUnavailable
    ├── InvariantBroken            our fault, stop
    │   ├── LintFailed
    │   ├── TBSMismatch
    │   ├── SerialNumberReused
    │   └── AuditChainBroken
    └── ConfigurationError         the operator's, the process does not start

Errors carry data and a stable ``code``. None knows HTTP; est-frontend maps them.
"""

from __future__ import annotations


class ESTSuiteError(Exception):
    """Root of the tree.

    ``code`` is stable and documented in docs/operations/errors.md; ``reason`` is one
    line for a person, lower case, without secrets.
    """

    default_code = "suite.error"

    def __init__(self, reason: str, *, code: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code or self.default_code


class RequestRejected(ESTSuiteError):
    """The request is refused for good; sending the same again is useless."""

    default_code = "request.rejected"


class MalformedRequest(RequestRejected):
    """The bytes are not what the protocol says."""

    default_code = "request.malformed"


class InvalidCSR(RequestRejected):
    """The certification request parses but cannot be accepted."""

    default_code = "csr.invalid"


class WeakKey(RequestRejected):
    """The public key is of a kind or strength that must not be certified."""

    default_code = "key.weak"


class ProfileViolation(RequestRejected):
    """The request asks for something its certificate profile does not allow."""

    default_code = "profile.violation"


class NotAuthenticated(RequestRejected):
    """No credential, or one that proves nothing."""

    default_code = "auth.required"


class NotAuthorized(RequestRejected):
    """The principal is known, but no rule allows this."""

    default_code = "policy.no_rule"


class IdentityMismatch(RequestRejected):
    """RFC 7030 section 4.2.2: the re-enrolled identity is another one."""

    default_code = "reenroll.identity_differs"


class Conflict(RequestRejected):
    """The request collides with recorded state, for example a key bound to another owner."""

    default_code = "request.conflict"


class Unavailable(ESTSuiteError):
    """Something around us is unavailable; the same request may succeed later."""

    default_code = "service.unavailable"


class BusUnavailable(Unavailable):
    """NATS is unavailable, or a stream is full."""

    default_code = "bus.unavailable"


class LedgerUnavailable(Unavailable):
    """The ledger's database is unavailable."""

    default_code = "ledger.unavailable"


class ClockWrong(Unavailable):
    """This machine's clock differs from PostgreSQL's, so no time it gives can be used."""

    default_code = "clock.wrong"


class KeyStoreUnavailable(Unavailable):
    """The store that holds a signing key does not answer."""

    default_code = "keystore.unavailable"


class IssuerUnavailable(Unavailable):
    """The issuer exists but may not sign now."""

    default_code = "issuer.unavailable"


class AuditUnavailable(Unavailable):
    """An audit record could not be made durable."""

    default_code = "audit.unavailable"


class InvariantBroken(ESTSuiteError):
    """Something that cannot happen did; nothing further is done with it."""

    default_code = "invariant.broken"


class LintFailed(InvariantBroken):
    """What our own builder made does not pass lint."""

    default_code = "lint.failed"


class TBSMismatch(InvariantBroken):
    """The signed bytes are not the linted bytes, or the signature does not verify."""

    default_code = "tbs.mismatch"


class SerialNumberReused(InvariantBroken):
    """The unique index on serial numbers refused one."""

    default_code = "serial.reused"


class AuditChainBroken(InvariantBroken):
    """The audit log does not hash to what was signed."""

    default_code = "audit.chain_broken"


class ConfigurationError(ESTSuiteError):
    """The configuration is wrong; the process does not start."""

    default_code = "configuration.invalid"


def in_words(error: BaseException) -> str:
    """Return one line about any error for a person: our reason, or the system's with its path."""
    if isinstance(error, ESTSuiteError):
        return error.reason
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or (
        "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
    )


REJECTIONS: dict[str, type[RequestRejected]] = {
    cls.__name__: cls
    for cls in (
        RequestRejected,
        MalformedRequest,
        InvalidCSR,
        WeakKey,
        ProfileViolation,
        NotAuthenticated,
        NotAuthorized,
        IdentityMismatch,
        Conflict,
    )
}
"""By class name, for rejections that cross the bus."""


def rejection(kind: str, reason: str, code: str) -> RequestRejected:
    """Return the rejection another service sent by name; unknown names become the base class."""
    return REJECTIONS.get(kind, RequestRejected)(reason, code=code)
