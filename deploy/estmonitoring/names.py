"""Names of metrics: which exist, and which expressions use."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import yaml

_USED = re.compile(r"\b(?:estsuite|est|ca_signer|estctl)_[a-z0-9_]+\b")
_RECORDED = re.compile(r"\bestsuite:[a-z0-9_:]+\b")
_STRING = re.compile(r'"[^"]*"')
_SUFFIXES = ("_bucket", "_sum", "_count")


def unknown(expressions: Iterable[str], metrics: set[str], recorded: set[str]) -> list[str]:
    """Return the names in PromQL expressions that no service exposes and no rule records."""
    found = set()
    for expression in expressions:
        text = _STRING.sub('""', expression)
        found |= {n for n in _RECORDED.findall(text) if n not in recorded}
        found |= {n for n in _USED.findall(text) if not _exists(n, metrics)}
    return sorted(found)


def _exists(name: str, metrics: set[str]) -> bool:
    return name in metrics or any(name.removesuffix(s) in metrics for s in _SUFFIXES)


def in_rules(folder: Path) -> tuple[list[str], set[str]]:
    """Return the expressions of the rule files in a folder, and the names they record."""
    expressions, recorded = [], set()
    for path in sorted(folder.glob("*.yaml")):
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            for rule in group["rules"]:
                expressions.append(rule["expr"])
                recorded |= {rule["record"]} if "record" in rule else set()
    return expressions, recorded
