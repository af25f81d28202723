"""Requests with mutated heads and framing: every answer is HTTP with a code, nothing breaks."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estsuite_testing.http_fuzz.answers import BadAnswer, read_answers
from estsuite_testing.http_fuzz.mutations import MUTATIONS, plan
from estsuite_testing.http_fuzz.run import run_http, seeds

SEED = 7230
SECONDS = 5
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nServer: est\r\n\r\nok"
BAD = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 9\r\nServer: est\r\n\r\nno [a.b]\n"


@pytest.mark.e2e
async def test_mutated_requests_get_answers_with_codes_and_break_nothing(tmp_path: Path) -> None:
    outcome = await run_http(tmp_path, tmp_path / "findings", seed=SEED, seconds=SECONDS)
    assert outcome.findings == [], "\n".join(outcome.lines())
    assert outcome.statuses[200] > 10, outcome.lines()
    assert outcome.codes["request.malformed"] > 10, outcome.lines()


def test_answers_in_a_row_are_read_one_by_one() -> None:
    octets = b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD + BAD
    assert read_answers(octets, whole=True) == [(200, ""), (400, "a.b")]


def test_an_answer_to_head_has_no_body() -> None:
    head = GOOD.removesuffix(b"ok")
    assert read_answers(head + BAD, whole=True) == [(200, ""), (400, "a.b")]


@pytest.mark.parametrize(
    ("octets", "finding"),
    [
        (GOOD.replace(b"200 OK", b"500 Internal Server Error"), "status 500"),
        (GOOD.replace(b"200 OK", b"502 Bad Gateway"), "status 502"),
        (GOOD.replace(b"HTTP/1.1", b"HTTP/2.0"), "no status line"),
        (GOOD.replace(b"Server: est", b"Server: aiohttp"), "HTTP library"),
        (GOOD.replace(b"Content-Length: 2\r\n", b""), "not given once"),
        (GOOD.replace(b"Server", b"Content-Length: 3\r\nServer"), "not given once"),
        (GOOD.replace(b"Server", b"Ser ver"), "a head that is none"),
        (GOOD.replace(b"Server", b"\n\nServer"), "a head that is none"),
        (BAD.replace(b"[a.b]", b"(a.b)"), "without one line and a code"),
        (GOOD[:-1], "a body has 1 octets of 2"),
        (GOOD + b"trailing", "no end"),
    ],
)
def test_an_answer_that_no_request_may_get_is_found(octets: bytes, finding: str) -> None:
    with pytest.raises(BadAnswer, match=finding):
        read_answers(octets, whole=True)


@given(seed=st.integers(), request=st.sampled_from(seeds("Basic eDp5", b"\x30\x00")) | st.binary())
def test_every_mutation_takes_any_octets_and_depends_on_the_seed_alone(
    seed: int, request: bytes
) -> None:
    for mutation in MUTATIONS:
        first, second = (mutation(random.Random(seed), request) for _ in range(2))
        assert first == second
    sent = plan(random.Random(seed), [request])
    assert sent == plan(random.Random(seed), [request])
    assert b"".join(sent.pieces) == sent.octets
