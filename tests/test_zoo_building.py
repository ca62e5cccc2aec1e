"""Building an index from the Hub: complete, each adapter once, only what is new is read, nothing stops it."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import HfApi

from hub_merge.errors import HubMergeError, HubUnavailable, OutputExists, RecipeError
from hub_merge.zoo import building, engines
from hub_merge.zoo.building import Built, add, build, update
from hub_merge.zoo.engines import in_processes
from hub_merge.zoo.fingerprint import fingerprint
from hub_merge.zoo.gate import LocalGate
from hub_merge.zoo.index import Index
from hub_merge.zoo.loaded import Loaded
from hub_merge.zoo.reading import Access, Missed
from hub_merge.zoo.statistics import statistics
from tests.hub_double import HubDouble
from tests.zoos import BASE, adapter_files, fill, gpt2_factors, in_memory

pytest.importorskip("pyarrow")

COUNT = 10


def access(hub: HubDouble) -> Access:
    return Access(endpoint=hub.endpoint, token=False, patience=5.0)


def downloads(hub: HubDouble) -> list[str]:
    """Return the files that were asked for."""
    return [request.path for request in hub.requests if "/resolve" in request.path or "cas" in request.path]


def test_a_build_indexes_each_adapter_once_and_a_second_one_downloads_nothing(
    hub_lfs: HubDouble, tmp_path: Path
) -> None:
    planted = fill(hub_lfs, COUNT, layers=1)
    built = build(tmp_path / "zoo", BASE, access=access(hub_lfs))
    assert built == Built(listed=COUNT, indexed=COUNT)
    table = Index(tmp_path / "zoo").table(("key", "commit"))
    assert table["key"].to_pylist() == sorted(planted.ids)
    assert all(len(commit) == 40 for commit in table["commit"].to_pylist())
    hub_lfs.requests.clear()
    assert build(tmp_path / "zoo", BASE, access=access(hub_lfs)) == Built(listed=COUNT, unchanged=COUNT)
    assert not downloads(hub_lfs)
    assert not [path.name for path in (tmp_path / "zoo").rglob("*") if path.name.startswith(".")]


def test_what_is_indexed_is_the_fingerprint_of_the_numbers_on_the_hub(hub_lfs: HubDouble, tmp_path: Path) -> None:
    factors = gpt2_factors(1, layers=2)
    hub_lfs.add_repo("me/one", adapter_files(factors, license="mit", tags="medicine"), downloads=7)
    build(tmp_path / "zoo", BASE, access=access(hub_lfs))
    entry = Index(tmp_path / "zoo").entry("me/one")
    assert entry is not None
    assert entry.fingerprint is not None
    expected = fingerprint(in_memory("one", factors), BASE)
    np.testing.assert_array_equal(entry.fingerprint.sketch, expected.sketch)
    np.testing.assert_array_equal(entry.fingerprint.start, expected.start)
    assert entry.fingerprint.norm == pytest.approx(expected.norm, rel=1e-12)
    assert entry.fingerprint.signature == expected.signature
    assert (entry.license, entry.downloads, entry.base, entry.task_type) == ("mit", 7, BASE, "CAUSAL_LM")
    assert "medicine" in entry.tags
    assert entry.reference == f"me/one@{hub_lfs.repo('me/one').head.oid}"


def test_a_changed_adapter_is_read_again_and_one_whose_card_changed_is_not(hub_lfs: HubDouble, tmp_path: Path) -> None:
    fill(hub_lfs, 3, layers=1)
    build(tmp_path / "zoo", BASE, access=access(hub_lfs))
    before = Index(tmp_path / "zoo").entry("author/run-0-step-1")
    hub_lfs.push("author/run-0-step-0", adapter_files(gpt2_factors(99, layers=1)))
    hub_lfs.push("author/run-0-step-1", {"README.md": f"---\nbase_model: {BASE}\nlicense: mit\n---\n".encode()})
    hub_lfs.requests.clear()
    assert update(tmp_path / "zoo", access=access(hub_lfs)) == Built(listed=3, indexed=1, unchanged=2)
    assert {path.split("/")[2] for path in downloads(hub_lfs) if path.startswith("/author")} == {"run-0-step-0"}
    after = Index(tmp_path / "zoo").entry("author/run-0-step-1")
    assert before is not None
    assert after is not None
    assert before.fingerprint is not None
    assert after.fingerprint is not None
    assert (before.license, after.license) == ("apache-2.0", "mit")
    np.testing.assert_array_equal(after.fingerprint.sketch, before.fingerprint.sketch)
    assert statistics(Index(tmp_path / "zoo")).adapters == 3


def test_a_broken_adapter_is_kept_with_its_reason_and_not_read_again(hub_lfs: HubDouble, tmp_path: Path) -> None:
    fill(hub_lfs, 2, layers=1)
    files = adapter_files(gpt2_factors(5, layers=1))
    hub_lfs.add_repo("bad/cut", {**files, "adapter_model.safetensors": files["adapter_model.safetensors"][:500]})
    hub_lfs.add_repo("bad/gated", files, gated="manual")
    built = build(tmp_path / "zoo", BASE, access=access(hub_lfs))
    assert built == Built(listed=4, indexed=2, unusable=2)
    known = Index(tmp_path / "zoo").known()
    assert "safetensors" in known["bad/cut"]["reason"]
    assert "gated" in known["bad/gated"]["reason"]
    hub_lfs.requests.clear()
    assert build(tmp_path / "zoo", BASE, access=access(hub_lfs)) == Built(listed=4, unchanged=4)
    assert not downloads(hub_lfs)
    hub_lfs.push("bad/cut", files)
    assert build(tmp_path / "zoo", BASE, access=access(hub_lfs), retry=True) == Built(
        listed=4, indexed=1, unchanged=2, unusable=1
    )
    assert len(Loaded.read(Index(tmp_path / "zoo"))) == 3


def test_a_build_that_was_stopped_goes_on(hub_lfs: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(hub_lfs, 4, layers=1)

    class Stopped(Exception):
        pass

    def stop(step: str, done: int, total: int) -> None:
        if done == 3:
            raise Stopped

    with pytest.raises(Stopped):
        build(tmp_path / "zoo", BASE, access=access(hub_lfs), progress=stop)
    assert len(Index(tmp_path / "zoo").known()) == 2
    assert build(tmp_path / "zoo", BASE, access=access(hub_lfs)) == Built(listed=4, indexed=2, unchanged=2)


def test_a_hub_that_fails_for_one_adapter_does_not_stop_the_others(hub_lfs: HubDouble, tmp_path: Path) -> None:
    fill(hub_lfs, 3, layers=1)
    hub_lfs.faults.add("GET /api/models/author/run-0-step-1/revision", status=503, times=50)
    built = build(tmp_path / "zoo", BASE, access=access(hub_lfs))
    assert built == Built(listed=3, indexed=2, missed=1)
    hub_lfs.faults.clear()
    assert build(tmp_path / "zoo", BASE, access=access(hub_lfs)) == Built(listed=3, indexed=1, unchanged=2)


def missing(task: Any, gate: Any) -> Missed:
    return Missed(task, "The Hub is away.")


def test_a_hub_that_fails_for_all_ends_the_build(
    hub_lfs: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(hub_lfs, 3, layers=1)
    monkeypatch.setattr(building, "read", missing)
    with pytest.raises(HubUnavailable, match="The Hub is away"):
        build(tmp_path / "zoo", BASE, access=access(hub_lfs))


def test_a_disk_that_is_full_is_no_fault_of_the_adapter(
    hub_lfs: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(hub_lfs, 3, layers=1)

    def full(*args: Any, **settings: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    for told in ("could not be stored: No space left on device.$", "stay free"):
        with monkeypatch.context() as patch:
            if "stored" in told:
                patch.setattr(HfApi, "hf_hub_download", full)
            else:
                patch.setenv("HUB_MERGE_MIN_FREE_DISK", str(10**15))
            with pytest.raises(HubMergeError) as raised:
                build(tmp_path / "zoo", BASE, access=access(hub_lfs))
        assert re.search(told, raised.value.problem) and not isinstance(raised.value, HubUnavailable)
        assert not Index(tmp_path / "zoo").known()
    assert build(tmp_path / "zoo", BASE, access=access(hub_lfs)) == Built(listed=3, indexed=3)


def test_what_was_damaged_on_the_way_is_asked_for_again(hub_lfs: HubDouble, tmp_path: Path) -> None:
    fill(hub_lfs, 3, layers=1)
    hub_lfs.faults.add("GET /objects/", garbled=True)
    assert build(tmp_path / "zoo", BASE, access=access(hub_lfs)) == Built(listed=3, indexed=2, missed=1)
    assert build(tmp_path / "zoo", BASE, access=access(hub_lfs)) == Built(listed=3, indexed=1, unchanged=2)


def test_what_a_killed_build_left_is_no_obstacle_and_vanishes(hub_lfs: HubDouble, tmp_path: Path) -> None:
    fill(hub_lfs, 1, layers=1)
    new = tmp_path / ".hub-merge.killed"
    (new / "new" / "data").mkdir(parents=True)
    (new / "lock").touch()
    build(tmp_path / "zoo", BASE, access=access(hub_lfs))
    assert not new.exists()
    unfinished = tmp_path / "zoo" / ".hub-merge-writing"
    unfinished.mkdir()
    (unfinished / "lock").touch()
    (unfinished / "rows.parquet").write_bytes(b"PAR1 and half of it")
    build(tmp_path / "zoo", BASE, access=access(hub_lfs))
    assert sorted(path.name for path in (tmp_path / "zoo").iterdir()) == ["data", "zoo.json"]
    assert len(Index(tmp_path / "zoo").known()) == 1


def test_searches_of_builds_that_began_together_are_all_remembered(tmp_path: Path) -> None:
    one, other = Index.create(tmp_path / "zoo"), Index.create(tmp_path / "zoo")
    for index, base in ((one, "acme/one"), (other, "acme/other")):
        with index.writing() as writer:
            writer.remember({"base": base, "limit": None})
    assert [search["base"] for search in Index(tmp_path / "zoo").searches] == ["acme/one", "acme/other"]


@pytest.mark.parametrize("read", [lambda index: index.known().keys(), lambda index: Loaded.read(index)._places.keys()])
def test_who_reads_while_files_are_put_together_reads_all(hub_lfs: HubDouble, tmp_path: Path, read: Any) -> None:
    planted = fill(hub_lfs, 4, layers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Index, "_compact", lambda index, writer: None)
        for limit in (2, 4):
            build(tmp_path / "zoo", BASE, access=access(hub_lfs), limit=limit)
    listed = Index.files
    assert len(Index(tmp_path / "zoo").files) == 2
    with pytest.MonkeyPatch.context() as patch:

        def outdated(index: Index) -> list[Path]:
            files = listed.__get__(index)
            patch.undo()
            with Index(tmp_path / "zoo").writing():
                pass
            return files

        patch.setattr(Index, "files", property(outdated))
        assert set(read(Index(tmp_path / "zoo"))) == set(planted.ids)
    assert len(Index(tmp_path / "zoo").files) == 1


def test_local_adapters_are_indexed_without_their_path(hub_lfs: HubDouble, tmp_path: Path) -> None:
    folder = tmp_path / "secret-place" / "mine"
    folder.mkdir(parents=True)
    for name, content in adapter_files(gpt2_factors(3, layers=1)).items():
        (folder / name).write_bytes(content)
    index = Index.create(tmp_path / "zoo")
    assert add(index, [str(folder)], access=access(hub_lfs)) == Built(listed=1, indexed=1)
    (key,) = index.known()
    assert key.startswith("./mine#")
    for path in (tmp_path / "zoo").rglob("*.*"):
        assert b"secret-place" not in path.read_bytes()
    assert add(index, [str(folder)], access=access(hub_lfs)) == Built(listed=1, indexed=1)
    assert len(index.known()) == 1


def test_only_one_process_writes_at_a_time(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "zoo")
    with index.writing(), pytest.raises(HubMergeError, match="Another process writes"), Index(index.folder).writing():
        pass


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputExists):
        Index.create(tmp_path)
    with pytest.raises(RecipeError, match="no index"):
        Index(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_index_of_another_version_is_refused(tmp_path: Path) -> None:
    Index.create(tmp_path / "zoo")
    (tmp_path / "zoo" / "zoo.json").write_text(json.dumps({"version": 999, "searches": []}))
    with pytest.raises(RecipeError, match="version 999"):
        Index(tmp_path / "zoo")


# --- engines ----------------------------------------------------------------------------------------------------------


def doubled_or_dead(task: Any, gate: Any) -> int:
    """Return twice a number; die at the first sight of a number that has a file."""
    number, folder = task
    marker = Path(folder) / str(number)
    if marker.exists():
        marker.unlink()
        os._exit(1)
    assert gate.take() == 0
    return 2 * int(number)


def always_dead(task: Any, gate: Any) -> None:
    os._exit(1)


def test_a_worker_that_dies_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "5").touch()
    results = list(in_processes(2)(doubled_or_dead, [(number, str(tmp_path)) for number in range(12)]))
    assert sorted(results) == [2 * number for number in range(12)]


def test_workers_that_always_die_end_the_build(tmp_path: Path) -> None:
    with pytest.raises(HubMergeError, match=f"died {engines.MOST_DEATHS} times"):
        list(in_processes(2)(always_dead, range(3)))


def asleep(folder: str, gate: Any) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_the_processes_of_a_killed_build_end(tmp_path: Path) -> None:
    script = (
        "from tests.test_zoo_building import asleep\n"
        "from hub_merge.zoo.engines import in_processes\n"
        f"if __name__ == '__main__': list(in_processes(2)(asleep, [{str(tmp_path)!r}] * 2))\n"
    )
    (tmp_path / "build.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    killed = subprocess.Popen([sys.executable, str(tmp_path / "build.py")], env=environment)
    end = time.monotonic() + 60
    while len(found := [int(path.name) for path in tmp_path.iterdir() if path.name.isdecimal()]) < 2:
        assert killed.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    while any(map(is_alive, found)):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_gate_makes_everybody_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 100.0)
    gate = LocalGate(spacing=0.5)
    assert [gate.take(), gate.take()] == [0.0, 0.5]
    gate.close(30)
    assert [gate.take(), gate.take()] == [30.0, 30.5]


def test_a_limit_of_the_rate_closes_the_gate(hub_lfs: HubDouble, tmp_path: Path) -> None:
    class Gate(LocalGate):
        closed = 0

        def close(self, seconds: float) -> None:
            self.closed += 1

    fill(hub_lfs, 1, layers=1)
    gate = Gate()
    hub_lfs.faults.add("GET /api/models/author", status=429, times=1, headers={"RateLimit": '"api";r=0;t=0'})
    work = [building.Task(found.reference, found.base, None, access(hub_lfs)) for found in listed(hub_lfs)]
    assert building.read(work[0], gate).fingerprint is not None  # type: ignore[union-attr]
    assert gate.closed == 1


def listed(hub: HubDouble) -> list[building.Found]:
    return list(building._listed(access(hub).connect(), BASE, BASE, None))
