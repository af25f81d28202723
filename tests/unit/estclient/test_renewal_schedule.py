"""When the agent renews, as pure functions: window, lifetime, polls, and what it says of them."""

from __future__ import annotations

import datetime as dt
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estclient.agent.attention import attention_for
from estclient.agent.definition_folder import merged
from estclient.agent.renewal_schedule import chosen_moment, due, hold_s, lifetime, poll_pause_s
from estclient.agent.server_clock import TOLERANCE_S, ServerClock
from estclient.agent.status_file import table
from estclient.errors import NotInUse, ServerAway, ServerRefused, StillPending, TokenRefused
from estcore.clock import SystemClock
from estcore.errors import ConfigurationError
from estcore.est.renewal_info import RenewalInfo
from estcore.runtime.logs import TerminalFormatter, fields
from estcore.testing.clock import FakeClock
from estsuite_testing.est_server import CA

NOW = SystemClock().now().replace(microsecond=0)
CERTIFICATES = [CA().bundle(f"web-{n}").certificate for n in range(40)]

windows = st.builds(
    lambda start, length: RenewalInfo(
        NOW + dt.timedelta(seconds=start), NOW + dt.timedelta(seconds=start + length)
    ),
    st.integers(-(10**7), 10**7),
    st.integers(1, 10**7),
)


@given(windows, st.sampled_from(CERTIFICATES))
def test_the_moment_is_in_the_window_and_always_the_same(info: RenewalInfo, one: Any) -> None:
    """RFC 9773 section 4.2: "Select a uniform random time within the suggested window." """
    moment = chosen_moment(one, info)
    assert info.start <= moment < info.end
    assert chosen_moment(one, info) == moment


def test_certificates_of_one_window_spread_over_it() -> None:
    info = RenewalInfo(NOW, NOW + dt.timedelta(hours=10))
    moments = [chosen_moment(c, info) for c in CERTIFICATES]
    hours = {(m - info.start) // dt.timedelta(hours=1) for m in moments}
    assert len(hours) >= 7


@given(st.one_of(st.none(), windows), st.floats(0.5, 0.95), st.sampled_from(CERTIFICATES))
def test_the_earlier_time_counts(info: RenewalInfo | None, share: float, one: Any) -> None:
    found = due(one, renew_at=share, info=info)
    own = one.not_valid_before_utc + lifetime(one) * share
    assert found.moment <= own
    if info is not None:
        assert found.moment == min(own, chosen_moment(one, info))


@given(st.one_of(st.none(), st.floats(0, 1e9)), st.floats(0, 1e9))
def test_a_poll_is_between_a_minute_and_a_day_and_in_time(
    retry_after_s: float | None, left_s: float
) -> None:
    pause = poll_pause_s(retry_after_s, left_s)
    assert 5 <= pause <= 86_400
    assert pause <= max(left_s / 8, 5)
    if left_s > 8 * 86_400 and retry_after_s is not None:
        assert pause == min(max(retry_after_s, 60), 86_400)


def test_what_was_stored_is_not_renewed_at_once() -> None:
    one = CERTIFICATES[0]
    assert 0 < hold_s(one) <= min(3600, lifetime(one).total_seconds() / 20)


@given(st.integers(-(10**8), 10**8), st.integers(-(10**8), 10**8))
def test_the_servers_time_counts_until_the_machines_clock_is_set(wrong: int, jump: int) -> None:
    machine = FakeClock(NOW + dt.timedelta(seconds=wrong))
    clock = ServerClock(machine)
    assert clock.now() == machine.now()
    assert clock.offset_s is None
    clock.compare(NOW)
    assert abs((clock.now() - NOW).total_seconds()) <= TOLERANCE_S
    assert clock.is_wrong == (abs(wrong) > TOLERANCE_S)
    machine.forward(seconds=jump)
    if abs(jump) > TOLERANCE_S + 1:
        assert not clock.is_compared
        assert clock.now() == machine.now()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ServerRefused(403, "spent [secret.spent]"), "secret.spent"),
        (ServerRefused(401, "[auth.certificate_revoked]"), "auth.certificate_revoked"),
        (ServerRefused(401, "<html>"), "client.refused"),
        (ServerRefused(409, "another owner [key.owner]"), None),
        (ServerRefused(401, "expired [auth.token_expired]"), None),
        (ServerRefused(403, "today [policy.quota]"), None),
        (TokenRefused("no"), "client.token_refused"),
        (ConfigurationError("no file"), "configuration.invalid"),
        (ServerAway("503"), None),
        (StillPending("waits"), None),
        (NotInUse("old"), None),
        (OSError("disk"), None),
    ],
)
def test_only_what_repeats_itself_needs_an_operator(error: Exception, code: str | None) -> None:
    found = attention_for(error)
    assert (found.code if found else None) == code


values = st.recursive(
    st.one_of(st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2)),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.sampled_from("abc"), values, max_size=3)


@given(mappings, mappings)
def test_a_definition_lies_over_the_defaults(below: dict[str, Any], above: dict[str, Any]) -> None:
    both = merged(below, above)
    assert both.keys() == below.keys() | above.keys()
    assert merged(below, {}) == below
    assert merged({}, above) == above
    for key, value in above.items():
        if not isinstance(value, dict):
            assert both[key] == value
        elif isinstance(below.get(key), dict):
            assert both[key].keys() == value.keys() | below[key].keys()


@given(st.text(max_size=200), st.text(max_size=300), st.integers(-(10**9), 10**9))
def test_every_line_of_the_table_fits_a_terminal(name: str, reason: str, seconds: int) -> None:
    moment = (NOW + dt.timedelta(seconds=seconds)).isoformat()
    facts = {"state": "needs attention", "subject": name, "code": "a.b", "reason": reason,
             "not_after": moment, "renewal_due": moment, "next_attempt": moment,
             "clock_offset_s": seconds}  # fmt: skip
    problem = {"code": "a.b", "reason": reason}
    report = {"definitions": {name: facts}, "problems": {"x": problem}, "running": False,
              "time": moment}  # fmt: skip
    lines = table(report, NOW)
    assert max(map(len, lines)) <= 100
    assert len(lines) >= 4


def test_a_log_line_on_a_terminal_is_one_line_of_text() -> None:
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "agent step", (), None)
    record.__dict__.update(fields(step="stored", reason="a\nb \x1b[31m", empty=None))
    line = TerminalFormatter().format(record)
    assert line.endswith('WARNING agent step  step=stored reason="a\\nb \\u001b[31m"')
