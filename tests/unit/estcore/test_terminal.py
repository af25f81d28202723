"""Output: no text of a stranger reaches a terminal unescaped, whichever command writes it."""

from __future__ import annotations

import ast
import io
import json
import logging
import sys
import unicodedata
from pathlib import Path
from typing import Literal

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from estcore import display
from estcore.errors import ESTSuiteError
from estcore.runtime import command_line, terminal
from estcore.runtime.console import console_script
from estcore.runtime.logs import JSONFormatter, fields
from estdev.story import Story

ROOT = Path(__file__).parents[3]
Category = Literal["Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"]
HIDDEN: tuple[Category, ...] = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
OUTPUT_MODULES = {
    f"libs/estcore/src/estcore/runtime/{name}.py" for name in ("terminal", "console", "logs")
} | {"libs/estdev/src/estdev/story.py"}
"""Which may name the standard streams; every other module calls ``estcore.runtime.terminal``."""

hostile = st.text(
    st.one_of(
        st.characters(),
        st.characters(categories=HIDDEN),
        st.sampled_from("\x1b\x9b\x7f\r\n\t\u202e\u2066\u200b\u2028\ufeff\u3164\ufe0f\ud800"),
    )
)
CONCEAL = "\x1b[8m\x9b2J\r\u202egnp\u2028\ud800"


def assert_visible(text: str, keep: str = "\n\t") -> None:
    seen = [c for c in text if c not in keep and unicodedata.category(c) in HIDDEN]
    assert seen == []


@given(hostile)
def test_no_hidden_character_stays(text: str) -> None:
    assert_visible(display.visible(text), keep="")
    assert_visible(display.visible(text, keep="\n\t"))
    assert display.visible(display.visible(text)) == display.visible(text)


def test_every_hidden_character_of_unicode_is_escaped() -> None:
    for number in range(0x110000):
        character = chr(number)
        if unicodedata.category(character) in HIDDEN:
            assert display.visible(character).isascii()


def test_text_that_people_read_stays_as_it_is() -> None:
    for text in ("CN=web.clinic.example", "Zürich, 東京 Ω", r"a\b", ""):
        assert display.visible(text) == text


def test_fillers_that_are_drawn_as_nothing_are_escaped() -> None:
    assert display.visible("a\u3164b\ufe0f\U000e0101") == r"a\u3164b\ufe0f\udb40\udd01"


@given(hostile, hostile)
def test_escaped_json_is_the_same_json(name: str, value: str) -> None:
    wide = json.dumps({name: value}, ensure_ascii=False)
    assert json.loads(display.visible(wide)) == json.loads(wide)


@given(hostile)
def test_a_line_is_one_line_whatever_is_in_it(text: str) -> None:
    for stream in _written(lambda: terminal.write_line(f"reason {text}")):
        assert_visible(stream, keep="\n")
        assert stream.count("\n") == 1


@given(st.lists(hostile, min_size=1))
def test_a_value_adds_no_column(values: list[str]) -> None:
    (line,) = _written(lambda: terminal.write_fields(*values))
    assert line.count("\t") == len(values) - 1
    assert line.count("\n") == 1


@given(hostile, hostile)
def test_json_is_written_visibly_and_read_back(name: str, value: str) -> None:
    (line,) = _written(lambda: terminal.write_json({name: [value]}))
    assert_visible(line, keep="\n")
    assert json.loads(line) == {name: [value]}


@given(hostile)
def test_a_stream_of_a_command_is_visible(text: str) -> None:
    out = io.StringIO()
    terminal.visible_stream(out).write(text)
    assert_visible(out.getvalue())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_stream_of_any_encoding_takes_any_text(encoding: str) -> None:
    octets = io.BytesIO()
    out = terminal.visible_stream(io.TextIOWrapper(octets, encoding=encoding))
    out.write("Ω é 𝄞 " + CONCEAL)
    out.flush()
    assert_visible(octets.getvalue().decode(encoding))


@given(hostile)
def test_an_error_of_a_command_is_one_visible_line(text: str) -> None:
    def fails(error: Exception) -> click.Command:
        def callback() -> None:
            raise error

        return click.Command("fails", callback=callback)

    # Names of files are octets: of half characters, only those that stand for an octet.
    name = text.replace("\0", "0").encode("utf-8", "replace").decode() + "\udc80"
    for error in (
        ESTSuiteError(f"the server answers 400: {text}"),
        ESTSuiteError("refused", code=text),
        click.UsageError(text),
        click.FileError(name, text),
    ):
        (line,) = _written(lambda e=error: command_line.run(fails(e), "command", []), sys_err=True)
        assert_visible(line, keep="\n")
        assert line.count("\n") == 1


