"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hub_merge.errors import OutputExists
from hub_merge.staging import require_free, staged

OWN = ("hub_merge.json", "README.md", "a")
"""Names of the files that may be replaced."""


class Failure(Exception):
    """Stands for whatever goes wrong while writing."""


def adapter(folder: Path, content: str = "old") -> Path:
    folder.mkdir(parents=True)
    (folder / "hub_merge.json").write_text(content)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_appears_with_its_content_only_at_the_end(tmp_path: Path) -> None:
    with staged(tmp_path / "out", force=False, own=OWN) as stage:
        (stage / "a").write_text("1")
        assert not (tmp_path / "out").exists()
        assert stage.is_relative_to(tmp_path)  # the same file system, so that renaming is atomic
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "1"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with staged(tmp_path / "out", force=False, own=OWN) as stage:
        (stage / "a").write_text("1")
    assert names(tmp_path / "out") == ["a"] and names(tmp_path) == ["out"]


def test_the_current_folder_is_taken_if_it_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with staged(Path(), force=False, own=OWN) as stage:
        (stage / "a").write_text("1")
    assert names(tmp_path / "here") == ["a"] and names(tmp_path) == ["here"]


@pytest.mark.parametrize("error", [Failure, KeyboardInterrupt])
def test_after_an_error_nothing_is_left_not_even_parents(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), staged(tmp_path / "x" / "y" / "out", force=False, own=OWN) as stage:
        (stage / "a").write_text("1")
        raise error
    assert names(tmp_path) == []


def test_after_an_error_parents_that_others_use_by_now_stay(tmp_path: Path) -> None:
    with pytest.raises(Failure), staged(tmp_path / "x" / "y" / "out", force=False, own=OWN):
        (tmp_path / "x" / "theirs").write_text("")
        raise Failure
    assert names(tmp_path) == ["x"] and names(tmp_path / "x") == ["theirs"]


def test_a_folder_in_use_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    adapter(tmp_path / "out")
    with pytest.raises(OutputExists, match="--force"), staged(tmp_path / "out", force=False, own=OWN):
        pytest.fail("the body must not run")
    assert names(tmp_path) == ["out"]


def test_force_replaces_an_adapter_as_a_whole(tmp_path: Path) -> None:
    (adapter(tmp_path / "out") / "README.md").write_text("")
    with staged(tmp_path / "out", force=True, own=OWN) as stage:
        (stage / "hub_merge.json").write_text("new")
        assert (tmp_path / "out" / "hub_merge.json").read_text() == "old"
    assert names(tmp_path / "out") == ["hub_merge.json"] and names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "hub_merge.json").read_text() == "new"


def test_force_leaves_the_old_adapter_in_place_when_writing_fails(tmp_path: Path) -> None:
    adapter(tmp_path / "out")
    with pytest.raises(Failure), staged(tmp_path / "out", force=True, own=OWN):
        raise Failure
    assert names(tmp_path) == ["out"] and (tmp_path / "out" / "hub_merge.json").read_text() == "old"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_force_brings_the_old_adapter_back_when_the_last_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    adapter(tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("old card")
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.parent.name == "new" and path.name == "hub_merge.json":
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(error), staged(tmp_path / "out", force=True, own=OWN) as stage:
        (stage / "a").write_text("new")
        (stage / "hub_merge.json").write_text("new")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["README.md", "hub_merge.json"]
    assert (tmp_path / "out" / "hub_merge.json").read_text() == "old"


def test_force_does_not_replace_what_is_no_adapter(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").write_text("years of work")
    (tmp_path / "file").write_text("1")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("thesis", "file", "dangling"):
        with pytest.raises(OutputExists, match="no composite"), staged(tmp_path / name, force=True, own=OWN):
            pytest.fail("the body must not run")
    assert names(tmp_path) == ["dangling", "file", "thesis"] and names(tmp_path / "thesis") == ["chapter1"]


@pytest.mark.parametrize("name", ["notes.txt", "checkpoint-100", ".git", "adapter_model.bin"])
def test_force_does_not_replace_an_adapter_with_something_else_beside_it(tmp_path: Path, name: str) -> None:
    (adapter(tmp_path / "out") / name).mkdir()
    (tmp_path / "out" / name / "kept").write_text("years of work")
    told = f"holds {name} too"
    with pytest.raises(OutputExists, match=told), staged(tmp_path / "out", force=True, own=OWN):
        pytest.fail("the body must not run")
    assert (tmp_path / "out" / name / "kept").read_text() == "years of work"


def test_what_somebody_adds_while_we_write_is_not_replaced(tmp_path: Path) -> None:
    adapter(tmp_path / "out")
    with pytest.raises(OutputExists, match="notes"), staged(tmp_path / "out", force=True, own=OWN):
        (tmp_path / "out" / "notes").write_text("mine")
    assert names(tmp_path / "out") == ["hub_merge.json", "notes"]


@pytest.mark.parametrize("force", [False, True])
def test_a_link_to_a_folder_stays_and_what_it_leads_to_is_filled(tmp_path: Path, force: bool) -> None:
    (tmp_path / "disk").mkdir()
    if force:
        (tmp_path / "disk" / "hub_merge.json").write_text("old")
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    with staged(tmp_path / "out", force=force, own=OWN) as stage:
        (stage / "hub_merge.json").write_text("new")
    assert (tmp_path / "out").is_symlink() and names(tmp_path / "disk") == ["hub_merge.json"]
    assert (tmp_path / "disk" / "hub_merge.json").read_text() == "new"


def test_a_folder_that_stands_is_the_same_folder_afterwards(tmp_path: Path) -> None:
    """Who is in it, as a shell or a mount, sees the content; its parent need not be writable."""
    before = adapter(tmp_path / "out").stat().st_ino
    with staged(tmp_path / "out", force=True, own=OWN) as stage:
        assert stage.is_relative_to(tmp_path / "out")
        (stage / "hub_merge.json").write_text("new")
    assert (tmp_path / "out").stat().st_ino == before and names(tmp_path / "out") == ["hub_merge.json"]


def test_a_folder_that_somebody_filled_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(OutputExists), staged(tmp_path / "out", force=False, own=OWN):
        adapter(tmp_path / "out", "theirs")
    assert names(tmp_path) == ["out"] and (tmp_path / "out" / "hub_merge.json").read_text() == "theirs"


def test_the_folder_has_the_permissions_of_any_other_folder(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with staged(tmp_path / "out", force=False, own=OWN):
            pass
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750


def test_a_free_place_is_free(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("absent", "empty", "no/parent"):
        require_free(tmp_path / name, force=False, own=OWN)
        require_free(tmp_path / name, force=True, own=OWN)
    assert names(tmp_path) == ["empty"]
