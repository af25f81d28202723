"""Rules, console pages and every expression of the dashboards in a real Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml
from estmonitoring.consoles import expression
from estmonitoring.dashboards import BOARDS

from estdev.local import admin_get
from estdev.ports import free_port
from estsuite_testing.debian import debian_packages
from estsuite_testing.e2e_stack import Stack, StubbornClient, start_stack, stop_stack

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
]
ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
PAGE = ROOT / "docs/operations/runbooks/a-process-is-down-or-not-ready.md"


class Prometheus:
    """A Prometheus that scrapes a suite, with the rules and the console pages."""

    def __init__(self, folder: Path, targets: list[str]) -> None:
        self._folder = folder
        self._port = free_port()
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
        config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(path) for path in (MONITORING / "rules").glob("*.yaml")]
        config["scrape_configs"][0]["static_configs"] = [{"targets": targets}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with (self._folder / "prometheus.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                debian_packages("prometheus") / "usr/bin/prometheus",
                f"--config.file={self._folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={self._folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self._port}",
                f"--web.console.templates={MONITORING / 'consoles'}",
                stdout=log,
                stderr=log,
            )
        async with asyncio.timeout(60):
            while await self._status("/-/ready") != 200:
                await asyncio.sleep(0.1)

    async def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            await self._process.wait()

    async def page(self, path: str, **parameters: str) -> str:
        url = f"http://127.0.0.1:{self._port}{path}"
        async with (
            aiohttp.ClientSession() as session,
            session.get(url, params=parameters) as answer,
        ):
            text = await answer.text()
            assert answer.status == 200, f"{path} {parameters}: {text[:500]}"
            return text

    async def api(self, path: str, **parameters: str) -> Any:
        found = yaml.safe_load(await self.page(f"/api/v1/{path}", **parameters))
        assert found["status"] == "success", found
        return found["data"]

    async def _status(self, path: str) -> int:
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://127.0.0.1:{self._port}{path}") as answer,
            ):
                return answer.status
        except aiohttp.ClientError:
            return 0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    stack = await start_stack(tmp_path_factory.mktemp("monitored"))
    yield stack
    await stop_stack(stack)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def prometheus(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Prometheus]:
    targets = [f"127.0.0.1:{r.admin_port}" for r in stack.suite.services.values()]
    found = Prometheus(tmp_path_factory.mktemp("prometheus"), targets)
    await found.start()
    client = StubbornClient(stack, stack.ports)
    for number in range(3):
        await client.enroll(f"dev-monitored-{number}")
        await asyncio.sleep(2)
    yield found
    await found.stop()


async def test_every_rule_is_evaluated_and_nothing_fires_in_a_good_suite(
    stack: Stack, prometheus: Prometheus
) -> None:
    async with asyncio.timeout(60):
        while True:
            groups = (await prometheus.api("rules"))["groups"]
            rules = [rule for group in groups for rule in group["rules"]]
            if all(rule["health"] != "unknown" for rule in rules):
                break
            await asyncio.sleep(0.5)
    assert len(rules) > 50
    assert not [rule for rule in rules if rule["health"] != "ok"]
    alerts = (await prometheus.api("alerts"))["alerts"]
    assert [a["labels"]["alertname"] for a in alerts if a["state"] == "firing"] == []


async def test_every_expression_of_the_dashboards_can_be_asked(prometheus: Prometheus) -> None:
    for board in BOARDS:
        for panel in board.panels:
            for query in panel.queries:
                await prometheus.api("query", query=expression(query))


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
async def test_prometheus_alone_shows_the_page_of_a_board(
    prometheus: Prometheus, board: Any
) -> None:
    text = await prometheus.page(f"/consoles/{board.name}.html")
    assert all(panel.title in text for panel in board.panels)


async def test_the_pages_have_the_values_of_the_suite(prometheus: Prometheus) -> None:
    async with asyncio.timeout(60):
        while "simpleenroll 200" not in await prometheus.page("/consoles/enrollment.html"):
            await asyncio.sleep(0.5)
        # Streams are asked every fifteen seconds.
        while "EST_REQUESTS" not in await prometheus.page("/consoles/bus.html"):
            await asyncio.sleep(0.5)


async def test_the_runbook_names_every_check_of_readiness(prometheus: Prometheus) -> None:
    text = PAGE.read_text(encoding="utf-8")
    async with asyncio.timeout(60):
        found: set[str] = set()
        while not {"bus", "keystores", "cacerts", "writer", "database"} <= found:
            series = (await prometheus.api("query", query="estsuite_ready"))["result"]
            found = {sample["metric"]["check"] for sample in series}
            await asyncio.sleep(0.5)
    assert [check for check in sorted(found) if f"`{check}`" not in text] == []


async def test_a_check_that_fails_is_shown_by_its_name(
    stack: Stack, prometheus: Prometheus
) -> None:
    await stack.layout.nats.stop()
    async with asyncio.timeout(60):
        while not await prometheus.api("query", query='estsuite_ready{check="bus"} == 0'):
            await asyncio.sleep(0.5)
        found: list[Any] = []
        while not found:
            found = (await prometheus.api("query", query="estsuite_ready == 0"))["result"]
            await asyncio.sleep(0.5)
    assert "bus" in {sample["metric"]["check"] for sample in found}
    for running in stack.suite.services.values():
        assert "estsuite_build_info{" in await admin_get(running.admin_port, "/metrics")
