"""Where a publication goes and is found again: branches, tags and collections, against the Hub double."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hub_merge.errors import PublishError
from tests.hub_double import HubDouble
from tests.test_publish import FILES, assert_says, commits_sent, folder, publish, published_files, writes

__all__ = ["folder"]

REPO = "alice/composite"


def tags(hub: HubDouble) -> dict[str, str]:
    return {ref.name: ref.target_commit for ref in hub.api("alice").list_repo_refs(REPO).tags}


def collections(hub: HubDouble, owner: str = "alice") -> dict[str, tuple[list[str], bool]]:
    """Return items and privacy of each collection by title."""
    api = hub.api("alice")
    found = [api.get_collection(listed.slug) for listed in api.list_collections(owner=owner)]
    return {each.title: ([item.item_id for item in each.items], each.private) for each in found}


# --- branches ---------------------------------------------------------------------------------------------------------


def test_a_branch_is_created_from_the_default_branch_and_leaves_it_alone(hub: HubDouble, folder: Path) -> None:
    head = publish(hub, folder).commit
    (folder / "README.md").write_text("# Rank 8\n")
    published = publish(hub, folder, branch="rank-8")

    first, second, *_ = hub.commits(REPO, "rank-8")
    assert (published.commit, published.branch, first.parent) == (first.oid, "rank-8", second.oid)
    assert second.oid == head == hub.commits(REPO)[0].oid
    assert published_files(hub, revision="rank-8") == {**FILES, "README.md": b"# Rank 8\n"}
    assert published_files(hub)["README.md"] == FILES["README.md"]


def test_a_branch_that_is_there_is_compared_and_continued(hub_lfs: HubDouble, folder: Path) -> None:
    publish(hub_lfs, folder)
    (folder / "README.md").write_text("# Rank 8\n")
    first = publish(hub_lfs, folder, branch="rank-8")
    again = publish(hub_lfs, folder, branch="rank-8")
    assert (again.changed, again.commit) == (False, first.commit)
    (folder / "README.md").write_text("# Better\n")
    changed = [file.name for file in publish(hub_lfs, folder, branch="rank-8").files if file.action == "update"]
    assert changed == ["README.md"]
    assert hub_lfs.commits(REPO, "rank-8")[0].parent == first.commit


def test_a_new_repository_may_begin_with_a_branch(hub_lfs: HubDouble, folder: Path) -> None:
    published = publish(hub_lfs, folder, branch="try")
    assert published.created
    assert published_files(hub_lfs, revision="try") == FILES and published_files(hub_lfs) == {}


def test_a_branch_without_a_change_is_created_without_a_commit(hub_lfs: HubDouble, folder: Path) -> None:
    head = publish(hub_lfs, folder).commit
    hub_lfs.requests.clear()
    published = publish(hub_lfs, folder, branch="same")
    assert (published.changed, published.commit, commits_sent(hub_lfs)) == (False, head, 0)
    assert hub_lfs.commits(REPO, "same")[0].oid == head


def test_the_default_branch_may_be_named(hub_lfs: HubDouble, folder: Path) -> None:
    publish(hub_lfs, folder, branch="main")
    assert published_files(hub_lfs) == FILES


def test_a_branch_that_changes_meanwhile_is_told_and_not_written_over(hub_lfs: HubDouble, folder: Path) -> None:
    publish(hub_lfs, folder)
    publish(hub_lfs, folder, branch="rank-8")
    (folder / "README.md").write_text("mine")
    hub_lfs.requests.clear()
    hub_lfs.faults.add("POST .*/preupload/", delay=0.3)

    def push_in_between() -> None:
        while not any("/preupload/" in request.path for request in hub_lfs.requests):
            time.sleep(0.01)
        hub_lfs.api("alice").upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=REPO, revision="rank-8")

    with ThreadPoolExecutor() as pool:
        pool.submit(push_in_between)
        with pytest.raises(PublishError) as error:
            publish(hub_lfs, folder, branch="rank-8")
    assert_says(error, f"{REPO} changed meanwhile", "nothing was published", remedy="Publish again")
    assert hub_lfs.commits(REPO, "rank-8")[0].title == "Upload x with huggingface_hub"


def test_a_commit_on_a_branch_whose_answer_was_lost_is_found(hub_lfs: HubDouble, folder: Path) -> None:
    publish(hub_lfs, folder)
    (folder / "README.md").write_text("new")
    hub_lfs.faults.add("POST .*/commit/", cut="response")
    published = publish(hub_lfs, folder, branch="rank-8")
    assert published.commit == hub_lfs.commits(REPO, "rank-8")[0].oid
    assert len(hub_lfs.commits(REPO, "rank-8")) == 3


@pytest.mark.parametrize("asked", [{"branch": "x"}, {"tag": "x"}, {"collection": "x"}])
def test_a_pull_request_goes_with_nothing_of_that(hub_lfs: HubDouble, folder: Path, asked: dict[str, str]) -> None:
    hub_lfs.add_repo("bob/theirs", {"README.md": b"theirs"})
    with pytest.raises(PublishError) as error:
        publish(hub_lfs, folder, "bob/theirs", create_pr=True, **asked)
    assert_says(error, "pull request", remedy="--create-pr")
    assert not writes(hub_lfs)


@pytest.mark.parametrize("asked", [{"branch": "a b"}, {"tag": "-x"}, {"branch": "a..b"}, {"tag": ""}])
def test_a_malformed_name_is_refused(hub_lfs: HubDouble, folder: Path, asked: dict[str, str]) -> None:
    with pytest.raises(PublishError) as error:
        publish(hub_lfs, folder, **asked)
    assert_says(error, repr(next(iter(asked.values()))), remedy="such as v1.0")
    assert not writes(hub_lfs)


# --- tags -------------------------------------------------------------------------------------------------------------


def test_the_commit_is_tagged(hub: HubDouble, folder: Path) -> None:
    published = publish(hub, folder, tag="v1.0")
    assert tags(hub) == {"v1.0": published.commit}
    again = publish(hub, folder, tag="v1.0")
    assert (again.changed, tags(hub)) == (False, {"v1.0": published.commit})
    publish(hub, folder, tag="stable")
    assert tags(hub) == {"v1.0": published.commit, "stable": published.commit}


def test_a_tag_on_a_branch_is_at_the_commit_of_the_branch(hub_lfs: HubDouble, folder: Path) -> None:
    publish(hub_lfs, folder)
    (folder / "README.md").write_text("new")
    published = publish(hub_lfs, folder, branch="rank-8", tag="v2")
    assert tags(hub_lfs) == {"v2": published.commit} == {"v2": hub_lfs.commits(REPO, "rank-8")[0].oid}


def test_a_tag_that_is_taken_is_told_before_anything_is_written(hub_lfs: HubDouble, folder: Path) -> None:
    commit = publish(hub_lfs, folder, tag="v1.0").commit
    (folder / "README.md").write_text("new")
    hub_lfs.requests.clear()
    for asked in ({}, {"dry_run": True}):
        with pytest.raises(PublishError) as error:
            publish(hub_lfs, folder, tag="v1.0", **asked)
        assert_says(error, REPO, "v1.0", str(commit)[:12], remedy="another name")
    assert not writes(hub_lfs)


def test_a_tag_that_fails_says_that_the_commit_stands(hub_lfs: HubDouble, folder: Path) -> None:
    hub_lfs.faults.add("POST .*/tag/", status=403, times=None)
    with pytest.raises(PublishError) as error:
        publish(hub_lfs, folder, tag="v1.0")
    commit = hub_lfs.commits(REPO)[0].oid
    assert_says(error, f"{REPO} itself is published, at commit {commit}", remedy="right to write")
    assert published_files(hub_lfs) == FILES


# --- collections ------------------------------------------------------------------------------------------------------


def test_a_collection_of_a_new_title_is_created_as_private_as_the_repository(hub_lfs: HubDouble, folder: Path) -> None:
    published = publish(hub_lfs, folder, collection="My merges", private=True)
    assert collections(hub_lfs) == {"My merges": ([REPO], True)}
    assert published.collection and published.collection.startswith("alice/my-merges-")


def test_a_collection_lists_a_repository_once_and_is_found_by_title_and_slug(hub_lfs: HubDouble, folder: Path) -> None:
    slug = publish(hub_lfs, folder, collection="My merges").collection
    for collection in ("My merges", slug):
        assert publish(hub_lfs, folder, collection=collection).collection == slug
    publish(hub_lfs, folder, "alice/other", collection=slug)
    assert collections(hub_lfs) == {"My merges": ([REPO, "alice/other"], False)}


def test_a_repository_of_an_organisation_goes_into_its_collection(hub_lfs: HubDouble, folder: Path) -> None:
    publish(hub_lfs, folder, "acme/composite", collection="Ours")
    assert collections(hub_lfs, "acme") == {"Ours": (["acme/composite"], False)}


@pytest.mark.parametrize(
    ("slug", "says"),
    [
        (f"alice/gone-{'0' * 24}", "There is no collection"),
        (f"bob/his-{'0' * 24}", "alice has no right to add to the collection"),
    ],
)
def test_a_collection_that_cannot_be_had_is_told_before_anything_is_written(
    hub_lfs: HubDouble, folder: Path, slug: str, says: str
) -> None:
    with pytest.raises(PublishError) as error:
        publish(hub_lfs, folder, collection=slug)
    assert_says(error, says, slug, remedy="title")
    assert not writes(hub_lfs)


def test_a_collection_that_fails_says_that_the_commit_stands(hub_lfs: HubDouble, folder: Path) -> None:
    hub_lfs.faults.add("POST /api/collections", status=503, times=None)
    with pytest.raises(PublishError) as error:
        publish(hub_lfs, folder, collection="My merges")
    assert_says(error, f"{REPO} itself is published", remedy="Try again")
    assert published_files(hub_lfs) == FILES


def test_a_dry_run_creates_none_of_it(hub_lfs: HubDouble, folder: Path) -> None:
    publish(hub_lfs, folder)
    hub_lfs.requests.clear()
    planned = publish(hub_lfs, folder, branch="rank-8", tag="v1.0", collection="My merges", dry_run=True)
    assert (planned.branch, planned.tag, planned.collection) == ("rank-8", "v1.0", "My merges")
    assert not writes(hub_lfs)
