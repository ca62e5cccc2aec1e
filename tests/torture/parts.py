"""The parts of the torture, each run in a process of its own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.torture.tally import Outcome

SHARES = {"network": 8, "kill": 3, "disk": 2}
"""Processes among which a part is shared out, where that is not one: those of the network mostly wait."""

Part = Callable[[Path, int, int], Iterable[Outcome]]


def killed(folder: Path, seed: int, number: int) -> Iterable[Outcome]:
    from tests.torture import kills, world

    with world.opened(folder) as opened:
        yield from kills.killed(opened, 40, seed, slice(number, None, SHARES["kill"]))


def full_disks(folder: Path, seed: int, number: int) -> Iterable[Outcome]:
    from tests.torture import kills, world

    with world.opened(folder) as opened:
        yield from kills.full_disks(opened, 20, seed, slice(number, None, SHARES["disk"]))


def rivals(folder: Path, seed: int, _: int) -> Iterable[Outcome]:
    from tests.torture import rivals, world

    with world.opened(folder) as opened:
        yield from rivals.rivalled(opened, 10)


def soaked(folder: Path, seed: int, _: int) -> Iterable[Outcome]:
    from tests.torture import soak

    yield from soak.soaked(folder, 500, seed)


def network(folder: Path, seed: int, number: int) -> Iterable[Outcome]:
    from tests.hub_double import HubDouble
    from tests.torture import network

    store = os.environ["TORTURE_STORE"]
    with HubDouble(xet=store == "xet", page_size=3) as hub:
        yield from network.failing(hub, folder, network.pairs(store)[number :: SHARES["network"]])
        if store == "xet" and number == 0:
            yield network.store_away(hub, folder / "home")
        assert not hub.crashes and not hub.leaked_tokens


def space(folder: Path, seed: int, _: int) -> Iterable[Outcome]:
    from tests.torture import space

    yield from space.visited(folder, 24, 2, 5, seed)


PARTS: dict[str, Part] = {
    "kill": killed,
    "disk": full_disks,
    "beside": rivals,
    "soak": soaked,
    "space": space,
    "network": network,
}


def run(part: str, store: str, seed: int, number: int) -> list[Outcome]:
    """Run one part in this process, which is a fresh one: nothing of huggingface_hub is imported yet."""
    with tempfile.TemporaryDirectory(prefix="torture-") as root:
        folder = Path(root)
        os.environ.update(
            HF_HOME=str(folder / "hf"),
            HF_XET_CACHE=str(folder / "xet"),
            HF_HUB_DISABLE_XET="0" if store == "xet" else "1",
            HF_HUB_DISABLE_TELEMETRY="1",
            HF_HUB_DISABLE_PROGRESS_BARS="1",
            HF_HUB_VERBOSITY="critical",
            HF_XET_CLIENT_RETRY_MAX_ATTEMPTS="1",  # else hf_xet alone goes on for minutes
            OMP_NUM_THREADS="1",
            TORTURE_STORE=store,
        )
        return list(PARTS[part](folder, seed, number))
