"""A build on a real Ray cluster of two nodes, one of which is killed on the way."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from hub_merge.zoo.building import Built, build
from hub_merge.zoo.engines import on_ray
from hub_merge.zoo.families import families
from hub_merge.zoo.index import Index
from hub_merge.zoo.loaded import Loaded
from hub_merge.zoo.queries import near
from hub_merge.zoo.reading import Access
from tests.hub_double import HubDouble
from tests.zoos import BASE, FAMILY, fill

COUNT = int(os.environ.get("HUB_MERGE_ZOO_SIZE", "20"))
"""Adapters of the zoo; 1000 takes several minutes."""
LAYERS = 1 if COUNT < 100 else 12


def until(holds: Callable[[], bool], seconds: float = 90.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_node_that_dies_loses_nothing_and_a_second_build_downloads_nothing(
    hub_lfs: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    hub_lfs.page_size = 100
    planted = fill(hub_lfs, COUNT, layers=LAYERS)
    hub_lfs.faults.add("/revision/", delay=0.3 if COUNT < 100 else 0.0, times=None)  # long enough to be caught at it
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    sooner = {"health_check_period_ms": 500, "health_check_timeout_ms": 3000, "health_check_failure_threshold": 3}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "_system_config": sooner})
    try:
        second = cluster.add_node(**{key: value for key, value in node.items() if key != "include_dashboard"})
        cluster.wait_for_nodes()
        killed: list[int] = []

        def kill(step: str, done: int, total: int) -> None:
            """Kill the second node once some adapters are done, and both nodes are at one."""
            if not killed and done >= COUNT // 5 and ray.available_resources().get("CPU", 0) == 0:
                cluster.remove_node(second, allow_graceful=False)
                until(lambda: sum(node["Alive"] for node in ray.nodes()) == 1)
                killed.append(done)

        access = Access(endpoint=hub_lfs.endpoint, token=False)
        engine = on_ray(cluster.address)
        built = build(tmp_path / "zoo", BASE, access=access, engine=engine, progress=kill)
        assert killed
        assert killed[0] < COUNT
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert built == Built(listed=COUNT, indexed=COUNT)
    index = Index(tmp_path / "zoo")
    keys = Counter(index.table(["key"])["key"].to_pylist())
    assert keys == Counter(planted.ids)
    assert index.rows == COUNT
    hub_lfs.requests.clear()
    assert build(tmp_path / "zoo", BASE, access=access) == Built(listed=COUNT, unchanged=COUNT)
    assert not [request.path for request in hub_lfs.requests if not request.path.startswith("/api/models")]
    zoo = Loaded.read(index)
    found = {frozenset(member.key for member in family.members) for family in families(zoo).families}
    assert found == {frozenset(family) for family in planted.families}
    for original, copy in planted.duplicates:
        place = zoo.place(original)
        assert place is not None
        top = near(zoo, zoo.entry(place), limit=FAMILY)
        assert (top[0].entry.key, top[0].relation) == (copy, "same file")
