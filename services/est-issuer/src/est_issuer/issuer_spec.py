"""The spec of ESTIssuer and ESTClusterIssuer (pure). The CRDs have the same schema.

Exactly one place of trust anchors and exactly one credential. Secrets and ConfigMaps are in the
namespace of the ESTIssuer; those of an ESTClusterIssuer in the namespace of the controller.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from est_issuer.errors import IssuerUnusable

_NAME = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
_KEY = r"^[-._a-zA-Z0-9]{1,253}$"


class _Part(BaseModel):
    """A part of the spec: frozen, and fields that are not known are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True
    )


class KeyReference(_Part):
    """A key of a Secret or ConfigMap."""

    name: str = Field(pattern=_NAME)
    key: str = Field(default="ca.crt", pattern=_KEY)


class TokenReference(_Part):
    """The key of a Secret that holds a bearer token."""

    name: str = Field(pattern=_NAME)
    key: str = Field(default="token", pattern=_KEY)


class SecretReference(_Part):
    """A whole Secret, of a type whose keys are known."""

    name: str = Field(pattern=_NAME)


class Basic(_Part):
    """HTTP Basic: a Secret of type kubernetes.io/basic-auth."""

    secret_ref: SecretReference


class Token(_Part):
    """A bearer token."""

    secret_ref: TokenReference


class ClientCertificate(_Part):
    """A client certificate: a Secret of type kubernetes.io/tls."""

    secret_ref: SecretReference


class PodToken(_Part):
    """A token of the requesting pod's service account, for PodCertificateRequests only."""

    audience: str = Field(default="est", pattern=r"^[!-~]{1,200}$")


class Trust(_Part):
    """Trust anchors for the EST server: PEM in the spec (base64), a ConfigMap or a Secret."""

    ca_bundle: str | None = Field(default=None, max_length=350_000)
    config_map_ref: KeyReference | None = None
    secret_ref: KeyReference | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(v is not None for v in (self.ca_bundle, self.config_map_ref, self.secret_ref)) != 1:
            raise ValueError("exactly one of caBundle, configMapRef and secretRef")
        return self


class Credentials(_Part):
    """What the EST server authenticates an enrollment by."""

    basic: Basic | None = None
    token: Token | None = None
    client_certificate: ClientCertificate | None = None
    pod_token: PodToken | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        ways = (self.basic, self.token, self.client_certificate, self.pod_token)
        if sum(way is not None for way in ways) != 1:
            raise ValueError("exactly one of basic, token, clientCertificate and podToken")
        return self


class IssuerSpec(_Part):
    """Which EST server, what it is trusted by, and how an enrollment authenticates."""

    url: str = Field(pattern=r"^https://[^\s/?#@]+/?$", max_length=300)
    label: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._~-]{1,64}$")
    trust: Trust
    credentials: Credentials
    renewal: Literal["Enroll", "Reenroll"] = "Enroll"


def read_spec(found: dict[str, Any]) -> IssuerSpec:
    """Return the spec of an issuer object.

    Raises:
        IssuerUnusable: the first field that is wrong.
    """
    try:
        return IssuerSpec.model_validate(found.get("spec") or {})
    except ValidationError as exc:
        error = exc.errors(include_input=False, include_url=False)[0]
        place = ".".join(["spec", *(str(step) for step in error["loc"])])
        raise IssuerUnusable("InvalidSpec", f"{place}: {error['msg']}") from exc