@given(hostile)
def test_a_log_line_is_visible_and_valid_json(text: str) -> None:
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "refused %s", (text,), None)
    record.__dict__.update(fields(user_agent=text, reason=[text]))
    line = JSONFormatter("service", "1").format(record)
    assert_visible(line, keep="")
    json.loads(line)


def test_what_libraries_and_crashes_write_is_visible(capsys: pytest.CaptureFixture[str]) -> None:
    @console_script
    def careless() -> None:
        click.echo(CONCEAL)
        sys.stderr.write(CONCEAL)
        raise LookupError(CONCEAL)

    outputs, hook = (sys.stdout, sys.stderr), sys.excepthook
    try:
        with pytest.raises(LookupError) as caught:
            careless()
        assert (sys.stdout, sys.stderr) == outputs
        sys.excepthook(caught.type, caught.value, caught.tb)
    finally:
        sys.excepthook = hook
    captured = capsys.readouterr()
    assert r"\u202egnp" in captured.out
    assert r"\u001b[8m" in captured.err
    assert "LookupError" in captured.err
    assert_visible(captured.out + captured.err)


class _Terminal(io.StringIO):
    @override
    def isatty(self) -> bool:
        return True


@given(hostile)
def test_the_story_of_the_local_suite_is_visible(text: str) -> None:
    out = _Terminal()
    story = Story(out)
    story.waiting(text)
    story.step(text)
    story.detail(text)
    assert_visible(out.getvalue().replace("\r\x1b[K", ""))


def test_only_the_output_modules_write_to_the_standard_streams() -> None:
    found = []
    files = [f for top in ("libs", "services") for f in ROOT.glob(f"{top}/*/src/**/*.py")]
    assert len(files) > 200
    for file in files:
        name = file.relative_to(ROOT).as_posix()
        if name not in OUTPUT_MODULES:
            found += [f"{name}:{line}" for line in _writes(ast.parse(file.read_text()))]
    assert found == [], "use estcore.runtime.terminal"


def _writes(tree: ast.Module) -> list[int]:
    """Lines with print, click.echo and the like, or sys.stdout and sys.stderr."""
    lines = []
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="print")):
                lines.append(node.lineno)
            case ast.Attribute(
                value=ast.Name(id="sys"), attr="stdout" | "stderr" | "__stdout__" | "__stderr__"
            ):
                lines.append(node.lineno)
            case ast.Attribute(
                value=ast.Name(id="click"), attr="echo" | "secho" | "prompt" | "confirm" | "style"
            ):
                lines.append(node.lineno)
            case ast.ImportFrom(module="sys", names=names):
                lines += [node.lineno for n in names if n.name in {"stdout", "stderr"}]
            case _:
                pass
    return lines


def _written(action: object, *, sys_err: bool = False) -> list[str]:
    """What a call writes; Hypothesis repeats the test, so without the fixture of pytest."""
    assert callable(action)
    streams = sys.stdout, sys.stderr
    out, err = io.StringIO(), io.StringIO()
    sys.stdout, sys.stderr = out, err
    try:
        action()
    finally:
        sys.stdout, sys.stderr = streams
    return [err.getvalue() if sys_err else out.getvalue()]


def test_an_error_of_the_system_is_one_line_with_its_path() -> None:
    def callback() -> None:
        Path("/dev/full").write_text("x" * 100_000)

    command = click.Command("full", callback=callback)
    (line,) = _written(lambda: command_line.run(command, "command", []), sys_err=True)
    assert line == "command: No space left on device [suite.system]\n"

    def missing() -> None:
        Path("/nowhere/file").write_text("x")

    command = click.Command("missing", callback=missing)
    (line,) = _written(lambda: command_line.run(command, "command", []), sys_err=True)
    assert line == "command: No such file or directory: /nowhere/file [suite.system]\n"


@given(hostile)
def test_no_value_is_a_formula_of_a_spreadsheet(text: str) -> None:
    shown = display.spreadsheet_value(display.visible(text))
    assert not shown.startswith(("=", "+", "-", "@"))
    assert shown.isprintable()
