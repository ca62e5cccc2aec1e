"""Hidden folders of ours: locked while a run works in them, cleared away when it was killed, never before."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hub_merge import workspace as workspaces
from hub_merge.errors import OutputExists
from hub_merge.staging import EXCHANGE, require_free, staged
from hub_merge.workspace import PREFIX, clear, entered, workspace, write_whole
from tests.helpers import fill_disk

OWN = ("hub_merge.json", "README.md", "a")
ENTER = """
import sys, time
from pathlib import Path
from hub_merge.workspace import workspace
with workspace(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def another_run(place: Path) -> tuple[subprocess.Popen[str], Path]:
    """Return a process that works in a workspace of its own, and that workspace."""
    run = subprocess.Popen([sys.executable, "-c", ENTER, str(place)], stdout=subprocess.PIPE, text=True)
    assert run.stdout
    return run, Path(run.stdout.readline().strip())


def kill(run: subprocess.Popen[str]) -> None:
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert run.stdout
    run.stdout.close()


def test_what_a_killed_run_left_is_cleared_away_and_what_a_living_one_uses_is_not(tmp_path: Path) -> None:
    run, folder = another_run(tmp_path)
    clear(tmp_path)
    assert names(folder) == ["half", "lock"]
    kill(run)
    assert names(folder) == ["half", "lock"]
    with workspace(tmp_path) as own:
        assert names(tmp_path) == [own.name]
    assert names(tmp_path) == []


def test_the_same_run_does_not_clear_away_its_own_folder(tmp_path: Path) -> None:
    with workspace(tmp_path) as outer, workspace(tmp_path) as inner:
        clear(tmp_path)
        assert outer.is_dir() and inner.is_dir() and outer != inner


def test_only_folders_of_ours_are_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "lock").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "work")
    (tmp_path / f"{PREFIX}file").touch()
    (tmp_path / f"{PREFIX}older" / "old").mkdir(parents=True)  # no lock says that nobody uses it
    (tmp_path / f"{PREFIX}empty").mkdir()
    clear(tmp_path)
    assert names(tmp_path) == [f"{PREFIX}file", f"{PREFIX}link", f"{PREFIX}older", "work"]
    assert names(tmp_path / "work") == ["lock"]


def test_a_run_whose_fresh_folder_is_cleared_away_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked, cleared = workspaces._locked, []

    def too_late(folder: Path, *, surely: bool = False) -> int | None:
        if not cleared:
            folder.rmdir()
            cleared.append(folder)
        return locked(folder, surely=surely)

    monkeypatch.setattr(workspaces, "_locked", too_late)
    with workspace(tmp_path) as folder:
        assert folder.is_dir() and folder != cleared[0]


def test_where_files_cannot_be_locked_nothing_is_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, folder = another_run(tmp_path)
    kill(run)
    monkeypatch.setattr(workspaces, "_lock", lambda handle: False)
    with workspace(tmp_path) as own:
        assert own.is_dir() and folder.is_dir()
    assert names(tmp_path) == [folder.name]


def test_a_place_for_one_is_entered_by_one_after_the_other(tmp_path: Path) -> None:
    inside, most = 0, 0
    counting = threading.Lock()

    def enter() -> None:
        nonlocal inside, most
        with entered(tmp_path / "place"):
            with counting:
                inside += 1
                most = max(most, inside)
            with counting:
                inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and names(tmp_path) == []


