"""Runs beside each other: one wins or all are right, never a mixture, and nobody clears away what another works in.

A row of ``RIVALRIES`` is a set of commands that start at the same time; to add one, add a row.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.torture.operations import (
    BUILD,
    State,
    begun,
    cached,
    indexed,
    litter,
    made,
    nothing,
    of_folder,
    published,
    standing,
)
from tests.torture.tally import Outcome
from tests.torture.world import MATH, MEDICINE, Ended, World, copy

ONE = ["merge", MATH, MEDICINE]
OTHER = ["merge", MATH, MEDICINE, "--weights", "1,-0.5"]
TOLD = ("exists already", "meanwhile", "Another run writes", "Another process writes")
"""What the one says that comes too late."""


@dataclass(frozen=True)
class Rivalry:
    """Commands that run at the same time in one home.

    Attributes:
        name: Name in the table of results.
        commands: The commands; ``{home}`` stands for the name of the home.
        state: What they make.
        prepare: Puts in place what they need.
        all_win: Whether each of them has to succeed.
        needs: Library that may be missing where only the core is installed.
    """

    name: str
    commands: Sequence[Sequence[str]]
    state: Callable[[World, Path], State]
    prepare: Callable[[World, Path], None] = nothing
    all_win: bool = False
    needs: str = ""


def two_composites(world: World, home: Path) -> None:
    made(world, home, *ONE, "-o", "one")
    made(world, home, *OTHER, "-o", "other")


def empty(world: World, home: Path) -> None:
    (home / "out").mkdir()


def remains(world: World, home: Path) -> None:
    """Leave behind what a killed run does, beside which others start."""
    world.run(home, *ONE, "-o", "early", kill_at=60)


RIVALRIES = (
    Rivalry("two merges to one folder", [[*ONE, "-o", "out"], [*OTHER, "-o", "out"]], of_folder("out")),
    Rivalry("two merges to one empty folder", [[*ONE, "-o", "out"], [*OTHER, "-o", "out"]], of_folder("out"), empty),
    Rivalry(
        "four merges over one another",
        [[*words, "-o", "out", "--force"] for words in (ONE, OTHER, ONE, OTHER)],
        of_folder("out"),
        standing,
        all_win=True,
    ),
    Rivalry(
        "two merges to one new folder by force",
        [[*words, "-o", "out", "--force"] for words in (ONE, OTHER)],
        of_folder("out"),
        all_win=True,
    ),
    Rivalry(
        "two pushes to one repository",
        [["push", "one", "alice/{home}"], ["push", "other", "alice/{home}"]],
        published,
        two_composites,
    ),
    Rivalry("eight runs on one cache", [["score", MATH, MEDICINE]] * 8, cached, all_win=True),
    Rivalry(
        "four merges side by side, and what a killed one left",
        [[*ONE, "-o", f"out/{number}"] for number in range(4)],
        of_folder("out"),
        remains,
        all_win=True,
    ),
    Rivalry("two builds of one index", [[*BUILD, "--workers", "1"]] * 2, indexed, needs="pyarrow"),
    Rivalry(
        "a build beside three who ask",
        [[*BUILD, "--workers", "1"], *[["zoo", "stats", "--index", "out"]] * 3],
        indexed,
        begun,
        all_win=True,
        needs="pyarrow",
    ),
    Rivalry("four builds that go on with one", [[*BUILD, "--workers", "1"]] * 4, indexed, begun, needs="pyarrow"),
)


def rivalled(world: World, rounds: int) -> Iterator[Outcome]:
    """Let each set of commands run against each other ``rounds`` times."""
    for rivalry in RIVALRIES:
        if rivalry.needs and importlib.util.find_spec(rivalry.needs) is None:
            yield Outcome("beside", rivalry.name, "", skipped=f"needs {rivalry.needs}")
            continue
        prepared = world.home()
        rivalry.prepare(world, prepared)
        different = set(map(tuple, rivalry.commands))
        known = {words: alone_in(world, prepared, rivalry, words) for words in different}
        alone = [known[tuple(words)] for words in rivalry.commands]
        for number in range(rounds):
            home = world.home()
            copy(prepared, home)
            ended = world.run_together([(home, named(words, home)) for words in rivalry.commands])
            yield Outcome("beside", rivalry.name, f"round {number}", judged(rivalry, ended, alone, world, home))


def named(words: Sequence[str], home: Path) -> list[str]:
    return [word.format(home=home.name) for word in words]


def alone_in(world: World, prepared: Path, rivalry: Rivalry, words: Sequence[str]) -> State:
    """Return what a command makes without rivals."""
    home = world.home()
    copy(prepared, home)
    made(world, home, *named(words, home))
    return rivalry.state(world, home)


def judged(rivalry: Rivalry, ended: Sequence[Ended], alone: Sequence[State], world: World, home: Path) -> str:
    """Return what is wrong; empty if nothing is."""
    state = rivalry.state(world, home)
    winners = [single for run, single in zip(ended, alone, strict=True) if run.code == 0]
    losers = [run.err.strip() for run in ended if run.code != 0]
    if not winners or (rivalry.all_win and losers):
        return f"lost without a reason: {losers}"
    if unclear := [said for said in losers if not any(word in said for word in TOLD)]:
        return f"it does not tell why: {unclear}"
    together = {path: content for single in alone for path, content in single.items()}
    if state not in winners and not (rivalry.all_win and state == together):
        return f"a mixture: {sorted(state)}"
    return f"left behind: {', '.join(left)}" if (left := litter(home)) else ""
