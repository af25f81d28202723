"""One run of ``make conformance TARGET=…``, with everything that it printed and wrote."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

TOOL = Path(__file__).parents[2] / "conformance" / "run.py"
USER, PASSWORD = "web-bootstrap", "Zq7!uK2%wX9|bN4<vM6"


@dataclass
class Run:
    """What a run printed and wrote."""

    code: int
    output: str
    markdown: str
    junit: ElementTree.Element
    everything: str

    def verdict(self, item: str) -> tuple[str, str, str]:
        """Level, verdict and sentence of an item, from the terminal."""
        found = re.search(
            rf"^{item} +([MSOIX]) +(pass|FAIL|not judged) +(.*(?:\n {{20,}}.*)*)$",
            self.output,
            re.MULTILINE,
        )
        assert found is not None, self.output
        return found[1], found[2], " ".join(found[3].split())


def run_against(url: str, ca_file: Path, folder: Path, *more: str) -> Run:
    """Run the tool against a server; its reports go into the folder."""
    secret = folder / "password"
    secret.write_text(f"{PASSWORD}\n")
    report, junit = folder / "report.md", folder / "report.xml"
    done = subprocess.run(
        [
            sys.executable, TOOL, "--target", url, "--ca", ca_file,
            "--user", USER, "--password-file", secret, "--timeout", "2",
            "--report", report, "--junit", junit, *more,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=240,
    )  # fmt: skip
    assert report.exists(), done.stdout + done.stderr
    texts = (done.stdout, done.stderr, report.read_text(), junit.read_text())
    suite = ElementTree.fromstring(texts[3])  # noqa: S314 - written by the tool
    return Run(done.returncode, done.stdout, texts[2], suite, "".join(texts))
