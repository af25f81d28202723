"""What an EST server's answer means for a request, and which certificates fit one."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from est_issuer import answers
from est_issuer.answers import Later, Refused, UnfitCertificate
from est_issuer.requests import Request
from est_issuer.usages import EXTENDED, missing
from estclient.errors import (
    AnswerInvalid,
    BundleInvalid,
    ServerAway,
    ServerRefused,
    StillPending,
)
from estsuite_testing.chains import NOON, certificate, make_request

NAME = "web.devices.test"
_, PEM = make_request(NAME)
CSR = x509.load_pem_x509_csr(PEM)
ROOT = certificate("root", ca=True)
ISSUING = certificate("issuing", ROOT, ca=True)
CAS = [ROOT[0], ISSUING[0]]
LEAF, _ = certificate(NAME, ISSUING, csr=CSR, names=(NAME, "more.devices.test"))


def request(*usages: str, duration: dt.timedelta | None = None) -> Request:
    return Request(CSR, usages, duration)


def test_a_certificate_that_fits_comes_with_its_chain_and_its_root() -> None:
    found = answers.issued(request("client auth"), LEAF, CAS, now=NOON)
    assert x509.load_pem_x509_certificates(found.chain) == [LEAF, ISSUING[0]]
    assert x509.load_pem_x509_certificates(found.authority) == [ROOT[0]]
    assert found.message == "the EST server issued the certificate"


def test_what_links_the_root_to_an_older_one_is_sent() -> None:
    """RFC 4210 section 4.4: NewWithOld certifies name and key of the new root by the old one."""
    builder = x509.CertificateSigningRequestBuilder(ROOT[0].subject)
    cross, _ = certificate(
        "root", certificate("old", ca=True), ca=True, csr=builder.sign(ROOT[1], SHA256())
    )
    found = answers.issued(request(), LEAF, [*CAS, cross], now=NOON)
    assert x509.load_pem_x509_certificates(found.chain) == [LEAF, ISSUING[0], cross]
    assert x509.load_pem_x509_certificates(found.authority) == [ROOT[0]]


def test_a_name_that_is_missing_is_named() -> None:
    leaf, _ = certificate(NAME, ISSUING, csr=CSR, names=("other.devices.test",))
    with pytest.raises(UnfitCertificate, match=r"without the names web[.]devices[.]test"):
        answers.issued(request(), leaf, CAS, now=NOON)


def test_a_usage_that_is_missing_is_named() -> None:
    with pytest.raises(UnfitCertificate, match=r"without the usages server auth:"):
        answers.issued(request("client auth", "server auth"), LEAF, CAS, now=NOON)


@pytest.mark.parametrize("usage", [None, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])
def test_a_certificate_for_every_usage_lacks_none(usage: x509.ObjectIdentifier | None) -> None:
    ca = certificate("any", ca=True, usage=usage)[0]
    assert missing(["client auth", "server auth", "digital signature"], ca) == []


@given(st.sets(st.sampled_from([*EXTENDED, "digital signature", "unknown"])))
def test_usages_are_missing_where_the_certificate_has_others(usages: set[str]) -> None:
    assert missing(usages, LEAF) == sorted(usages & {*EXTENDED} - {"client auth"})


def test_a_certificate_of_an_unknown_ca_is_none() -> None:
    stranger = certificate("issuing", certificate("root", ca=True), ca=True)
    leaf, _ = certificate(NAME, stranger, csr=CSR, names=(NAME,))
    with pytest.raises(BundleInvalid):
        answers.issued(request(), leaf, CAS, now=NOON)
    with pytest.raises(BundleInvalid, match="not valid now"):
        answers.issued(request(), LEAF, CAS, now=NOON + dt.timedelta(hours=2))


def test_a_duration_that_the_server_did_not_keep_is_in_the_message() -> None:
    kept = answers.issued(request(duration=dt.timedelta(hours=1)), LEAF, CAS, now=NOON)
    assert "ends" not in kept.message
    other = answers.issued(request(duration=dt.timedelta(days=90)), LEAF, CAS, now=NOON)
    assert other.message.endswith(
        "it ends 2026-06-01T13:00:00Z, which the server decides, and not after 90d"
    )


@pytest.mark.parametrize(
    "error",
    [
        ServerRefused(400, "malformed"),
        ServerRefused(401, "who are you"),
        ServerRefused(403, "not this name [policy.names]"),
        ServerRefused(501, ""),
        AnswerInvalid("no certificate for the requested key"),
        UnfitCertificate("without the names"),
    ],
)
def test_a_refusal_is_final(error: Exception) -> None:
    assert isinstance(error, ServerRefused | AnswerInvalid | UnfitCertificate)
    outcome = answers.outcome_of_error(error, 0, longest_s=60)
    assert isinstance(outcome, Refused)
    assert outcome.message.count("[") == 1
    assert outcome.message.endswith("]")


@given(st.integers(min_value=0, max_value=10**6), st.floats(min_value=1, max_value=3600))
def test_a_temporary_fault_comes_again_within_the_longest_pause(
    attempt: int, longest_s: float
) -> None:
    for error in (ServerAway("no answer"), ServerRefused(408, "slow"), ServerRefused(425, "")):
        outcome = answers.outcome_of_error(error, attempt, longest_s=longest_s)
        assert isinstance(outcome, Later)
        assert 0.5 * min(2, longest_s) <= outcome.after_s <= longest_s


@given(st.none() | st.floats(min_value=0, max_value=1e12))
def test_a_request_is_not_repeated_before_retry_after(wished: float | None) -> None:
    """RFC 7030 section 4.2.3: the client MUST wait at least the specified "Retry-After" time."""
    pending = answers.outcome_of_error(StillPending("", retry_after_s=wished), 0, longest_s=60)
    away = answers.outcome_of_error(ServerAway("", retry_after_s=wished), 0, longest_s=60)
    for outcome in (pending, away):
        assert isinstance(outcome, Later)
        assert outcome.after_s >= min(wished or 0, 7 * 86400)
        assert outcome.after_s <= 7 * 86400
