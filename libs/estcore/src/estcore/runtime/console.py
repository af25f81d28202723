"""Entry of every command: its output is visible text, and a closed pipe ends it quietly.

The memory of every command is in no core file (``estcore.runtime.process``): most hold a key.

Both outputs are put behind ``VisibleStream`` while a command runs, so that no verb and no library
writes a control character of a stranger to a terminal.

``estctl audit verify … | head`` ends as other Unix tools do, with the exit code of SIGPIPE and
without a traceback. SIGPIPE itself stays ignored: a service must survive a closed connection.
"""

from __future__ import annotations

import functools
import os
import select
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, TypeVar

from estcore.runtime.process import forbid_dumps
from estcore.runtime.terminal import visible_stream

P = ParamSpec("P")
T = TypeVar("T")

EXIT_OUTPUT_CLOSED = 141
"""128 + SIGPIPE, what a shell reports of a process that SIGPIPE ended."""

_OUTPUTS = (1, 2)


def console_script(main: Callable[P, T]) -> Callable[P, T]:
    """Decorate the function that a ``[project.scripts]`` entry names."""

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        forbid_dumps()
        outputs = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = map(visible_stream, outputs)
        # The interpreter prints an unexpected error after this function, to the bare stream.
        sys.excepthook = _print_exception
        try:
            try:
                return main(*args, **kwargs)
            finally:
                # Here, not at the interpreter's exit, where the error could not be caught.
                sys.stdout.flush()
        except BaseException as exc:  # Cleanup, then raised again: a closed output as SystemExit.
            if not (_is_broken_pipe(exc) and output_closed()):
                raise
            _discard_output()
            sys.exit(EXIT_OUTPUT_CLOSED)
        finally:
            sys.stdout, sys.stderr = outputs

    return run


def _print_exception(
    kind: type[BaseException], error: BaseException, place: TracebackType | None
) -> None:
    visible_stream(sys.stderr).write("".join(traceback.format_exception(kind, error, place)))


def output_closed() -> bool:
    """Return whether the reader of standard output or standard error is gone."""
    poll = select.poll()
    for descriptor in _OUTPUTS:
        poll.register(descriptor, 0)
    gone = select.POLLERR | select.POLLHUP
    return any(events & gone for _, events in poll.poll(0))


def _is_broken_pipe(exc: BaseException) -> bool:
    if isinstance(exc, BaseExceptionGroup):
        return any(_is_broken_pipe(inner) for inner in exc.exceptions)
    return isinstance(exc, BrokenPipeError)


def _discard_output() -> None:
    """Point the outputs at /dev/null, so that the interpreter's last flush succeeds."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in _OUTPUTS:
        os.dup2(null, descriptor)
    os.close(null)
