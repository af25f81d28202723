"""Two quick drills, and one that loses a record; ``make drills`` does all of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.drills.run import drills, exit_code

from estsuite_testing.chaos.faults import nats_lame_duck, service_stopped
from estsuite_testing.chaos.world import World
from estsuite_testing.drills.catalogue import DRILLS, Drill, select
from estsuite_testing.drills.decided import Decided
from estsuite_testing.drills.report import Report
from estsuite_testing.drills.run import MARKDOWN, RESULTS, run_drills

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]


@asynccontextmanager
async def delivery_lost(world: World) -> AsyncIterator[str]:
    """The SIEM forgets a message that it has acknowledged."""
    file = world.layout.siem_file
    lines = file.read_text().splitlines(keepends=True)
    issued = [line for line in lines if "certificate.issue" in line]
    lines.remove(issued[0])
    file.write_text("".join(lines))
    yield "a message lost by the SIEM"


async def test_two_drills_pass_and_one_that_loses_a_record_fails(tmp_path: Path) -> None:
    chosen = [
        Drill("NATS", lambda w: nats_lame_duck(w, Decided(seconds=1)), "nats_lame_duck"),
        Drill(
            "front end", lambda w: service_stopped(w, Decided("est-frontend")), "service_stopped"
        ),
        Drill("loss", delivery_lost, "delivery_lost"),
    ]
    said: list[str] = []
    report = await run_drills(
        chosen, tmp_path, calm_s=1, delivered_s=3, keep=False, say=said.append
    )
    nats, front_end, loss = report.results

    for passed in (nats, front_end):
        assert passed.passed, passed
        assert passed.recovery.seconds is not None
        assert passed.answers["200"] > 0
        assert passed.cacerts > 0
    assert nats.what == "lame duck mode of nats-0"
    assert front_end.what == "SIGTERM est-frontend"
    assert front_end.readiness.keys() == {"est-frontend"}

    assert len(loss.lost_records) == len(loss.lost) == 1, loss
    assert "(certificate.issue) is not at the SIEM" in loss.lost_records[0]
    assert loss.recovered
    assert not loss.passed
    assert exit_code(report) == 1
    assert exit_code(report.model_copy(update={"results": [nats, front_end]})) == 0
    assert said[2].startswith("FAILED  loss: a message lost by the SIEM; lost 1")

    written = Report.model_validate_json((tmp_path / RESULTS).read_text())
    assert written == report
    markdown = (tmp_path / MARKDOWN).read_text()
    assert f"- loss: lost: {loss.lost_records[0]}" in markdown
    assert json.loads((tmp_path / RESULTS).read_text())["machine"]["revision"]


def test_every_drill_has_a_name_of_its_own_and_is_found_by_a_word_of_it() -> None:
    names = [drill.name for drill in DRILLS]
    assert len({*names}) == len(names)
    assert [drill.name for drill in select("quorum")] == ["NATS without quorum"]


def test_an_unknown_drill_is_refused() -> None:
    result = CliRunner().invoke(drills, ["--only", "no such fault"], standalone_mode=False)
    assert result.return_value == 2
    assert result.stderr == "no drill is named 'no such fault'; --list names them\n"
