"""Printing: data on stdout, everything else on stderr, in the form that the reader can use.

``human`` is padded tables, ``agent`` tab-separated values with the keys as they are, ``json`` one document, ``quiet``
the main value only.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, Literal

import click

__all__ = ["COMMANDS", "OUTPUT_MODES", "Output", "OutputMode", "printable", "program_name", "tell"]

OutputMode = Literal["auto", "human", "agent", "json", "quiet"]
OUTPUT_MODES: tuple[OutputMode, ...] = ("auto", "human", "agent", "json", "quiet")

Formats = Mapping[str, Callable[[Any], str]]
"""How people see the values of a column, where that differs from the plain value."""

COMMANDS = (
    *("search", "inspect", "check", "score", "advise", "merge", "compress", "convert", "verify"),
    *("fuse", "extract", "eval", "card", "push", "zoo", "ui", "methods"),
)
OWN_COMMAND = re.compile(rf"\bhub-merge(?= (?:{'|'.join(COMMANDS)})\b)")

NARROWEST = 8
"""Characters to which a column of text is cut at most before the line as a whole is cut."""
SILENT_TERMINAL = (100, 24)
"""The size to take a terminal for that does not tell its own."""
UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories of characters that steer a terminal instead of showing something."""
MOST_WRITTEN_OUT = 1e9
"""From here on people see a number as a power of ten."""
SHORTEST_SECRET = 8


class Output:
    """Prints results in one mode."""

    def __init__(self, mode: OutputMode, *, truncate: bool = True) -> None:
        self.mode = _detect() if mode == "auto" else mode
        self._truncate = truncate

    @property
    def human(self) -> bool:
        """Whether a person reads along."""
        return self.mode == "human"

    @property
    def animated(self) -> bool:
        """Whether a progress bar may be drawn."""
        return self.human and sys.stderr.isatty()

    def document(self, content: Any) -> None:
        """Print ``content`` as one JSON document; numbers that JSON lacks become null."""
        click.echo(json.dumps(_finite(content), separators=(",", ":"), allow_nan=False))

    def table(
        self,
        rows: Sequence[Mapping[str, Any]],
        columns: Sequence[str],
        *,
        title: str = "",
        main: str | None = None,
        formats: Formats = MappingProxyType({}),
    ) -> None:
        """Print ``columns`` of ``rows``, in JSON all there is; ``main`` is what ``quiet`` shows, else the first."""
        if self.mode == "json":
            self.document(list(rows))
        elif self.mode == "quiet":
            for row in rows:
                click.echo(_plain(row.get(main or columns[0])))
        elif self.mode == "agent":
            click.echo("\t".join(printable(column) for column in columns))
            for row in rows:
                click.echo("\t".join(_plain(row.get(column)) for column in columns))
        else:
            self._human_table(rows, columns, title, formats)

    def _human_table(
        self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], title: str, formats: Formats
    ) -> None:
        if title:
            click.secho(title, bold=True)
        if not rows:
            click.echo("(none)")
            return
        headers = [printable(column).upper().replace(" ", "_") for column in columns]
        cells = [[_human(row.get(column), formats.get(column)) for column in columns] for row in rows]
        numeric = [all(_is_number(row.get(column)) for row in rows) for column in columns]
        whole = [number or column in formats for number, column in zip(numeric, columns, strict=True)]
        widths = [max(len(line[i]) for line in [headers, *cells]) for i in range(len(columns))]
        room = _terminal_width() if self._truncate else sys.maxsize
        fitted = _fitted(widths, whole, room)
        for number, line in enumerate([headers, *cells]):
            text = "  ".join(
                _cut(cell, width).rjust(width) if right else _cut(cell, width).ljust(width)
                for cell, width, right in zip(line, fitted, numeric, strict=True)
            )
            click.secho(_cut(text.rstrip(), room), bold=number == 0)
        if _line_width(widths) > room:
            self.hint("add --no-truncate or --json to see the values in full")

    def fields(self, values: Mapping[str, Any], *, title: str = "", formats: Formats = MappingProxyType({})) -> None:
        """Print one thing's values; the first is what ``quiet`` shows. People do not see those that are ``None``."""
        if self.mode == "json":
            self.document(values)
        elif self.mode == "quiet":
            click.echo(_plain(next(iter(values.values()), None)))
        elif self.mode == "agent":
            for key, value in values.items():
                click.echo(f"{key}={_plain(value)}")
        else:
            if title:
                click.secho(printable(title), bold=True)
            width = max(len(key) for key in values)
            for key, value in values.items():
                if value is not None:
                    label = f"{key.replace('_', ' ')}:"
                    click.echo(f"  {label:<{width + 1}} {_human(value, formats.get(key))}")

    def stream(self, columns: Sequence[str]) -> Callable[[Mapping[str, Any], str], None]:
        """Return what prints one row at once: the line for people, a document for JSON, else ``columns``."""
        if self.mode == "agent":
            click.echo("\t".join(columns))

        def show(row: Mapping[str, Any], line: str) -> None:
            if self.mode == "json":
                self.document(row)
            elif self.mode == "quiet":
                click.echo(_plain(row.get(columns[0])))
            elif self.mode == "agent":
                click.echo("\t".join(_plain(row.get(column)) for column in columns))
            else:
                self.line(line)
            sys.stdout.flush()

        return show

    def line(self, text: str) -> None:
        """Print a line for people on stdout; the other modes have it in their data."""
        if self.human:
            click.echo(printable(text, keep="\n"))

    def note(self, text: str) -> None:
        """Print on stderr what was done; not in quiet mode."""
        if self.mode != "quiet":
            tell(text)

    def warning(self, text: str) -> None:
        """Print on stderr what should not be overlooked; not in quiet mode."""
        if self.mode != "quiet":
            tell(f"Warning: {text}")

    def hint(self, text: str) -> None:
        """Print on stderr what could be done next; not in quiet mode."""
        if self.mode != "quiet":
            tell(f"Hint: {text}")

    def progress(self) -> Callable[[str, int, int], None]:
        """Return a callback that draws progress on stderr for people at a terminal, and does nothing otherwise."""
        if not self.animated:
            return lambda step, done, total: None

        def show(step: str, done: int, total: int) -> None:
            filled = 24 * done // max(total, 1)
            bar = "█" * filled + "░" * (24 - filled)
            end = "\n" if done >= total else "\r"
            click.echo(f"{step:>6} {bar} {done}/{total}{end}", nl=False, err=True)

        return show


