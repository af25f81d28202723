"""Names in braces and patterns with one star: how claims of a token become names in a policy."""

from __future__ import annotations

import re
from collections.abc import Mapping

from estcore.errors import NotAuthorized
from estcore.pki.name_templates import PLACEHOLDER

ClaimValue = str | tuple[str, ...]
"""A claim as policy sees it: one text, or several."""

_PLAIN = re.compile(r"[A-Za-z0-9._-]{1,253}")


def fill(template: str, claims: Mapping[str, ClaimValue]) -> str:
    """Return the template with claims put in.

    No star, brace or separator can come in through a claim.

    Raises:
        NotAuthorized: a claim is missing, several, or not a plain name.
    """

    def value(match: re.Match[str]) -> str:
        claim = claims.get(match.group(1))
        if not isinstance(claim, str) or not _PLAIN.fullmatch(claim) or ".." in claim:
            raise NotAuthorized(
                f"claim {match.group(1)} is missing or not a plain name", code="policy.claim"
            )
        return claim

    return PLACEHOLDER.sub(value, template)


def unify(template: str, value: str) -> dict[str, str] | None:
    """Return the claims that make ``value`` of ``template``; None when nothing does."""
    pattern, place, names = "", 0, []
    for match in PLACEHOLDER.finditer(template):
        pattern += re.escape(template[place : match.start()]) + "([a-z0-9-]+)"
        names.append(match.group(1))
        place = match.end()
    matched = re.fullmatch(pattern + re.escape(template[place:]), value)
    if matched is None or len(set(names)) != len(names):
        return None
    return dict(zip(names, matched.groups(), strict=True))


def star_matches(value: str, pattern: str, *, not_in_star: str = "") -> bool:
    """Compare with a pattern that has at most one ``*``: one or more characters."""
    head, star, tail = pattern.partition("*")
    if not star:
        return value == pattern
    middle = value[len(head) : len(value) - len(tail)]
    return (
        len(value) > len(head) + len(tail)
        and value.startswith(head)
        and value.endswith(tail)
        and not any(c in middle for c in not_in_star)
    )


def claim_matches(claim: ClaimValue | None, pattern: str) -> bool:
    """Return whether a claim, or one of several values, is what a rule wants."""
    if claim is None:
        return False
    values = (claim,) if isinstance(claim, str) else claim
    return any(star_matches(value, pattern) for value in values)
