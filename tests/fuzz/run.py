"""``make fuzz``: every parser that outsiders reach, coverage-guided (atheris), and ``http``.

The target ``http`` sends mutated requests over TLS to a suite that runs, from ``--seed``.

Exit code 0: nothing but documented answers; 1: an input that made something else, kept in
``tests/fuzz/findings``. ``--keep`` adds the inputs that reach new code to ``tests/fuzz/corpus``.
"""

from __future__ import annotations

import base64
import random
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))
sys.path.insert(0, str(HERE.parent / "support"))

from tests.fuzz.targets import TARGETS, identity  # noqa: E402

from estcore.runtime import command_line  # noqa: E402 - after the path
from estcore.runtime.command_line import CONTEXT  # noqa: E402
from estsuite_testing.http_fuzz.run import run_alone  # noqa: E402

WORK = HERE.parent.parent / ".fuzz"
CORPUS = HERE / "corpus"
FINDINGS = HERE / "findings"
_MAX_OCTETS = 4096
_KEPT = 40
_KEPT_OCTETS = 1024
HTTP = "http"


@dataclass(frozen=True)
class Result:
    """What came of one target."""

    target: str
    runs: int
    finding: Path | None
    report: str


def seeds(target: str) -> list[bytes]:
    """Return the good inputs of a target and what earlier runs kept."""
    kept = CORPUS / f"{target}.txt"
    lines = kept.read_text(encoding="ascii").split() if kept.exists() else []
    return [*TARGETS[target][1], *(base64.b64decode(line) for line in lines)]


def fuzz(target: str, seconds: int) -> Result:
    """Run one target for so long, in a process of its own."""
    folder = WORK / target
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds(target):
        (folder / identity(seed)).write_bytes(seed)
    FINDINGS.mkdir(exist_ok=True)
    done = subprocess.run(
        [
            sys.executable,
            str(HERE / "one.py"),
            target,
            f"-max_total_time={seconds}",
            f"-max_len={_MAX_OCTETS}",
            "-timeout=10",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
            f"-artifact_prefix={FINDINGS}/{target}-",
            str(folder),
        ],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=seconds * 3 + 120,
    )
    output = done.stdout + done.stderr
    runs = next(
        (int(x.split()[-1]) for x in output.splitlines() if "number_of_executed_units" in x), 0
    )
    found = sorted(FINDINGS.glob(f"{target}-*"))
    if done.returncode == 0 and not found:
        return Result(target, runs, None, "")
    return Result(target, runs, found[0] if found else FINDINGS, _cause(output))


def _cause(output: str) -> str:
    lines = [x for x in output.splitlines() if x.strip() and not x.startswith(("#", "INFO:"))]
    start = next((n for n, x in enumerate(lines) if "Uncaught Python exception" in x), 0)
    return "\n".join(lines[start : start + 25])


def keep(target: str) -> int:
    """Keep the smallest inputs that reached new code; returns how many there are."""
    found = {path.read_bytes() for path in (WORK / target).iterdir()} - set(TARGETS[target][1])
    inputs = sorted((octets for octets in found if len(octets) <= _KEPT_OCTETS), key=len)[:_KEPT]
    CORPUS.mkdir(exist_ok=True)
    text = "".join(sorted(base64.b64encode(octets).decode() + "\n" for octets in inputs))
    (CORPUS / f"{target}.txt").write_text(text, encoding="ascii")
    return len(inputs)


def http(seconds: int, seed: int | None) -> Result:
    """Send mutated requests to a running suite for so long."""
    chosen = random.SystemRandom().randrange(10**6) if seed is None else seed
    outcome = run_alone(FINDINGS, seed=chosen, seconds=seconds)
    click.echo("\n".join(outcome.lines()))
    finding = (outcome.kept or FINDINGS) if outcome.findings else None
    return Result(HTTP, outcome.sent, finding, "\n".join(outcome.findings))


@click.command(context_settings=CONTEXT)
@click.option("--seconds", default=10, show_default=True, help="For each target.")
@click.option("--target", "chosen", multiple=True, type=click.Choice([*sorted(TARGETS), HTTP]))
@click.option("--keep", "keeping", is_flag=True, help="Keep inputs that reach new code.")
@click.option("--seed", type=int, help="What http sends, and when; a new one by default.")
def main(seconds: int, chosen: Sequence[str], keeping: bool, seed: int | None) -> int:
    """Give mutated octets to every parser that outsiders reach."""
    targets = [target for target in chosen or TARGETS if target != HTTP]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda target: fuzz(target, seconds), targets))
    if not chosen or HTTP in chosen:
        results.append(http(seconds, seed))
    for result in results:
        outcome = "ok" if result.finding is None else f"FOUND {result.finding}"
        click.echo(f"{result.target:14} {result.runs:>10} inputs  {outcome}")
        if result.report:
            click.echo(result.report)
    if keeping:
        for target in targets:
            click.echo(f"{target}: {keep(target)} inputs kept")
    return 0 if all(result.finding is None for result in results) else 1


if __name__ == "__main__":
    sys.exit(command_line.run(main, "make fuzz"))
