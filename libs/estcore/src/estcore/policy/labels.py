"""Labels: what one extra segment of the EST path stands for (RFC 7030 section 3.2.2)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from estcore.errors import MalformedRequest, WeakKey
from estcore.est.transfer import Base64Form
from estcore.pki.chain_strength import check_key_of_ca
from estcore.pki.parsers import load_certificate, load_pem_certificates
from estcore.pki.profile import Priority, StrictModel, Token

Way = Annotated[
    str,
    Field(pattern=r"^(certificate|srp|(certificate\+)?(secret|password|digest|token))$"),
]
Operation = Literal["simpleenroll", "simplereenroll", "serverkeygen"]
Linking = Literal["off", "verify", "require"]


class Truststore(StrictModel):
    """Certificates of upstream CAs (device makers, partners) whose clients a label may accept.

    They identify; they never become anchors of ``/cacerts`` and give no right of their own.
    """

    certificates: str = Field(description="PEM, one certificate or more; text around is ignored")
    strict: bool = Field(
        default=True,
        description="chains must follow RFC 5280 to the letter (X509_STRICT of OpenSSL); false for "
        "makers whose certificates lack key identifiers, for example",
    )

    @field_validator("certificates")
    @classmethod
    def _readable(cls, pem: str) -> str:
        try:
            for place, octets in enumerate(load_pem_certificates(pem.encode()), 1):
                try:
                    check_key_of_ca(load_certificate(octets))
                except WeakKey as exc:
                    raise ValueError(f"certificate {place}: {exc.reason}") from exc
        except MalformedRequest as exc:
            raise ValueError(exc.reason) from exc
        return pem

    @property
    def anchors(self) -> list[bytes]:
        """The certificates, DER as their makers wrote it."""
        return load_pem_certificates(self.certificates.encode())


class IssuerChoice(StrictModel):
    """An issuer that signs some of a label's certificates; both conditions hold together."""

    issuer: Token = Field(description="who signs")
    profiles: tuple[Token, ...] = Field(default=(), description="for these profiles; none: for all")
    keys: tuple[Literal["ec", "rsa", "ed25519"], ...] = Field(
        default=(), description="for keys of these kinds; none: for all"
    )

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.profiles and not self.keys:
            raise ValueError("say for which profiles or keys; for all is the label's issuer")
        return self

    def fits(self, profile: str, key_algorithm: str) -> bool:
        """Return whether this issuer signs for the profile and a key of that algorithm."""
        kind = key_algorithm.partition("-")[0]
        return (not self.profiles or profile in self.profiles) and (
            not self.keys or kind in self.keys
        )


class Label(StrictModel):
    """One EST label: picks issuer, profiles, accepted authentication and wire habits."""

    issuer: Token
    other_issuers: tuple[IssuerChoice, ...] = Field(
        default=(), description="the first that fits signs instead of `issuer`"
    )
    profiles: tuple[Token, ...] = Field(min_length=1, description="the first is the default")
    authentication: tuple[Way, ...] = Field(
        default=("certificate", "secret"),
        min_length=1,
        description="any one suffices: certificate, secret, password, digest, token, srp; "
        "certificate+token and the like need both",
    )
    operations: tuple[Operation, ...] = Field(
        default=("simpleenroll", "simplereenroll"),
        min_length=1,
        description="what is offered; serverkeygen is off unless it stands here",
    )
    truststores: tuple[Token, ...] = Field(
        default=(), description="other CAs whose certificates identify clients here"
    )
    linking: Linking = Field(
        default="verify",
        description="binding of the CSR to the TLS session: off refuses none, verify checks "
        "what is sent, require refuses a CSR without it",
    )
    csrattrs: Literal["none", "classic", "template", "both"] = Field(
        default="classic", description="form of the answer; template is that of RFC 9908"
    )
    max_per_s: float | None = Field(
        default=None, gt=0, description="requests on the label per front end; then 429"
    )
    lenient_bodies: bool = Field(
        default=True, description="takes PEM and raw DER bodies too, not base64 of DER alone"
    )
    priority: Priority = Priority.NORMAL
    when_slow: Literal["pending", "unavailable"] = Field(
        default="pending", description="no answer in time: 202 (pending) or 503 (unavailable)"
    )
    retry_after_s: int = Field(default=5, ge=1, le=172_800)
    response_base64: Base64Form = "auto"

    @property
    def issuers(self) -> tuple[str, ...]:
        """Every issuer whose certificates are of this label, its own first."""
        return tuple(dict.fromkeys((self.issuer, *(o.issuer for o in self.other_issuers))))

    def issuer_for(self, profile: str, key_algorithm: str) -> str:
        """Return who signs a first certificate of the profile for a key of that algorithm."""
        fitting = (o.issuer for o in self.other_issuers if o.fits(profile, key_algorithm))
        return next(fitting, self.issuer)

    def accepts(self, method: str, *, with_certificate: bool) -> bool:
        """Return whether a principal of that method, with or without a certificate, suffices."""
        if method in self.authentication:
            return True
        return with_certificate and f"certificate+{method}" in self.authentication

    def offers(self, method: str) -> bool:
        """Return whether the method is part of any way in."""
        return any(method in way.split("+") for way in self.authentication)
