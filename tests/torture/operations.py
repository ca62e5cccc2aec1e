"""What is tortured: a table of commands, with what stands before each and what has to stand after it.

To torture another command, add it to ``OPERATIONS``.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hub_merge.errors import HubMergeError
from tests.torture.tally import Outcome
from tests.torture.world import BASE, CARD, CONFIG, MATH, MEDICINE, World, files_of

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
    """Old or new, or, in a folder that keeps its place while its content changes, too little of one to be read."""
    part = any(state.items() <= whole.items() for whole in (before, after))
    return is_one_of(state, before, after) or (part and (RECORD not in state or CONFIG not in state))


def has_whole_files(state: State, before: State, after: State) -> bool:
    """Any of the files, each of them whole."""
    return state.items() <= after.items()


def loses_no_row(state: State, before: State, after: State) -> bool:
    """All the rows of before, and any of those that come, each of them whole."""
    return before.items() <= state.items() <= after.items()


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
        needs: Library that may be missing where only the core is installed.
        share: How much of the torture it gets: a slow one gets a part.
        complaint: Returns what is wrong with a home in which the command has ended well; empty if nothing is.
    """

    name: str
    words: Sequence[str]
    state: Callable[[World, Path], State]
    prepare: Callable[[World, Path], None] = nothing
    whole: Callable[[State, State, State], bool] = is_one_of
    once: str = "exists already"
    needs: str = ""
    share: float = 1.0
    complaint: Callable[[Path], str] = lambda home: ""

    @property
    def missing(self) -> str:
        """What is not installed that it needs; empty if all is."""
        return self.needs if self.needs and importlib.util.find_spec(self.needs) is None else ""

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
    names = [path for path in commit.files if path != ".gitattributes"]
    return {path: world.hub.file(name, path).replace(home.name.encode(), b"home") for path in names}


def indexed(world: World, home: Path) -> State:
    """Return the rows of an index that count, by key, without the time at which they were written."""
    from hub_merge.zoo.entries import schema
    from hub_merge.zoo.index import MARK_FILE, Index

    if not (home / "out" / MARK_FILE).is_file():
        return {}
    try:
        table = Index(home / "out").table([name for name in schema().names if name != "indexed_at"])
    except HubMergeError as error:
        return {"index": str(error).encode()}
    return {row["key"]: repr(sorted(row.items())).encode() for row in table.to_pylist()}


def has_rows_twice(home: Path) -> str:
    """Return how many rows of an index are there in vain; empty if none is."""
    from hub_merge.zoo.index import Index

    index = Index(home / "out")
    more = index.rows - len(index.known())
    return f"{more} rows of the index are there twice" if more else ""


def published_once(world: World, home: Path) -> State:
    """Return the same, and a sign if it took more than the commit that a new repository begins with and one other."""
    state = published(world, home)
    commits = len(world.hub.commits(f"alice/{home.name}")) if state else 0
    return {**state, "(commits)": str(commits).encode()} if commits > 2 else state


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


def begun(world: World, home: Path) -> None:
    """Put an index in the home that has one of the adapters."""
    made(world, home, *BUILD, "--limit", "1", "--workers", "1")


BUILD = ["zoo", "build", BASE, "--index", "out"]

OPERATIONS = (
    Operation("pull", ["score", MATH, MEDICINE], cached, whole=has_whole_files),
    Operation("merge", ["merge", MATH, MEDICINE, "-o", "out"], of_folder("out")),
    Operation(
        "merge into an empty folder",
        ["merge", MATH, MEDICINE, "-o", "out"],
        of_folder("out"),
        empty,
        is_no_mixture,
    ),
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
    Operation("push", ["push", "composite", "alice/{home}"], published_once, merged),
    Operation("fuse", ["fuse", "composite", "-o", "out"], of_folder("out"), merged),
    Operation(
        "zoo build",
        [*BUILD, "--workers", "1"],
        indexed,
        whole=loses_no_row,
        needs="pyarrow",
        complaint=has_rows_twice,
    ),
    Operation(
        "zoo build that goes on",
        [*BUILD, "--workers", "1"],
        indexed,
        begun,
        loses_no_row,
        needs="pyarrow",
        complaint=has_rows_twice,
    ),
    Operation(
        "zoo build in processes",
        [*BUILD, "--workers", "2"],
        indexed,
        empty,
        loses_no_row,
        needs="pyarrow",
        share=0.1,
        complaint=has_rows_twice,
    ),
)


def at_hand(part: str, which: slice) -> tuple[list[Operation], list[Outcome]]:
    """Return those of the operations that can be tried here, and what to tell of the others."""
    tried = [operation for operation in OPERATIONS[which] if not operation.missing]
    others = [operation for operation in OPERATIONS[which] if operation.missing]
    return tried, [Outcome(part, other.name, "", skipped=f"needs {other.missing}") for other in others]


def litter(home: Path) -> list[str]:
    """Return what a run must not leave behind."""
    return sorted(
        path.relative_to(home).as_posix()
        for path in home.rglob("*")
        if path.name.startswith(".hub-merge")
        or path.name.endswith((".incomplete", ".tmp"))
        or path.parent == home / "tmp"
    )