def tell(text: str) -> None:
    """Print on stderr, over an unfinished progress bar, without secrets and under the name that the user typed."""
    if sys.stderr.isatty():
        click.echo("\033[K", nl=False, err=True)
    named = OWN_COMMAND.sub(program_name(), text)
    click.echo(_without_secrets(printable(named, keep="\n")), err=True)


def program_name() -> str:
    """Return what the user typed to get here: ``hub-merge``, ``hf merge`` or ``python -m hub_merge``."""
    name = PurePath(sys.argv[0]).name.removesuffix(".exe")
    return {"hf-merge": "hf merge", "__main__.py": "python -m hub_merge"}.get(name, "hub-merge")


def printable(text: str, *, keep: str = "") -> str:
    """Return ``text`` with a mark for each character that would steer the terminal, apart from those in ``keep``."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(char) in UNSAFE and char not in keep else char
        for char in text
    )


def _without_secrets(text: str) -> str:
    from hub_merge.hub.failures import redact

    for secret in _secrets():
        text = text.replace(secret, "hf_***")
    return redact(text)


def _secrets() -> Iterator[str]:
    """Yield the tokens this process was given, whatever they look like."""
    given = [os.environ.get("HF_TOKEN", ""), os.environ.get("HUGGING_FACE_HUB_TOKEN", "")]
    for before, argument in zip(["", *sys.argv], sys.argv, strict=False):
        given.append(argument if before == "--token" else argument.partition("--token=")[2])
    return (secret.strip() for secret in given if len(secret.strip()) >= SHORTEST_SECRET)


def _detect() -> OutputMode:
    if sys.stdout.isatty():
        return "human"
    from huggingface_hub.utils import is_agent  # type: ignore[attr-defined]

    return "agent" if is_agent() else "human"


def _finite(content: Any) -> Any:
    match content:
        case Mapping():
            return {key: _finite(value) for key, value in content.items()}
        case list() | tuple():
            return [_finite(value) for value in content]
        case float() if not math.isfinite(content):
            return None
    return content


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _plain(value: Any) -> str:
    """Return a value for programs: no control characters, full precision."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case list() | tuple():
            return ",".join(_plain(entry) for entry in value)
    return printable(str(value))


def _human(value: Any, show: Callable[[Any], str] | None = None) -> str:
    """Return a value for people: numbers to three digits."""
    match value:
        case None:
            return "-"
        case _ if show is not None:
            return printable(show(value))
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:,.0f}" if 1000 <= abs(value) < MOST_WRITTEN_OUT else f"{value:.3g}"
        case list() | tuple():
            return ", ".join(_human(entry) for entry in value) or "-"
    return printable(str(value))


def _terminal_width() -> int:
    """Return how wide a table may be; in a pipe or file it is as wide as it is, unless COLUMNS is set."""
    if os.environ.get("COLUMNS") or sys.stdout.isatty():
        return shutil.get_terminal_size(SILENT_TERMINAL).columns
    return sys.maxsize


def _line_width(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def _fitted(widths: Sequence[int], whole: Sequence[bool], room: int) -> list[int]:
    """Shrink the widest columns until a line fits into ``room``, but none that is to stay ``whole``, as numbers are."""
    fitted = list(widths)
    while _line_width(fitted) > room:
        width, column = max(
            (0 if keep else width, i) for i, (width, keep) in enumerate(zip(fitted, whole, strict=True))
        )
        if width <= NARROWEST:
            break
        fitted[column] -= 1
    return fitted


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
