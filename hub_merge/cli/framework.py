"""What every command shares: examples in the help, suggestions for typos, and how errors end."""

from __future__ import annotations

import difflib
import io
import os
import sys
import traceback
import warnings
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from hub_merge.cli.output import program_name, tell
from hub_merge.errors import HubMergeError

__all__ = ["Command", "Group", "Shelf", "command", "run_cli"]

INTERRUPTED = 130


class Command(click.Command):
    """A command with examples."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read options and arguments; an option of a merge method is told how it is written."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if any("--option" in param.opts for param in self.params) and (told := _of_methods(error, given)):
                raise click.UsageError(told, ctx) from error
            raise

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples below the options, as the reader would type them."""
        _write_examples(ctx, formatter, self.examples)


def _of_methods(error: click.NoSuchOption, given: Sequence[str]) -> str:
    """Return how an option that ``merge`` does not have is given to the methods that have it, empty if none has."""
    from hub_merge.methods import list_methods

    name = error.option_name.lstrip("-").replace("-", "_")
    owners = [method.name for method in list_methods() if any(option.name == name for option in method.options)]
    if not owners:
        return ""
    kind = f"the method {owners[0]}" if len(owners) == 1 else f"the methods {', '.join(owners)}"
    return f"{name} is an option of {kind}: write --option {name}={_value_of(error.option_name, given)}"


def _value_of(option: str, given: Sequence[str]) -> str:
    """Return the value that an option was given on the command line, ``VALUE`` if none."""
    values = [
        word.removeprefix(f"{option}=") if word.startswith(f"{option}=") else after
        for word, after in zip(given, [*given[1:], ""], strict=True)
        if word.partition("=")[0] == option
    ]
    return values[0] if values and values[0] and not values[0].startswith("-") else "VALUE"


def command(**settings: Any) -> Callable[[Callable[..., Any]], Command]:
    """Make a function a command; see ``Command``."""
    return click.command(cls=Command, **settings)


class Shelf(UserDict[str, Any]):
    """Commands by name, in the order of the work, each imported from its module when it is first asked for."""

    def __init__(self, modules: Mapping[str, Sequence[str]]) -> None:
        super().__init__({name: module for module, names in modules.items() for name in names})

    def __getitem__(self, name: str) -> click.Command:
        """Return the command, which its module holds under its own name."""
        found = self.data[name]
        if isinstance(found, str):
            found = self.data[name] = getattr(import_module(found), name)
        return found  # type: ignore[no-any-return]


class Group(click.Group):
    """A group of commands: suggests the nearest one for a typo and shows an example of each."""

    command_class = Command

    def __init__(self, *args: Any, modules: Mapping[str, Sequence[str]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if modules is not None:
            self.commands = Shelf(modules)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options before the command; one that belongs behind it is told so."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            owners = [
                name
                for name, command in self.commands.items()
                if any(error.option_name in param.opts for param in command.params)
            ]
            if not owners:
                raise
            raise click.UsageError(
                f"{error.option_name} is an option of the commands: write it after one of {', '.join(owners)}.", ctx
            ) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the one that was probably meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = difflib.get_close_matches(args[0], self.commands, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"Commands: {', '.join(self.commands)}."
            raise click.UsageError(f"There is no command {args[0]!r}. {hint}", ctx) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Keep the order of the work: find, look, merge, publish."""
        return list(self.commands)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the first example of each command."""
        _write_examples(ctx, formatter, [c.examples[0] for c in self.commands.values() if isinstance(c, Command)])
        formatter.write_paragraph()
        formatter.write_text(f"Options and more examples of a command: {ctx.command_path} COMMAND --help")


def _write_examples(ctx: click.Context, formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    with formatter.section("Examples"):
        for example in examples:
            formatter.write(f"  $ {ctx.find_root().info_name} {example}\n")


def run_cli(group: click.Group) -> NoReturn:
    """Run the command line and end the process: 0 done, 1 refused or failed, 2 usage, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    color = False if os.environ.get("NO_COLOR") else None
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _tell_warning
            code = group.main(prog_name=program_name(), standalone_mode=False, windows_expand_args=False, color=color)
    except click.ClickException as error:
        code = _show_usage_error(error)
    except (click.Abort, KeyboardInterrupt):
        tell("Interrupted.")
        code = INTERRUPTED
    except Exception as error:
        code = _explain(error)
    sys.exit(code or 0)


def _tell_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning without the file and line that raised it."""
    tell(f"Warning: {message}")


def _show_usage_error(error: click.ClickException) -> int:
    text = io.StringIO()
    error.show(text)
    tell(text.getvalue().rstrip())
    return error.exit_code


def _explain(error: Exception) -> int:
    """Tell an error and the way out of it; with HF_DEBUG, where it came from too."""
    if os.environ.get("HF_DEBUG", "").upper() in ("1", "ON", "YES", "TRUE"):
        tell(traceback.format_exc())
    problem, remedy = _problem(error)
    tell(f"Error: {problem}")
    if remedy:
        tell(f"Try: {remedy}")
    return 1


def _problem(error: Exception) -> tuple[str, str | None]:
    match error:
        case HubMergeError():
            return error.problem, error.remedy
        case OSError() if error.strerror:
            place = f"{error.filename}: " if error.filename else ""
            return f"{place}{error.strerror}.", "Check the path, the right to write there, and the free space."
    return (
        f"Unexpected {type(error).__name__}: {error}",
        "Set HF_DEBUG=1 to see the traceback, and report it: this is a bug in hub-merge.",
    )
