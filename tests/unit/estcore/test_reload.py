"""Files that change while a service runs: applied, refused, and replaced one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter

from estcore.errors import ConfigurationError
from estcore.runtime.reload import Reloader, Watched


class Pair:
    """A certificate and its key, which fit where both have the same text."""

    def __init__(self, folder: Path) -> None:
        self.files = (folder / "tls.pem", folder / "tls.key")
        self.write("first", "first")
        self.used = "first"
        self.reports: list[tuple[str, str]] = []
        counter = Counter("reloads", "", ["what", "result"], registry=CollectorRegistry())
        watched = Watched("certificate", self.files, self._take)
        self.reloader = Reloader([watched], self._report, counter, every_s=1)

    def write(self, *texts: str | None) -> None:
        for path, text in zip(self.files, texts, strict=True):
            if text is not None:
                path.unlink(missing_ok=True)  # a new inode: times are too coarse
                path.write_text(text)

    def _take(self) -> None:
        certificate, key = (path.read_text() for path in self.files)
        if certificate != key:
            raise ConfigurationError(f"{certificate} and {key} are not a pair")
        self.used = certificate

    async def _report(self, action: str, details: dict[str, str]) -> None:
        self.reports.append((action, details.get("reason", "")))


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


async def test_a_look_between_two_files_that_belong_together_is_no_fault(pair: Pair) -> None:
    pair.write(None, "second")
    await pair.reloader.look()
    assert pair.used == "first"
    pair.write("second", None)
    await pair.reloader.look()
    assert (pair.used, pair.reports) == ("second", [("config.changed", "")])


@pytest.mark.logs_errors("configuration change rejected")
async def test_what_stays_wrong_is_refused_once(pair: Pair) -> None:
    pair.write("second", None)
    for _ in range(4):
        await pair.reloader.look()
    assert pair.reports == [("config.refused", "second and first are not a pair")]
    assert pair.used == "first"
    pair.write("first", None)
    await pair.reloader.look()
    assert pair.reports[1:] == [("config.changed", "")]


@pytest.mark.logs_errors("configuration change rejected")
async def test_each_wrong_change_is_refused(pair: Pair) -> None:
    for text in ("second", "third"):
        pair.write(text, None)
        for _ in range(2):
            await pair.reloader.look()
    assert [reason for _, reason in pair.reports] == [
        "second and first are not a pair",
        "third and first are not a pair",
    ]


async def test_a_good_change_is_taken_at_the_first_look(pair: Pair) -> None:
    pair.write("second", "second")
    await pair.reloader.look()
    assert pair.used == "second"
