"""What is tortured: a table of commands, with what stands before each and what has to stand after it.

To torture another command, add it to ``OPERATIONS``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.torture.world import CARD, CONFIG, MATH, MEDICINE, World, files_of

State = dict[str, bytes]

RECORD = "hub_merge.json"
CHANGES = re.compile(rb'"(created|date|duration|seconds|elapsed)[^"]*": [^,\n]+')
"""Fields of a record that differ from run to run."""


def nothing(world: World, home: Path) -> None:
    """Start with an empty home."""


def of_folder(name: str) -> Callable[[World, Path], State]:
    """Return what tells the content of a folder in the home, but for hidden folders of ours and for times."""

    def state(world: World, home: Path) -> State:
        return {
            path: CHANGES.sub(b"", content)
            for path, content in files_of(home / name).items()
            if not path.startswith(".hub-merge")
        }

    return state


def is_one_of(state: State, before: State, after: State) -> bool:
    """All of the old or all of the new."""
    return state in (before, after)


def is_no_mixture(state: State, before: State, after: State) -> bool:
    """Old or new, or, while one is exchanged for the other, too little of one of them to be read."""
    part = any(state.items() <= whole.items() for whole in (before, after))
    return is_one_of(state, before, after) or (part and (RECORD not in state or CONFIG not in state))


def has_whole_files(state: State, before: State, after: State) -> bool:
    """Any of the files, each of them whole."""
    return state.items() <= after.items()


@dataclass(frozen=True)
class Operation:
    """A command and what it makes.

    Attributes:
        name: Name in the table of results.
        words: Command line; ``{home}`` stands for the name of the home.
        state: Returns what the command makes, as far as it is there.
        prepare: Puts in place what the command needs.
        whole: Tells whether a state may be seen at any moment, given the states before and after the command.
        once: What an error says if the command had done its work already.
    """

    name: str
    words: Sequence[str]
    state: Callable[[World, Path], State]
    prepare: Callable[[World, Path], None] = nothing
    whole: Callable[[State, State, State], bool] = is_one_of
    once: str = "exists already"

    def command(self, home: Path) -> list[str]:
        return [word.format(home=home.name) for word in self.words]


def cached(world: World, home: Path) -> State:
    """Return the files that the cache offers, by repository and name."""
    found = files_of(home / "hf" / "hub")
    return {
        f"{path.split('/')[0]}/{path.rpartition('/')[2]}": content
        for path, content in found.items()
        if "/snapshots/" in path
    }


def published(world: World, home: Path) -> State:
    """Return what the head of the published repository holds."""
    name = f"alice/{home.name}"
    try:
        (commit, *_) = world.hub.commits(name)
    except KeyError:
        return {}
    assert len(world.hub.commits(name)) <= 2, "it was committed more than once"
    names = [path for path in commit.files if path != ".gitattributes"]
    return {path: world.hub.file(name, path).replace(home.name.encode(), b"home") for path in names}


def merged(world: World, home: Path) -> None:
    """Put a composite of one adapter in the home."""
    made(world, home, "merge", MATH, "-o", "composite")


def merged_and_edited(world: World, home: Path) -> None:
    """Put a composite in the home, with words of the user in its card, whose own part is out of date."""
    merged(world, home)
    card = home / "composite" / CARD
    card.write_text("My words.\n\n" + card.read_text() + "\nMore of my words.\n")
    record = home / "composite" / RECORD
    content = json.loads(record.read_text())
    content["base_license"] = "apache-2.0"
    record.write_text(json.dumps(content))


def empty(world: World, home: Path) -> None:
    (home / "out").mkdir()


def standing(world: World, home: Path) -> None:
    """Put a composite of one adapter where the composite of two is to go."""
    made(world, home, "merge", MATH, "-o", "out")


def made(world: World, home: Path, *words: str) -> None:
    done = world.run(home, *words)
    assert done.code == 0, done.err


OPERATIONS = (
    Operation("pull", ["score", MATH, MEDICINE], cached, whole=has_whole_files),
    Operation("merge", ["merge", MATH, MEDICINE, "-o", "out"], of_folder("out")),
    Operation("merge into an empty folder", ["merge", MATH, MEDICINE, "-o", "out"], of_folder("out"), empty),
    Operation(
        "merge over another",
        ["merge", MATH, MEDICINE, "-o", "out", "--force"],
        of_folder("out"),
        standing,
        is_no_mixture,
    ),
    Operation("compress", ["compress", MATH, "-o", "out", "--rank", "2"], of_folder("out")),
    Operation("convert", ["convert", MATH, "-o", "out", "--format", "mlx"], of_folder("out")),
    Operation("card", ["card", "composite", "--write"], of_folder("composite"), merged_and_edited),
    Operation("push", ["push", "composite", "alice/{home}"], published, merged, whole=is_one_of),
    Operation("fuse", ["fuse", "composite", "-o", "out"], of_folder("out"), merged),
)


def litter(home: Path) -> list[str]:
    """Return what a run must not leave behind."""
    return sorted(
        path.relative_to(home).as_posix()
        for path in home.rglob("*")
        if path.name.startswith(".hub-merge")
        or path.name.endswith((".incomplete", ".tmp"))
        or path.parent == home / "tmp"
    )
