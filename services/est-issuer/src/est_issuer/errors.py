"""What goes wrong between the controller, the Kubernetes API and the objects it reads.

ESTSuiteError
├── APIUnavailable     the Kubernetes API does not answer, or asks for a later attempt
├── APIRefused         the Kubernetes API refuses; ``status`` is its HTTP status
│   ├── ObjectMissing  404
│   └── ObjectChanged  409: it is another version than the one that was read
├── IssuerUnusable     an ESTIssuer whose spec, Secret or trust anchors cannot be used (yet)
└── InvalidRequest     a certificate request that can never be granted as it is
"""

from __future__ import annotations

from estcore.errors import ESTSuiteError


class APIUnavailable(ESTSuiteError):
    """The Kubernetes API does not answer; the same may succeed later."""

    default_code = "kubernetes.unavailable"


class APIRefused(ESTSuiteError):
    """The Kubernetes API refuses a call."""

    default_code = "kubernetes.refused"

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class ObjectMissing(APIRefused):
    """There is no such object."""

    default_code = "kubernetes.not_found"


class ObjectChanged(APIRefused):
    """The object was changed since it was read."""

    default_code = "kubernetes.conflict"


class IssuerUnusable(ESTSuiteError):
    """The issuer cannot be used as it is; ``condition`` is the reason of its condition Ready."""

    default_code = "issuer.unusable"

    def __init__(self, condition: str, reason: str) -> None:
        super().__init__(reason)
        self.condition = condition


class InvalidRequest(ESTSuiteError):
    """The request asks for what cannot be granted, or cannot be read."""

    default_code = "issuer.request"
