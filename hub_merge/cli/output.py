"""Printing: data on stdout, everything else on stderr, in the form that the reader can use.

``human`` is padded tables, ``agent`` tab-separated values with the keys as they are, ``json`` one document, ``quiet``
the first column only.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import click

__all__ = ["Output", "OutputMode"]

OutputMode = Literal["auto", "human", "agent", "json", "quiet"]


class Output:
    """Prints results in one mode."""

    def __init__(self, mode: OutputMode, *, truncate: bool = True) -> None:
        self.mode = _detect() if mode == "auto" else mode
        self._truncate = truncate

    @property
    def human(self) -> bool:
        """Whether a person reads along."""
        return self.mode == "human"

    def document(self, content: Any) -> None:
        """Print ``content`` as one JSON document."""
        click.echo(json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False))

    def table(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, title: str = "") -> None:
        """Print ``columns`` of ``rows``; the first column is what ``quiet`` shows."""
        if self.mode == "json":
            self.document(list(rows))
        elif self.mode == "quiet":
            for row in rows:
                click.echo(_plain(row.get(columns[0])))
        elif self.mode == "agent":
            click.echo("\t".join(columns))
            for row in rows:
                click.echo("\t".join(_plain(row.get(column)) for column in columns))
        else:
            self._human_table(rows, columns, title)

    def _human_table(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], title: str) -> None:
        if title:
            click.secho(title, bold=True)
        if not rows:
            click.echo("(none)")
            return
        cells = [[_human(row.get(column)) for column in columns] for row in rows]
        numeric = [all(isinstance(row.get(column), (int, float, type(None))) for row in rows) for column in columns]
        headers = [column.upper().replace(" ", "_") for column in columns]
        widths = [max(len(line[i]) for line in [headers, *cells]) for i in range(len(columns))]
        if self._truncate:
            widths = _fitted(widths)
        for number, line in enumerate([headers, *cells]):
            text = "  ".join(
                _cut(cell, width).rjust(width) if right else _cut(cell, width).ljust(width)
                for cell, width, right in zip(line, widths, numeric, strict=True)
            )
            click.secho(text.rstrip(), bold=number == 0)

    def fields(self, values: Mapping[str, Any], *, title: str = "") -> None:
        """Print one thing's values; the first is what ``quiet`` shows."""
        if self.mode == "json":
            self.document(values)
        elif self.mode == "quiet":
            click.echo(_plain(next(iter(values.values()), None)))
        elif self.mode == "agent":
            for key, value in values.items():
                click.echo(f"{key}={_plain(value)}")
        else:
            if title:
                click.secho(f"✓ {title}", bold=True)
            width = max(len(key) for key in values)
            for key, value in values.items():
                click.echo(f"  {key.replace('_', ' ')}:{' ' * (width - len(key))} {_human(value)}")

    def note(self, text: str) -> None:
        """Print an explanation for people, on stderr."""
        if self.mode == "human":
            click.echo(text, err=True)

    def hint(self, text: str) -> None:
        """Print what could be done next, on stderr; not in quiet mode."""
        if self.mode != "quiet":
            click.echo(f"Hint: {text}", err=True)

    def progress(self) -> Callable[[str, int, int], None]:
        """Return a callback that draws progress on stderr for people at a terminal, and does nothing otherwise."""
        if not (self.human and sys.stderr.isatty()):
            return lambda step, done, total: None

        def show(step: str, done: int, total: int) -> None:
            filled = 24 * done // max(total, 1)
            bar = "█" * filled + "░" * (24 - filled)
            click.echo(f"\r{step:>6} {bar} {done}/{total}", nl=done >= total, err=True)

        return show


def _detect() -> OutputMode:
    if sys.stdout.isatty() or os.environ.get("HF_HUB_OFFLINE"):
        return "human"
    from huggingface_hub.utils import is_agent

    return "agent" if is_agent() else "human"


def _plain(value: Any) -> str:
    """Return a value for programs: no control characters, full precision."""
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return ",".join(_plain(entry) for entry in value)
    return _printable(str(value))


def _human(value: Any) -> str:
    """Return a value for people: numbers to three digits."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_human(entry) for entry in value)
    return _printable(str(value))


def _printable(text: str) -> str:
    """Replace control and direction characters that text of the Hub may carry."""
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(char) in ("Cc", "Cf") else char for char in text)


def _fitted(widths: Sequence[int]) -> list[int]:
    """Shrink the widest columns until a line fits the terminal."""
    fitted = list(widths)
    room = shutil.get_terminal_size((100, 24)).columns - 2 * (len(fitted) - 1)
    while sum(fitted) > room and max(fitted) > 12:
        fitted[fitted.index(max(fitted))] -= 1
    return fitted


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
