"""A little of each torture; ``make torture`` does all of it."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest

from hub_merge import Adapter, merge
from hub_merge.methods import list_methods
from tests.hub_double import HubDouble
from tests.torture import kills, network, rivals, soak, space
from tests.torture.operations import RECORD
from tests.torture.tally import Outcome, table
from tests.torture.world import World, opened

SEED = 20251128


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="torture-") as root, opened(Path(root)) as world:
        yield world


def assert_nothing_lost(outcomes: Iterable[Outcome], at_least: int) -> None:
    seen = list(outcomes)
    if all(outcome.skipped for outcome in seen):
        pytest.skip(seen[0].skipped)
    assert not [outcome for outcome in seen if outcome.lost], table(seen)
    assert len(seen) >= at_least


def test_a_run_that_is_killed_leaves_all_or_nothing_and_the_next_one_finishes_and_cleans_up(world: World) -> None:
    assert_nothing_lost(kills.killed(world, 2, SEED), 16)


def test_a_run_on_a_full_disk_says_so_and_leaves_all_or_nothing(world: World) -> None:
    assert_nothing_lost(kills.full_disks(world, 1, SEED), 8)


def test_runs_beside_each_other_never_make_a_mixture(world: World) -> None:
    assert_nothing_lost(rivals.rivalled(world, 1), 7)


def some_of(store: str) -> list[tuple[network.Kind, network.Fault, int | None]]:
    """Return every kind of request once and every fault once, together, so that none of it takes long."""
    rng = random.Random(SEED)
    pairs = [pair for pair in network.pairs(store) if pair[0].name != "Xet token to write"]  # hf_xet takes minutes
    quick = [pair for pair in pairs if pair[2] == 1 or not pair[0].writes]
    rng.shuffle(quick)
    chosen, kinds, faults = [], set(), set()
    for pair in quick:
        if pair[0] not in kinds or pair[1].name not in faults:
            chosen.append(pair)
            kinds.add(pair[0])
            faults.add(pair[1].name)
    return chosen


def test_a_network_that_fails_is_told_and_costs_nothing_but_time(hub: HubDouble, tmp_path: Path) -> None:
    hub_pairs = some_of("xet" if hub.xet else "lfs")
    assert_nothing_lost(network.failing(hub, tmp_path, hub_pairs), len(network.FAULTS))


def test_visitors_at_once_get_each_their_own_and_a_killed_page_leaves_nothing(tmp_path: Path) -> None:
    assert_nothing_lost(space.visited(tmp_path, 6, 1, 1, SEED), 3)


def test_random_merges_are_what_dense_matrices_give_and_take_no_more_memory(tmp_path: Path) -> None:
    assert_nothing_lost(soak.soaked(tmp_path, 2 * len(soak.METHODS), SEED), 2 * len(soak.METHODS) + 1)


def test_every_method_is_soaked() -> None:
    assert {method.name for method in list_methods()} == set(soak.METHODS)


# --- the torturers themselves -----------------------------------------------------------------------------------------


def test_a_loss_is_counted_and_shown() -> None:
    shown = table(
        [Outcome("kill", "merge", "a"), Outcome("kill", "merge", "b", "half a file"), Outcome("soak", "sum", "c")]
    )
    assert [line.split() for line in shown.splitlines()] == [
        ["PART", "SUBJECT", "INJECTED", "SURVIVED", "LOST"],
        ["kill", "merge", "2", "1", "1"],
        ["soak", "sum", "1", "1", "0"],
        ["all", "3", "2", "1"],
    ]


def test_what_was_not_tried_is_told_and_not_counted() -> None:
    shown = table([Outcome("kill", "zoo build", "", skipped="needs pyarrow"), Outcome("kill", "merge", "a")])
    assert [line.split() for line in shown.splitlines()[1:]] == [
        ["kill", "merge", "1", "1", "0"],
        ["kill", "zoo", "build", "skipped:", "needs", "pyarrow"],
        ["all", "1", "1", "0"],
    ]


def test_what_another_visitor_asked_for_is_found_out(tmp_path: Path) -> None:
    with HubDouble(xet=False) as hub:
        parents = space.written_parents(tmp_path / "parents", hub)
    mine = space.Wish(space.ADAPTERS[:2], "sum", (1.0, 0.5), None)
    adapters = [Adapter.from_pretrained(tmp_path / "parents" / str(number)) for number in range(2)]
    folder = tmp_path / "out"
    merge(adapters, "sum", weights=[1.0, 0.5]).save_pretrained(folder)
    (folder / RECORD).write_text('{"proof": {"passed": true}}')
    assert not mine.wrong(folder, parents)
    for other in (replace(mine, weights=(0.5, 1.0)), replace(mine, adapters=space.ADAPTERS[1:3])):
        assert "is off by" in other.wrong(folder, parents)


def test_a_wrong_number_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = soak.read_parts

    def wrong(folder: Path) -> dict[str, soak.Part]:
        parts = read(folder)
        return {
            name: soak.Part(p.A, p.B, p.scaling * (1.3 if folder.name == "out" else 1)) for name, p in parts.items()
        }

    monkeypatch.setattr(soak, "read_parts", wrong)
    for number, name in zip(range(5), cycle(["sum", "mean", "iso_c", "ties", "pico"])):
        place = tmp_path / str(number)
        place.mkdir()
        assert "is off by" in soak.one_merge(place, name, SEED + number)