def test_a_place_that_another_run_does_not_leave_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspaces, "LONGEST_WAIT", 0.1)
    with (
        entered(tmp_path / "place"),
        pytest.raises(OutputExists, match="Another run writes"),
        entered(tmp_path / "place"),
    ):
        pytest.fail("two are in it")


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_with_its_permissions_and_through_links(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_whole(tmp_path / "link", "new\n")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"new\n"
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o640
    assert names(tmp_path) == ["link", "real"]


@pytest.mark.parametrize(("content", "written"), [("a – b\n", b"a \xe2\x80\x93 b\n"), (b"\x89PNG\r\n", b"\x89PNG\r\n")])
def test_text_and_bytes_are_written_as_they_are(tmp_path: Path, content: str | bytes, written: bytes) -> None:
    write_whole(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == written


def test_a_file_in_no_folder_is_told_by_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        write_whole(tmp_path / "no" / "card", "new")
    assert raised.value.filename == str(tmp_path / "no" / "card")


def test_a_file_keeps_its_content_when_the_new_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "card").write_text("old")
    fill_disk(monkeypatch)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "card", "new")
    monkeypatch.undo()
    assert (tmp_path / "card").read_text() == "old" and names(tmp_path) == ["card"]


# --- an exchange in which a run was killed ----------------------------------------------------------------------------


def half_exchanged(folder: Path, where: dict[str, list[str]]) -> Path:
    """Return a folder as a run leaves it that is killed in an exchange."""
    for place, files in where.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        for file in files:
            (folder / place / file).write_text(f"{file} of {place}")
    return folder


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("force", [False, True])
def test_what_was_there_comes_back_if_not_all_of_it_was_out(tmp_path: Path, force: bool) -> None:
    where = {f"{EXCHANGE}/new": ["a", "hub_merge.json"], f"{EXCHANGE}/leaving": ["hub_merge.json"], ".": ["a"]}
    folder = half_exchanged(tmp_path / "out", where)
    if force:
        require_free(folder, True, OWN)
    else:
        with pytest.raises(OutputExists, match="exists already"):
            require_free(folder, False, OWN)
    assert texts(folder) == {"a": "a of .", "hub_merge.json": f"hub_merge.json of {EXCHANGE}/leaving"}


def test_what_is_new_is_there_if_all_that_was_there_was_out(tmp_path: Path) -> None:
    where = {f"{EXCHANGE}/new": ["hub_merge.json"], f"{EXCHANGE}/left": ["a", "hub_merge.json"], ".": ["a"]}
    folder = half_exchanged(tmp_path / "out", where)
    require_free(folder, True, OWN)
    assert texts(folder) == {"a": "a of .", "hub_merge.json": f"hub_merge.json of {EXCHANGE}/new"}


def test_what_somebody_put_there_since_is_not_replaced(tmp_path: Path) -> None:
    where = {f"{EXCHANGE}/new": ["a", "hub_merge.json"], f"{EXCHANGE}/left": ["a"], ".": ["a"]}
    folder = half_exchanged(tmp_path / "out", where)
    require_free(folder, True, OWN)
    assert texts(folder) == {"a": "a of .", "hub_merge.json": f"hub_merge.json of {EXCHANGE}/new"}


def test_a_folder_that_another_run_made_meanwhile_is_told_and_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(OutputExists), staged(tmp_path / "out", False, OWN) as stage:
        (stage / "a").write_text("ours")
        half_exchanged(tmp_path / "out", {".": ["a"]})
    assert texts(tmp_path / "out") == {"a": "a of ."} and names(tmp_path) == ["out"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it needs a process that can be killed")
def test_the_record_is_the_first_to_go_and_the_last_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks in between finds no composite, rather than half of one."""
    half_exchanged(tmp_path / "out", {".": ["a", "hub_merge.json", "adapter_config.json"]})
    moves: list[tuple[str, str]] = []
    rename = Path.rename

    def seen(path: Path, target: Path) -> Path:
        moves.append((path.parent.name, path.name))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", seen)
    with staged(tmp_path / "out", True, (*OWN, "adapter_config.json")) as stage:
        half_exchanged(stage, {".": ["a", "hub_merge.json", "adapter_config.json"]})
    out = [name for place, name in moves if place == "out"]
    into = [name for place, name in moves if place == "new" and name != "new"]
    assert out == ["hub_merge.json", "adapter_config.json", "a"] and into == out[::-1]
