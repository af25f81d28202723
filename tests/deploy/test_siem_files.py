"""Files of ``deploy/siem`` name actions, codes and fields that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from estcore.messages.audit import AuditRecord

ROOT = Path(__file__).parents[2]
SIEM = ROOT / "deploy" / "siem"
RULES = sorted((SIEM / "sigma").glob("*.yml"))
_RECORD_PATH = re.compile(r"record(?:\.\w+)+")


@pytest.fixture(scope="module")
def sources() -> str:
    files = [*ROOT.glob("services/*/src/**/*.py"), *ROOT.glob("libs/estcore/src/**/*.py")]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


@pytest.fixture(scope="module")
def error_codes() -> set[str]:
    page = (ROOT / "docs/operations/errors.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    return {code for row in rows for code in re.findall(r"`([a-z_.]+)`", row)}


def criteria(file: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Yield field, modifier and values of every criterion of a rule."""
    for rule in yaml.safe_load_all(file.read_text(encoding="utf-8")):
        for selection in rule.get("detection", {}).values():
            if not isinstance(selection, dict):
                continue
            for key, value in selection.items():
                name, _, modifier = key.partition("|")
                yield name, modifier, value if isinstance(value, list) else [value]


def is_reported(action: str, sources: str) -> bool:
    """Actions of operators are made of a verb: operator.certificate-revoke."""
    return f'"{action.removeprefix("operator.")}"' in sources or f'"{action}"' in sources


@pytest.mark.parametrize("file", RULES, ids=lambda file: file.stem)
def test_a_sigma_rule_names_what_services_report(
    file: Path, sources: str, error_codes: set[str]
) -> None:
    template = json.loads((SIEM / "elasticsearch/index-template.json").read_text(encoding="utf-8"))
    properties = template["template"]["mappings"]["properties"]
    found = list(criteria(file))
    assert found
    for name, modifier, values in found:
        inside: dict[str, Any] = {"properties": properties}
        for step in name.split("."):
            inside = inside["properties"][step]
        assert inside["type"] == "keyword"
        for value in values:
            if name == "event.code":
                known = {c for c in error_codes if c == value or (modifier and c.startswith(value))}
                assert known, value
            elif name == "event.action" and not modifier:
                assert is_reported(value, sources), value


def test_splunk_fields_are_members_of_records() -> None:
    text = (SIEM / "splunk/props.conf").read_text(encoding="utf-8")
    paths = set(_RECORD_PATH.findall(text))
    assert len(paths) > 10
    for path in paths:
        model: Any = AuditRecord
        for step in path.split(".")[1:]:
            annotation = model.model_fields[step].annotation
            parts = [annotation, *getattr(annotation, "__args__", ())]
            model = next((one for one in parts if hasattr(one, "model_fields")), None)
