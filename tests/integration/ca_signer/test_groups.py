"""Limits of a group of front ends, for any principal it reports."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import signer_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
CAPPED = {"default": {"labels": ["services"], "profiles": ["service-mtls"], "max_per_minute": 3}}


async def test_a_group_that_asks_too_often_waits(platform: Platform, tmp_path: Path) -> None:
    """A compromised front end gets no more than its limit."""
    async with signer_stack(platform, tmp_path, groups=CAPPED) as signer:
        asked = [asyncio.ensure_future(signer.ask(signer.message())) for _ in range(10)]
        await asyncio.sleep(4)
        answers = [one.result() for one in asked if one.done()]
        for one in asked:
            one.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    # Another minute may have begun in between.
    assert 3 <= len(answers) <= 6
    assert {answer.outcome for answer in answers} == {"issued"}
