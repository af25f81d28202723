"""Independent lint: pkilint's rules of RFC 5280, where the extra ``lint`` is installed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pkilint import loader, pkix
from pkilint.pkix import certificate as pkix_certificate
from pkilint.pkix import crl as pkix_crl
from pkilint.pkix import extension, name
from pkilint.validation import ValidationFindingSeverity

SEVERITIES = {
    "notice": ValidationFindingSeverity.NOTICE,
    "warning": ValidationFindingSeverity.WARNING,
    "error": ValidationFindingSeverity.ERROR,
}
_OTHER_SCHEMES = re.compile(r'"(spiffe://[^"]*|urn:[^"]*)"')
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf'"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*"')
Finding = tuple[str, str, str]
"""Severity, code, message."""


def linters(
    least: str,
) -> tuple[Callable[[bytes], list[Finding]], Callable[[bytes], list[Finding]]]:
    """Return the linters of certificates and of CRLs; findings from a severity up."""
    worst = SEVERITIES[least]
    certificates = pkix_certificate.create_pkix_certificate_validator_container(
        pkix_certificate.create_decoding_validators(
            name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS
        ),
        [
            pkix_certificate.create_issuer_validator_container([]),
            pkix_certificate.create_validity_validator_container(),
            pkix_certificate.create_subject_validator_container([]),
            pkix_certificate.create_extensions_validator_container([]),
        ],
    )
    lists = pkix_crl.create_pkix_crl_validator_container(
        [
            pkix.create_attribute_decoder(name.ATTRIBUTE_TYPE_MAPPINGS),
            pkix.create_extension_decoder(extension.EXTENSION_MAPPINGS),
        ],
        [
            pkix_crl.create_issuer_validator_container([]),
            pkix_crl.create_validity_validator_container([]),
            pkix_crl.create_extensions_validator_container([]),
        ],
    )

    def certificate(der: bytes) -> list[Finding]:
        document = _loaded(loader.load_certificate, der)
        return document if isinstance(document, list) else _findings(certificates, document, worst)

    def revocation_list(der: bytes) -> list[Finding]:
        document = _loaded(loader.load_crl, der)
        return document if isinstance(document, list) else _findings(lists, document, worst)

    return certificate, revocation_list


def _loaded(load: Any, der: bytes) -> Any:
    try:
        return load(der, "stored")
    except Exception as exc:  # noqa: BLE001 - Bulkhead: what pkilint cannot read is a finding.
        return [("ERROR", "unreadable", type(exc).__name__)]


def _findings(validator: Any, document: Any, worst: Any) -> list[Finding]:
    return [
        (
            description.finding.severity.name,
            description.finding.code,
            str(description.message or ""),
        )
        for result in validator.validate(document.root)
        for description in result.finding_descriptions
        # Lower numbers are worse.
        if description.finding.severity <= worst and not _allowed_by_rfc(description)
    ]


def _allowed_by_rfc(description: Any) -> bool:
    """Return whether a finding is a rule of the public web that RFC 5280 does not have.

    - RFC 3986 has the schemes spiffe and urn.
    - The preferred name syntax of RFC 1034 section 3.5, with digits first (RFC 1123 section 2.1),
      allows one label, such as ``localhost``, and any last label. Wildcards are RFC 9525's.
    """
    if description.finding.code == "pkix.invalid_uri_syntax":
        return _OTHER_SCHEMES.search(str(description)) is not None
    if description.finding.code == "pkix.invalid_domain_name_syntax":
        return _DNS_NAME.search(str(description.message)) is not None
    return False
