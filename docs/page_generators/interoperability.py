"""The tables of clients and tools of other makers, from what the tests expect of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).parents[2] / "tests/support/estsuite_testing/foreign/expected.yaml"
_ABOUT = ("version", "tests", "note")
_SHOWN = {"ok": "yes", "-": "–"}


def page() -> str:
    """Return the generated part of interoperability.md."""
    table = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return "\n".join([*_clients(table["clients"]), "", *_requests(table["requests"]), ""])


def _clients(clients: dict[str, dict[str, str]]) -> list[str]:
    scenarios = [name for name in next(iter(clients.values())) if name not in _ABOUT]
    lines = ["## Clients", "", _row(["", *clients]), _row(["---"] * (len(clients) + 1))]
    for scenario in scenarios:
        results = [client[scenario] for client in clients.values()]
        lines.append(_row([scenario, *(_SHOWN.get(r, "refused") for r in results)]))
    lines += ["", _row(["client", "version", "run by", "remarks"]), _row(["---"] * 4)]
    for name, client in clients.items():
        lines.append(_row([name, client["version"], f"`{client['tests']}`", client["note"]]))
    return lines


def _requests(tools: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["## Tools that make CSRs", ""]
    lines += [_row(["tool", "version", "accepted", "refused", "run by"]), _row(["---"] * 5)]
    for tool, row in tools.items():
        cases = {name.removeprefix(f"{tool}-"): result for name, result in row["cases"].items()}
        accepted = ", ".join(name for name, result in cases.items() if result == "ok")
        refused = ", ".join(f"{n} (`{r}`)" for n, r in cases.items() if r != "ok")
        lines.append(_row([tool, row["version"], accepted, refused or "–", f"`{row['tests']}`"]))
    return lines


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
