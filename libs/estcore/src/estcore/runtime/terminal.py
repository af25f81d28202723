r"""Output of every command: text of others is made visible before a terminal sees it.

Names in certificates, reasons, bodies of HTTP answers and contents of files are written by
strangers. A terminal carries out the control characters in them: it hides lines, moves the cursor
and reverses text. So a command writes with the functions of this module and with nothing else.

- ``write_line`` writes exactly one line, ``write_fields`` one line of columns: a line break or a
  tab in a value cannot begin a line or a column of its own.
- ``write_document`` writes lines that we made, such as PEM; ``write_json`` writes JSON.
- ``export_file`` is for exports, whose octets are hashed: never to a terminal.
- ``VisibleStream`` stands before standard output and standard error of every command
  (``estcore.runtime.console``), for what libraries write: help, warnings, log lines.

A character that is not seen is written as JSON escapes it, ``\u001b``, so escaped JSON stays the
same JSON. A backslash that is in the text itself is left as it is, for the same reason.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from typing_extensions import override

from estcore.display import escaped, visible
from estcore.errors import ConfigurationError

_ERASE_LINE = "\r\x1b[K"
_LAYOUT = "\n\t"


def write_line(text: str = "", *, error: bool = False) -> None:
    """Write one line to standard output, or to standard error."""
    _write(visible(text) + "\n", error=error)


def write_fields(*values: object) -> None:
    """Write one line of values, separated by tabs."""
    _write("\t".join(visible(str(value)) for value in values) + "\n")


def write_document(text: str, *, error: bool = False) -> None:
    """Write text of more than one line that holds no text of others, or that escaped it."""
    _write(visible(text, keep=_LAYOUT), error=error)


def write_json(value: Mapping[str, Any] | Sequence[Any], *, indent: int | None = None) -> None:
    """Write a value as JSON: on one line, or indented."""
    # Python escapes everything outside ASCII but leaves DEL; in JSON it stands in strings only.
    _write(visible(json.dumps(value, indent=indent, default=str), keep="\n") + "\n")


STANDARD_OUTPUT = Path("-")
"""What ``--out`` says for standard output."""


@contextmanager
def export_file(path: Path, *, new: bool = False) -> Iterator[BinaryIO]:
    """Open the file of an export for its octets; ``-`` is standard output, if it is no terminal.

    ``new`` refuses a file that exists.

    Raises:
        ConfigurationError: standard output is a terminal, or the file cannot be written.
    """
    try:
        if path == STANDARD_OUTPUT:
            yield _octet_output()
        else:
            with path.open("xb" if new else "wb") as file:
                yield file
    except BrokenPipeError:
        raise  # who reads has enough; the command line ends quietly
    except OSError as exc:
        raise ConfigurationError(f"cannot write {path}: {exc.strerror}") from exc


def _octet_output() -> BinaryIO:
    if sys.stdout.isatty():
        raise ConfigurationError("standard output is a terminal: redirect it")
    stream = sys.stdout
    inner = stream.inner if isinstance(stream, VisibleStream) else stream
    return inner.buffer


def write_prompt(text: str) -> None:
    """Write a question without a line end, at once."""
    _write(visible(text))
    sys.stdout.flush()


def erase_line(stream: TextIO) -> None:
    """Erase the current line of a terminal: the only control sequence that we write."""
    if isinstance(stream, VisibleStream):
        stream.erase_line()
    else:
        stream.write(_ERASE_LINE)


class VisibleStream(io.TextIOBase):
    """A text stream that writes everything visibly to another one; lines and tabs stay.

    Text that the encoding of the other stream cannot express is escaped, too.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    @override
    def write(self, text: str, /) -> int:
        shown = visible(text, keep=_LAYOUT)
        encoding = self._stream.encoding
        if not shown.isascii() and encoding and not _encodable(shown, encoding):
            shown = "".join(c if c.isascii() else escaped(c) for c in shown)
        self._stream.write(shown)
        return len(text)

    @property
    def inner(self) -> TextIO:
        """The stream that shows what is written."""
        return self._stream

    def erase_line(self) -> None:
        """Erase the current line of the terminal."""
        self._stream.write(_ERASE_LINE)

    @property
    @override
    def encoding(self) -> str:  # type: ignore[override]  # a plain attribute in the stub
        return self._stream.encoding

    @property
    @override
    def errors(self) -> str | None:  # type: ignore[override]  # a plain attribute in the stub
        return self._stream.errors

    @override
    def writable(self) -> bool:
        return True

    @override
    def flush(self) -> None:
        self._stream.flush()

    @override
    def isatty(self) -> bool:
        return self._stream.isatty()

    @override
    def fileno(self) -> int:
        return self._stream.fileno()

    @override
    def close(self) -> None:
        """Do not close the other stream: it is the process's, and may outlive this one."""


def visible_stream(stream: TextIO) -> TextIO:
    """Return ``stream`` behind a ``VisibleStream``; one that is behind it already, as it is."""
    if isinstance(stream, VisibleStream):
        return cast("TextIO", stream)
    return cast("TextIO", VisibleStream(stream))


def _write(text: str, *, error: bool = False) -> None:
    (sys.stderr if error else sys.stdout).write(text)


def _encodable(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
