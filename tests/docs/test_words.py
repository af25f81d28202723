"""The project speaks the field's language: words that hide the actor or the term are refused.

Looked at: docstrings, comments and texts (logs, errors, help) of every module, and every page. The
words to use instead are in CONTRIBUTING.md and in the glossary of docs/architecture.md.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTEAD = {
    "nobody|no one": "name who does not, or use the passive",
    "somebody|someone": "name the actor: a client, an operator, an attacker",
    "whoever": "name the actor",
    "tells?|told|telling|teller": "publish, report, answer, return",
    "hears?|heard": "receive, received",
    "believes?|believed": "trust, accept",
    "vouch(?:es|ed)?": "sign, certify",
    "elsewhere": "upstream, outside the suite",
    "the other ca|another ca": "upstream CA, a different CA",
    "(?:is|are|was|were|stays?|goes|went|gone) away": "unavailable, offline",
    "settles?|settled": "resolve, resolved, computed",
    "left alone|puts? off": "circuit breaker open, retried later",
    "announced? again": "publish again",
    "tak(?:es?|ing) over|taken over|took over": "reload, resume, acquire",
    "judges?|(?<!not )judged|judging": "check, verify, lint; an item of conformance may be *not judged*",
    "desk|riddle|rite": "name the thing",
}
TERMS = {"tracing", "channel_binding"}
"""OpenTelemetry's word, and RFC 5929's."""
_WORDS = re.compile(rf"(?<![\w`/.-])(?:{'|'.join(INSTEAD)})(?![\w`/-])", re.IGNORECASE)
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)

MODULES = sorted(
    file
    for folder in ("libs", "services", "deploy", "docs", "benchmarks", "tests")
    for file in (ROOT / folder).rglob("*.py")
    if ".venv" not in file.parts
)
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(
        file
        for folder in ("docs", "deploy", "services", "libs", "tests", "benchmarks")
        for file in (ROOT / folder).rglob("*.md")
        if ".venv" not in file.parts
    ),
]


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of every comment and string of a module."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def refused(text: str) -> list[str]:
    """Return the refused words of a text, code in backticks left out."""
    return [m.group() for m in _WORDS.finditer(_CODE.sub(" ", text))]


def test_every_module_uses_the_words_of_the_field() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{line}: {word}"
        for file in MODULES
        if file != Path(__file__)
        for line, text in texts(file.read_text(encoding="utf-8"))
        for word in refused(text)
    ]
    assert not found, f"use instead: {INSTEAD}"


def test_every_page_uses_the_words_of_the_field() -> None:
    found = [
        f"{page.relative_to(ROOT)}: {word}"
        for page in PAGES
        for word in refused(page.read_text(encoding="utf-8"))
    ]
    assert not found, f"use instead: {INSTEAD}"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Nobody waits for it.", "Nobody"),
        ("NATS is away", "is away"),
        ("front ends are told of it", "told"),
        ("settled in one transaction", "settled"),
        ("another CA signed it", "another CA"),
    ],
)
def test_a_refused_word_is_found(text: str, word: str) -> None:
    assert refused(text) == [word]


def test_code_and_compounds_are_no_prose() -> None:
    assert refused("`nobody` owns `judge`; throw-away keys; /told/ and re-tell") == []


SHIPPED = [f for f in MODULES if f.relative_to(ROOT).parts[0] in {"libs", "services"}]


def test_every_module_is_named_by_a_noun() -> None:
    """A module holds things: ``publisher``, not ``publishing``. Packages name subjects."""
    verbs = [
        str(f.relative_to(ROOT)) for f in SHIPPED if f.stem.endswith("ing") and f.stem not in TERMS
    ]
    assert not verbs, "name the module by a noun"


def test_every_module_says_what_it_is() -> None:
    """The first line of its docstring; packages may be without."""
    silent = []
    for file in SHIPPED:
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        named = len(text) > 15 or (file.name == "__init__.py" and not text)
        if not named or re.search(r"TODO|FIXME|XXX", text):
            silent.append(str(file.relative_to(ROOT)))
    assert silent == []
