"""The page under load: visitors get what they asked for and nothing of another's, and a killed page leaves nothing.

Visitors are programs that ask for merges at the same time; what they get is read and computed again as in ``soak``.
"""

from __future__ import annotations

import importlib.util
import io
import json
import random
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.hub_double import HubDouble
from tests.space.serving import Space, serve
from tests.torture.operations import RECORD, litter
from tests.torture.soak import METHODS, TOLERANCES, Case, Part, read_parts
from tests.torture.tally import Outcome
from tests.torture.world import adapter_files, furnish

ADAPTERS = tuple(f"owner-{number}/lora-{number}" for number in range(6))
ASKED = {"sum": {}, "mean": {}, "svd": {}, "ties": {"density": 1.0, "space": "delta"}}
"""Methods that visitors ask for, with options under which ``soak`` can tell what has to come out."""
MOST_SECONDS = 240.0
Parts = dict[str, Part]


@dataclass(frozen=True)
class Wish:
    """What one visitor asks for."""

    adapters: tuple[str, ...]
    method: str
    weights: tuple[float, ...]
    rank: int | None

    @classmethod
    def random(cls, rng: random.Random) -> Wish:
        adapters = tuple(rng.sample(ADAPTERS, rng.randint(2, 4)))
        method = rng.choice(sorted(ASKED))
        weights = tuple(rng.choice((-1, 1)) * round(rng.uniform(0.2, 2), 3) for _ in adapters)
        return cls(adapters, method, weights, rng.randint(1, 5) if method == "svd" else None)

    @property
    def data(self) -> list[Any]:
        """What the endpoint takes."""
        return [list(self.adapters), self.method, list(self.weights), self.rank or 0, ASKED[self.method], "", []]

    def wrong(self, folder: Path, parents: dict[str, Parts]) -> str:
        """Return what is wrong with the composite in ``folder``; empty if nothing is."""
        record = json.loads((folder / RECORD).read_text())
        if not record["proof"]["passed"]:
            return "it is not proved"
        written = read_parts(folder)
        for module, got in written.items():
            parts = [parents[name][module] for name in self.adapters]
            error = METHODS[self.method].check(got.delta, Case(parts, list(self.weights), self.rank))
            if not error < TOLERANCES["float32"]:
                return f"{module} is off by {error:.1e}: {self}"
        return "" if written.keys() == parents[ADAPTERS[0]].keys() else f"it has the modules {sorted(written)}"


def ask(space: Space, wish: Wish) -> bytes:
    """Return the zip that the page makes of a wish."""
    call = f"{space.url}/gradio_api/call/merge"
    with httpx2.Client(timeout=MOST_SECONDS) as client:
        event = client.post(call, json={"data": wish.data}).raise_for_status().json()["event_id"]
        answer = client.get(f"{call}/{event}").raise_for_status().text
        if "event: complete" not in answer:
            raise RuntimeError(answer.strip()[-300:])
        (file,) = json.loads(answer.rpartition("event: complete\ndata: ")[2].splitlines()[0])
        content: bytes = client.get(f"{space.url}/gradio_api/file={file['path']}").raise_for_status().content
        return content


def visit(space: Space, wish: Wish, place: Path, parents: dict[str, Parts]) -> str:
    """Return what is wrong with what a visitor gets; empty if nothing is."""
    try:
        with zipfile.ZipFile(io.BytesIO(ask(space, wish))) as archive:
            archive.extractall(place)
        (folder,) = place.iterdir()
        return wish.wrong(folder, parents)
    except Exception as error:
        return f"{type(error).__name__}: {error}{fate(space)}"


def fate(space: Space) -> str:
    """Return how the page ended, if it did, and its last words."""
    code = space.process.poll()
    return "" if code is None else f"; the page ended with {code}: {space.log.read_text(errors='replace')[-500:]}"


def written_parents(folder: Path, hub: HubDouble) -> dict[str, Parts]:
    """Publish the adapters and return their numbers."""
    parents = {}
    for number, name in enumerate(ADAPTERS):
        files = adapter_files(100 + number)
        hub.add_repo(name, files)
        place = folder / str(number)
        place.mkdir(parents=True)
        for file, content in files.items():
            (place / file).write_bytes(content)
        parents[name] = read_parts(place)
    return parents


def open_page(hub: HubDouble, home: Path) -> Space:
    return serve(hub, home, user=None, GRADIO_TEMP_DIR="", OMP_NUM_THREADS="1", HUB_MERGE_MIN_FREE_DISK="0")


def left_behind(space: Space, where: str = "") -> str:
    """Return what is left besides the one folder in which a living page keeps what may be downloaded."""
    rooms = list((space.home / "tmp").glob(".hub-merge.*/gradio"))
    kept = {path.relative_to(space.home).as_posix() for room in rooms for path in (room, room.parent)}
    left = [name for name in litter(space.home) if name.startswith(where) and name not in kept]
    return f"left behind: {', '.join(left)}" if left or len(rooms) > 1 else ""


def visited(folder: Path, visitors: int, waves: int, kills: int, seed: int) -> Iterator[Outcome]:
    """Let so many visitors ask at once, several times; then kill the page amid its work, and open it again."""
    missing = next((name for name in ("gradio", "matplotlib") if importlib.util.find_spec(name) is None), None)
    if missing:
        for subject in ("visitors at once", "what visits leave", "killed page"):
            yield Outcome("space", subject, "", skipped=f"needs {missing}")
        return
    rng = random.Random(seed)
    with HubDouble(xet=False) as hub:
        furnish(hub)
        parents = written_parents(folder / "parents", hub)
        space = open_page(hub, folder / "page")
        try:
            for wave in range(waves):
                yield from at_once(space, visitors, folder / f"wave{wave}", parents, rng)
                yield Outcome("space", "what visits leave", f"wave {wave}", left_behind(space))
            for number in range(kills):
                fault, lost, space = killed(space, folder / f"kill{number}", parents, rng)
                yield Outcome("space", "killed page", fault, lost)
        finally:
            space.stop()
        assert not hub.crashes and not hub.leaked_tokens


def at_once(
    space: Space, visitors: int, place: Path, parents: dict[str, Parts], rng: random.Random
) -> Iterator[Outcome]:
    wishes = [Wish.random(rng) for _ in range(visitors)]
    with ThreadPoolExecutor(visitors) as pool:
        found = pool.map(lambda number: visit(space, wishes[number], place / str(number), parents), range(visitors))
        for number, lost in enumerate(found):
            yield Outcome("space", "visitors at once", f"visitor {number} of {place.name}", lost)


def killed(space: Space, place: Path, parents: dict[str, Parts], rng: random.Random) -> tuple[str, str, Space]:
    """Kill the page while visitors wait, and open it again; return what happened, what was lost, and the new page."""
    seconds = rng.uniform(0.05, 3)
    wishes = [Wish.random(rng) for _ in range(4)]
    with ThreadPoolExecutor(len(wishes)) as pool:
        for number, wish in enumerate(wishes):
            pool.submit(visit, space, wish, place / str(number), parents)
        time.sleep(seconds)
        space.process.kill()
        space.process.wait()
    again = open_page(space.hub, space.home)
    lost = left_behind(again, "tmp/")
    for number, wish in enumerate(wishes):
        lost = lost or visit(again, wish, place / f"again{number}", parents)
    return f"killed after {seconds:.2f} s", lost or left_behind(again), again
