"""What every command shares: examples in the help, suggestions for typos, the output options, and how errors end."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import click

from hub_merge.cli.output import Output, OutputMode
from hub_merge.errors import HubMergeError

__all__ = ["Command", "Group", "output_options", "run_cli"]

Function = TypeVar("Function", bound=Callable[..., Any])

TOKEN = re.compile(r"hf_\w{20,}")


class Command(click.Command):
    """A command with examples."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples below the options, as the reader would type them."""
        program = ctx.find_root().info_name
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"  $ {program} {example}\n")
        super().format_epilog(ctx, formatter)


class Group(click.Group):
    """The group of commands: suggests the nearest one for a typo and shows an example of each."""

    command_class = Command

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
        with formatter.section("Examples"):
            for command in self.commands.values():
                if isinstance(command, Command) and command.examples:
                    formatter.write(f"  $ {ctx.info_name} {command.examples[0]}\n")


def output_options(function: Function) -> Function:
    """Add ``--format``, ``--json``, ``-q`` and ``--no-truncate``; the command gets an ``Output`` as ``out``."""

    def wrapper(
        *args: Any, output_format: str | None, as_json: bool, quiet: bool, no_truncate: bool, **kwargs: Any
    ) -> Any:
        asked = [mode for mode in (output_format, as_json and "json", quiet and "quiet") if mode]
        if len(asked) > 1:
            raise click.UsageError("--format, --json and --quiet exclude each other.")
        mode: OutputMode = asked[0] if asked else "auto"  # type: ignore[assignment]
        return function(*args, out=Output(mode, truncate=not no_truncate), **kwargs)

    wrapper.__name__, wrapper.__doc__ = function.__name__, function.__doc__
    wrapper.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    for option in (
        click.option("--no-truncate", is_flag=True, help="Do not cut table cells to the width of the terminal."),
        click.option("-q", "--quiet", is_flag=True, help="Print the main value of each row only."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
        click.option(
            "--format",
            "output_format",
            type=click.Choice(["auto", "human", "agent", "json", "quiet"]),
            help="How to print; auto is human, or agent where one is detected.",
        ),
    ):
        option(wrapper)
    return wrapper  # type: ignore[return-value]


def run_cli(group: click.Group) -> NoReturn:
    """Run the command line and end the process: 0 done, 1 refused or failed, 2 usage, 130 interrupted."""
    name = os.path.basename(sys.argv[0]).removesuffix(".exe")  # noqa: PTH119
    program = {"hf-merge": "hf merge", "__main__.py": "python -m hub_merge"}.get(name, "hub-merge")
    try:
        code = group.main(prog_name=program, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _tell("Interrupted.")
        code = 130
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
        code = 1
    except HubMergeError as error:
        if os.environ.get("HF_DEBUG"):
            raise
        _tell(f"Error: {error.problem}")
        if error.remedy:
            _tell(f"Try: {error.remedy}")
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _tell(text: str) -> None:
    click.echo(TOKEN.sub("hf_***", text), err=True)
