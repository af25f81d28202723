"""Managed renewal in settings, paths, rights and renewal information."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from estcore.clock import SystemClock
from estcore.est.paths import Route, is_label, parse_path
from estcore.est.renewal_info import RenewalInfo
from estcore.messages import permissions
from estcore.pki.profile import Profile


def profile(**changes: Any) -> Profile:
    renewal = {
        "reaction_time": "1d",
        "mode": "managed",
        "managed": {"same_key": True, "max_key_age": "90d"},
    } | changes.pop("renewal", {})
    values = {"name": "device", "lifetime": "30d", "key_algorithms": ["ec-p256"]}
    return Profile.model_validate(values | {"renewal": renewal} | changes)


def test_managed_renewal_is_off_unless_a_profile_says_so() -> None:
    plain = Profile.model_validate(
        {"name": "device", "lifetime": "30d", "key_algorithms": ["ec-p256"]}
    )
    assert (plain.renewal.mode, plain.renewal.managed) == ("agent", None)
    assert profile().renewal.mode == "managed"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"renewal": {"mode": "agent"}}, "goes with renewal.mode"),
        ({"renewal": {"managed": None}}, "goes with renewal.mode"),
        ({"renewal": {"managed": {"same_key": True}}}, "max_key_age goes with same_key"),
        ({"renewal": {"managed": {}}}, "managed renewal needs"),
        ({"same_key": "deny"}, "contradicts same_key"),
        ({"approval": True}, "an operator decides"),
    ],
)
def test_a_profile_that_contradicts_itself_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        profile(**changes)


def test_the_path_of_a_renewed_certificate_ends_with_its_id() -> None:
    assert parse_path("/.well-known/est/renewed/aa.bb") == Route(None, "renewed", "aa.bb")
    assert parse_path("/.well-known/est/devices/renewed/aa.bb") == Route(
        "devices", "renewed", "aa.bb"
    )
    for path in ("renewed", "devices/renewed", "renewed/", "renewed/a/b", "renewed/aa.bb/c"):
        assert parse_path(f"/.well-known/est/{path}") is None
    assert not is_label("renewed")


def test_renewal_info_says_that_a_certificate_is_available() -> None:
    now = SystemClock().now().replace(microsecond=0)
    info = RenewalInfo(now, now.replace(year=now.year + 1), managed="available")
    assert RenewalInfo.decode(info.encode()) == info
    later = info.encode().replace(b"available", b"something new")
    assert RenewalInfo.decode(later).managed is None


def test_a_front_end_asks_for_no_renewal_and_renewal_fetches_nothing() -> None:
    frontend, renewal = permissions.frontend("default"), permissions.renewal()
    assert not any(topic.startswith("pki.rotation") for topic in frontend.publish)
    assert not any(topic.startswith("pki.renewed") for topic in renewal.publish)
    assert "pki.renewed.default" in frontend.publish
    assert not any(topic.startswith("pki.certificate") for topic in renewal.publish)


@pytest.mark.parametrize("usage", ["cm_kga", "1.3.6.1.5.5.7.3.32"])
def test_no_profile_signs_packages_of_keys(usage: str) -> None:
    """id-kp-cmKGA is for certificates of ca-signer itself (RFC 9480 section 2.2)."""
    with pytest.raises(ValidationError):
        profile(extended_key_usage=[usage])
    with pytest.raises(ValidationError):
        profile(
            extensions={
                "extended_key_usage": "append",
                "requestable_extended_key_usage": [usage],
            }
        )


def test_an_end_without_a_successor_is_unexpected_unless_a_profile_says_so() -> None:
    assert profile().renewal.expiry == "unexpected"
    assert profile(renewal={"expiry": "expected"}).renewal.expiry == "expected"
    with pytest.raises(ValidationError):
        profile(renewal={"expiry": "sometimes"})


@pytest.mark.parametrize("rules", [{"server_key": True}, {"same_key": True, "max_key_age": "1d"}])
def test_each_way_of_managed_renewal_stands_alone(rules: dict[str, Any]) -> None:
    assert profile(renewal={"managed": rules}).renewal.managed is not None


def test_a_key_age_without_same_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="max_key_age goes with same_key"):
        profile(renewal={"managed": {"server_key": True, "max_key_age": "1d"}})
