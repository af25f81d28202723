"""Command lines: groups that import a verb when it is used, and errors of one line.

- ``Group`` lists its verbs in the order of their definition. A lazy verb is imported when it is
  given; the group's help prints its text without importing it.
- ``run`` turns every outcome into an exit code: 0 done, 1 failed, 2 wrong usage or configuration,
  130 interrupted. An error, also one of the operating system, is one line on standard error:
  ``<command>: reason [code]``.
- Everything is written with ``estcore.runtime.terminal``.
- No option takes a password or a secret: what is in ``argv`` is seen by every process.
"""

from __future__ import annotations

import difflib
import importlib
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import click
from typing_extensions import override

from estcore.errors import ConfigurationError, ESTSuiteError, in_words
from estcore.runtime.terminal import write_document, write_line

EXIT_CONFIGURATION = 2
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
_SYSTEM_ERROR = "suite.system"
PATH = click.Path(path_type=Path)
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}
"""Context settings of every command line."""

T = TypeVar("T")


class Command(click.Command):
    """A verb; ``one_of`` names options of which exactly one must be given."""

    def __init__(self, *args: Any, one_of: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._one_of = one_of

    @override
    def invoke(self, ctx: click.Context) -> Any:
        present = [name for name in self._one_of if ctx.params.get(name) is not None]
        if self._one_of and len(present) != 1:
            names = ", ".join(f"--{name}" for name in self._one_of)
            raise click.UsageError(f"give exactly one of {names}", ctx)
        return super().invoke(ctx)


class Group(click.Group):
    """A command with verbs, some of which are imported when they are used.

    ``distribution`` names the package whose version ``--version`` prints.
    """

    command_class = Command

    def __init__(self, *args: Any, distribution: str | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", dict(CONTEXT))
        super().__init__(*args, **kwargs)
        self._lazy: dict[str, tuple[str, str]] = {}
        self._fallback: Callable[[], click.Group] | None = None
        if distribution is not None:
            self.params.append(_version_option(distribution))

    def lazy(self, name: str, module: str, text: str) -> None:
        """Add a verb that ``module`` has under the same name; it is imported when it is used."""
        self._lazy[name] = (module, text)

    def fallback(self, loader: Callable[[], click.Group]) -> Callable[[], click.Group]:
        """Decorate a function that imports and returns a group with all other verbs."""
        self._fallback = loader
        return loader

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        verbs = self._fallback().list_commands(ctx) if self._fallback is not None else []
        return list(dict.fromkeys([*verbs, *self._lazy, *self.commands]))

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands and cmd_name in self._lazy:
            module, text = self._lazy[cmd_name]
            command: click.Command = getattr(
                importlib.import_module(module), cmd_name.replace("-", "_")
            )
            command.help = command.help or text
            self.commands[cmd_name] = command
        if cmd_name not in self.commands and self._fallback is not None:
            return self._fallback().get_command(ctx, cmd_name)
        return self.commands.get(cmd_name)

    @override
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name.startswith("-") or self.get_command(ctx, name) is not None:
            return super().resolve_command(ctx, args)
        near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise click.UsageError(f"no command {name}{hint}", ctx)

    @override
    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._text(ctx, name)) for name in self.list_commands(ctx)])

    def _text(self, ctx: click.Context, name: str) -> str:
        if name in self._lazy:
            return self._lazy[name][1]
        command = self.get_command(ctx, name)
        return (command.help or "").partition("\n\n")[0] if command is not None else ""


class Converted(click.ParamType[Any]):
    """A type of options made from a function that raises ValueError or OSError."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except (ValueError, OSError) as exc:
            self.fail(f"{value}: {exc}", param, ctx)


def options(*decorators: Callable[[Any], Any]) -> Callable[[T], T]:
    """Return one decorator of several, listed in the help in this order."""

    def decorate(function: T) -> T:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def given_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given: no None and no flag that is not set."""
    return {k: v for k, v in values.items() if v is not None and v is not False}


def run(
    command: click.Command,
    name: str,
    arguments: Sequence[str] | None = None,
    *,
    obj: object = None,
) -> int:
    """Carry out a command line; returns the exit code, which a verb may return itself.

    ``obj`` is what verbs find as ``obj`` of their context.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with command.make_context(name, words, obj=obj) as context:
            code = command.invoke(context)
            return code if isinstance(code, int) else 0
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as exc:
        write_document(exc.format_message() + "\n", error=True)
    except click.ClickException as exc:
        write_line(f"{name}: {_one_line(exc)}", error=True)
    except ESTSuiteError as exc:
        write_line(f"{name}: {exc.reason} [{exc.code}]", error=True)
        return EXIT_CONFIGURATION if isinstance(exc, ConfigurationError) else EXIT_FAILED
    except BrokenPipeError:
        raise
    except OSError as exc:
        # A file that an option names, or a full disk.
        write_line(f"{name}: {in_words(exc)} [{_SYSTEM_ERROR}]", error=True)
        return EXIT_FAILED
    return EXIT_CONFIGURATION


def _one_line(exc: click.ClickException) -> str:
    text = " ".join(exc.format_message().split()).removesuffix(".")
    context = exc.ctx if isinstance(exc, click.UsageError) else None
    where = f" (see {context.command_path} --help)" if context is not None else ""
    return f"{text[:1].lower()}{text[1:]}{where}"


def _version_option(distribution: str) -> click.Option:
    def show(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            write_line(
                f"{ctx.find_root().info_name} {metadata.version(distribution)} "
                f"(Python {platform.python_version()})"
            )
            ctx.exit()

    return click.Option(
        ["--version"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=show,
        help="Show the version and exit.",
    )
