"""Publishing a folder, with the real client against the Hub double, by git LFS and by Xet."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from hub_merge.errors import HubUnavailable, PublishError
from hub_merge.hub import Hub
from hub_merge.publish import Published, PublishedFile, publish_folder
from tests.hub_double import HubDouble

WEIGHTS = save({"base_model.model.h.0.lora_A.weight": np.arange(8, dtype=np.float32).reshape(2, 4)})
FILES = {
    "README.md": b"---\nlicense: mit\n---\n# Composite\n",
    "adapter_config.json": b'{"peft_type": "LORA"}',
    "adapter_model.safetensors": WEIGHTS,
    "hub_merge.json": b'{"schema_version": 1}',
}
WRITES = ("POST", "PUT", "DELETE", "PATCH")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    composite = tmp_path / "composite"
    composite.mkdir()
    for name, content in FILES.items():
        (composite / name).write_bytes(content)
    (composite / "notes.txt").write_text("mine")
    return composite


def connect(hub: HubDouble, user: str = "alice", **settings: object) -> Hub:
    options = {"timeout": 5.0, "retries": 0, **settings}
    return Hub(token=hub.token(user), endpoint=hub.endpoint, cache_dir=hub.folder / "cache", **options)  # type: ignore[arg-type]


def publish(
    hub: HubDouble, folder: Path, repo_id: str = "alice/composite", user: str = "alice", **options: object
) -> Published:
    settings = {"private": None, "files": list(FILES), **options}
    return publish_folder(folder, repo_id, hub=connect(hub, user), **settings)  # type: ignore[arg-type]


def writes(hub: HubDouble) -> list[str]:
    return [f"{request.method} {request.path}" for request in hub.requests if request.method in WRITES]


def commits_sent(hub: HubDouble) -> int:
    return sum("/commit/" in line for line in writes(hub))


def published_files(hub: HubDouble, repo_id: str = "alice/composite", revision: str = "main") -> dict[str, bytes]:
    names = hub.commits(repo_id, revision)[0].files
    return {name: hub.file(repo_id, name, revision) for name in names if name != ".gitattributes"}


def assert_says(error: pytest.ExceptionInfo[PublishError], *subjects: str, remedy: str) -> None:
    for subject in subjects:
        assert subject in error.value.problem
    assert remedy in (error.value.remedy or "")
    assert "hf_alice" not in str(error.value)


# --- what is published ------------------------------------------------------------------------------------------------


def test_a_new_repository_gets_all_files_in_one_commit(hub: HubDouble, folder: Path) -> None:
    published = publish(hub, folder, commit_message="Merge two")
    assert published_files(hub) == FILES
    first, initial = hub.commits("alice/composite")
    assert (first.title, first.parent, initial.title) == ("Merge two", initial.oid, "initial commit")
    assert published == Published(
        repo_id="alice/composite",
        url=f"{hub.endpoint}/alice/composite",
        commit=first.oid,
        pr_url=None,
        created=True,
        changed=True,
        files=tuple(PublishedFile(name, len(content), "add") for name, content in FILES.items()),
    )
    assert commits_sent(hub) == 1
    assert not hub.repo("alice/composite").private


def test_the_repository_is_created_after_everything_was_looked_at_and_the_card_accepted(
    hub_lfs: HubDouble, folder: Path
) -> None:
    publish(hub_lfs, folder)
    lines = [f"{request.method} {request.path}" for request in hub_lfs.requests]
    created = lines.index("POST /api/repos/create")
    assert lines[:created] == [
        "GET /api/whoami-v2",
        "GET /api/models/alice/composite",
        "POST /api/validate-yaml",
    ]


def test_the_commit_names_the_head_it_was_made_for(hub_lfs: HubDouble, folder: Path) -> None:
    publish(hub_lfs, folder)
    (sent,) = [request for request in hub_lfs.requests if "/commit/" in request.path]
    header = json.loads(sent.body.splitlines()[0])["value"]
    assert header["parentCommit"] == hub_lfs.commits("alice/composite")[1].oid


def test_a_name_without_owner_is_in_the_users_own_namespace(hub_lfs: HubDouble, folder: Path) -> None:
    assert publish(hub_lfs, folder, "composite").repo_id == "alice/composite"
    assert publish(hub_lfs, folder, "acme/composite").repo_id == "acme/composite"


def test_a_private_composite_gets_a_private_repository(hub_lfs: HubDouble, folder: Path) -> None:
    publish(hub_lfs, folder, private=True)
    assert hub_lfs.repo("alice/composite").private


def test_publishing_the_same_again_changes_nothing(hub: HubDouble, folder: Path) -> None:
    first = publish(hub, folder)
    hub.requests.clear()
    again = publish(hub, folder)
    assert (again.changed, again.created, again.commit) == (False, False, first.commit)
    assert {file.action for file in again.files} == {"unchanged"}
    assert len(hub.commits("alice/composite")) == 2
    assert not writes(hub)


def test_an_update_sends_what_changed_and_keeps_what_is_the_users(hub: HubDouble, folder: Path) -> None:
    publish(hub, folder)
    hub.push("alice/composite", {"eval.md": b"my notes"})
    (folder / "README.md").write_text("# Another card\n")
    hub.requests.clear()
    published = publish(hub, folder)
    assert {file.name: file.action for file in published.files if file.action != "unchanged"} == {"README.md": "update"}
    assert published_files(hub) == {**FILES, "README.md": b"# Another card\n", "eval.md": b"my notes"}
    (sent,) = [request for request in hub.requests if "/commit/" in request.path]
    assert [json.loads(line)["key"] for line in sent.body.splitlines()] == ["header", "file"]


def test_a_file_of_the_same_size_but_other_content_is_an_update(hub_lfs: HubDouble, folder: Path) -> None:
    publish(hub_lfs, folder)
    (folder / "hub_merge.json").write_bytes(FILES["hub_merge.json"].replace(b"1", b"2"))
    (folder / "adapter_model.safetensors").write_bytes(WEIGHTS[:-1] + b"\x01")
    changed = {file.name for file in publish(hub_lfs, folder).files if file.action == "update"}
    assert changed == {"hub_merge.json", "adapter_model.safetensors"}


def test_only_the_named_files_are_published(hub_lfs: HubDouble, folder: Path) -> None:
    publish(hub_lfs, folder, files=["hub_merge.json"])
    assert list(published_files(hub_lfs)) == ["hub_merge.json"]


def test_a_renamed_repository_is_updated_under_its_new_name(hub_lfs: HubDouble, folder: Path) -> None:
    publish(hub_lfs, folder)
    hub_lfs.renames["alice/old"] = "alice/composite"
    (folder / "README.md").write_text("new")
    assert publish(hub_lfs, folder, "alice/old").repo_id == "alice/composite"


@pytest.mark.parametrize("repo_id", ["alice/math", "Alice/Math", "math", "alice/old"])
@pytest.mark.parametrize("there", [True, False])
def test_what_the_files_were_made_from_is_not_replaced(
    hub_lfs: HubDouble, folder: Path, repo_id: str, there: bool
) -> None:
    if there:
        hub_lfs.add_repo("alice/math", {"README.md": b"mine"})
        hub_lfs.renames["alice/old"] = "alice/math"
    sources = ["bob/law", "alice/math" if there else f"alice/{repo_id.rpartition('/')[2]}"]
    with pytest.raises(PublishError) as refused:
        publish(hub_lfs, folder, repo_id, sources=sources, force=True)
    assert_says(refused, "made from", remedy="--create-pr")
    assert not writes(hub_lfs)


def test_a_pull_request_to_what_the_files_were_made_from_is_opened(hub: HubDouble, folder: Path) -> None:
    hub.add_repo("bob/theirs", {"README.md": b"theirs"})
    assert publish(hub, folder, "bob/theirs", sources=["bob/theirs"], create_pr=True).pr_url


# --- pull requests ----------------------------------------------------------------------------------------------------


def test_a_pull_request_leaves_the_default_branch_alone(hub: HubDouble, folder: Path) -> None:
    head = hub.add_repo("bob/theirs", {"README.md": b"theirs", "other.txt": b"x"})
    published = publish(hub, folder, "bob/theirs", create_pr=True, commit_message="A composite")
    assert published.pr_url == f"{hub.endpoint}/bob/theirs/discussions/1"
    assert published.commit == hub.commits("bob/theirs", "refs/pr/1")[0].oid
    assert hub.commits("bob/theirs")[0].oid == head
    assert published_files(hub, "bob/theirs", "refs/pr/1") == {**FILES, "other.txt": b"x"}
    assert commits_sent(hub) == 1


def test_a_pull_request_needs_a_repository(hub_lfs: HubDouble, folder: Path) -> None:
    with pytest.raises(PublishError) as error:
        publish(hub_lfs, folder, create_pr=True)
    assert_says(error, "alice/composite", "pull request", remedy="without a pull request")
    assert not writes(hub_lfs)


# --- dry runs ---------------------------------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing_and_tells_what_would_happen(hub_lfs: HubDouble, folder: Path) -> None:
    planned = publish(hub_lfs, folder, dry_run=True)
    assert (planned.created, planned.changed, planned.commit) == (True, True, None)
    assert {file.action for file in planned.files} == {"add"}
    publish(hub_lfs, folder)
    head = hub_lfs.commits("alice/composite")[0].oid
    (folder / "README.md").write_text("new")
    hub_lfs.requests.clear()
    planned = publish(hub_lfs, folder, dry_run=True)
    assert (planned.created, planned.changed, planned.commit) == (False, True, head)
    assert [file.name for file in planned.files if file.action == "update"] == ["README.md"]
    assert {request.method for request in hub_lfs.requests} == {"GET"}


def test_a_dry_run_finds_what_would_be_refused(hub_lfs: HubDouble, folder: Path) -> None:
    hub_lfs.add_repo("bob/theirs", {"README.md": b"theirs"})
    with pytest.raises(PublishError, match="no right to write"):
        publish(hub_lfs, folder, "bob/theirs", dry_run=True)


# --- repositories that are not fit ------------------------------------------------------------------------------------


def test_a_repository_of_another_make_is_left_alone_unless_forced(hub: HubDouble, folder: Path) -> None:
    hub.add_repo("alice/model", {"README.md": b"my card", "config.json": b"{}"})
    with pytest.raises(PublishError) as error:
        publish(hub, folder, "alice/model")
    assert_says(error, "alice/model", "3 files", "not made by hub-merge", remedy="--force")
    assert not writes(hub)
    publish(hub, folder, "alice/model", force=True)
    assert published_files(hub, "alice/model") == {**FILES, "config.json": b"{}"}


def test_an_empty_repository_is_fit(hub_lfs: HubDouble, folder: Path) -> None:
    hub_lfs.add_repo("alice/composite")
    assert not publish(hub_lfs, folder).created
    assert published_files(hub_lfs) == FILES


@pytest.mark.parametrize("create_pr", [False, True])
def test_what_is_to_be_private_does_not_go_to_a_public_repository(
    hub_lfs: HubDouble, folder: Path, create_pr: bool
) -> None:
    publish(hub_lfs, folder)
    hub_lfs.requests.clear()
    with pytest.raises(PublishError) as error:
        publish(hub_lfs, folder, private=True, create_pr=create_pr)
    assert_says(error, "alice/composite", "public already", remedy="--no-private")
    assert not writes(hub_lfs)


def test_a_disabled_repository_is_told(hub_lfs: HubDouble, folder: Path) -> None:
    hub_lfs.add_repo("alice/composite", disabled=True)
    with pytest.raises(PublishError) as error:
        publish(hub_lfs, folder)
    assert_says(error, "alice/composite", "disabled", remedy="another name")


@pytest.mark.parametrize("name", ["missing.json", "../secret", "/etc/passwd", "a//b", ".git/config", "link.md", ""])
def test_only_regular_files_inside_the_folder_can_be_published(hub_lfs: HubDouble, folder: Path, name: str) -> None:
    (folder.parent / "secret").write_text("secret")
    (folder / "link.md").symlink_to(folder.parent / "secret")
    with pytest.raises(PublishError) as error:
        publish(hub_lfs, folder, files=[*FILES, name])
    assert error.value.remedy
    assert not hub_lfs.requests


def test_an_empty_list_of_files_is_refused(hub_lfs: HubDouble, folder: Path) -> None:
    with pytest.raises(PublishError, match="no files to publish"):
        publish(hub_lfs, folder, files=[])


@pytest.mark.parametrize("repo_id", ["a/b/c", "alice/bad name", "alice/composite@v1", "--"])
def test_a_malformed_name_is_refused_before_anything_is_asked(hub_lfs: HubDouble, folder: Path, repo_id: str) -> None:
    with pytest.raises(PublishError) as error:
        publish(hub_lfs, folder, repo_id)
    assert_says(error, repo_id, remedy="owner/name")
    assert not hub_lfs.requests


# --- rights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("existing", [True, False])
def test_another_users_namespace_is_refused_before_anything_is_written(
    hub_lfs: HubDouble, folder: Path, existing: bool
) -> None:
    if existing:
        hub_lfs.add_repo("bob/composite", {"hub_merge.json": b"{}"})
    with pytest.raises(PublishError) as error:
        publish(hub_lfs, folder, "bob/composite")
    assert_says(error, "alice has no right to write to bob/composite", remedy="Publish to alice/composite")
    assert not writes(hub_lfs)


def test_a_token_that_may_only_read_is_told(hub_lfs: HubDouble, folder: Path) -> None:
    with pytest.raises(PublishError) as error:
        publish(hub_lfs, folder, "reader/composite", user="reader")
    assert_says(error, "token of reader may only read", "reader/composite", remedy="/settings/tokens")
    assert not writes(hub_lfs)


def test_a_user_who_is_not_logged_in_is_told_how_to(hub_lfs: HubDouble, folder: Path) -> None:
    for token in (False, None):
        client = Hub(token=token, endpoint=hub_lfs.endpoint)
        with pytest.raises(PublishError) as error:
            publish_folder(folder, "alice/composite", hub=client, private=None, files=list(FILES))
        assert_says(error, "alice/composite", remedy="hf auth login")
    assert not hub_lfs.requests


def test_a_token_that_the_hub_does_not_know_is_told_and_not_shown(hub_lfs: HubDouble, folder: Path) -> None:
    token = "hf_" + "z" * 34
    client = Hub(token=token, endpoint=hub_lfs.endpoint)
    with pytest.raises(PublishError) as error:
        publish_folder(folder, "alice/composite", hub=client, private=None, files=list(FILES))
    assert_says(error, "alice/composite", "does not accept the token", remedy="hf auth login")
    assert token not in str(error.value)


def test_without_network_nothing_is_published(hub_lfs: HubDouble, folder: Path) -> None:
    with pytest.raises(HubUnavailable) as error:
        publish_folder(folder, "alice/composite", hub=connect(hub_lfs, offline=True), private=None, files=list(FILES))
    assert "alice/composite" in error.value.problem
    assert not hub_lfs.requests


# --- when something goes wrong ----------------------------------------------------------------------------------------


def test_a_card_that_the_hub_refuses_is_told_in_its_words_before_anything_is_created(
    hub_lfs: HubDouble, folder: Path
) -> None:
    (folder / "README.md").write_text("---\nmodel-index: 5\n---\n")
    with pytest.raises(PublishError) as error:
        publish(hub_lfs, folder)
    assert_says(error, "alice/composite", '"model-index" must be an array', remedy="README.md")
    assert writes(hub_lfs) == ["POST /api/validate-yaml"]


CREATION = [
    (402, "asks to be paid", "/settings/billing"),
    (403, "alice may not write", "Publish to alice/composite"),
    (409, "came into being meanwhile", "Publish again"),
    (503, "503", "Try again"),
]


@pytest.mark.parametrize(("status", "says", "remedy"), CREATION)
def test_a_repository_that_cannot_be_created_is_told(
    hub_lfs: HubDouble, folder: Path, status: int, says: str, remedy: str
) -> None:
    hub_lfs.faults.add("POST /api/repos/create", status=status, times=None)
    with pytest.raises(PublishError) as error:
        publish(hub_lfs, folder)
    assert_says(error, "alice/composite", says, "Injected by the test", remedy=remedy)
    assert "is empty" not in error.value.problem
    assert commits_sent(hub_lfs) == 0


REFUSED = [
    (401, "does not accept the token", "hf auth login"),
    (403, "alice may not write", "Publish to alice/composite"),
    (400, "status 400", "Try again"),
    (429, "status 429", "Try again"),
]


@pytest.mark.parametrize(("status", "says", "remedy"), REFUSED)
def test_a_commit_that_is_refused_is_told_and_an_empty_new_repository_is_kept(
    hub_lfs: HubDouble, folder: Path, status: int, says: str, remedy: str
) -> None:
    hub_lfs.faults.add("POST .*/commit/", status=status, times=None)
    with pytest.raises(PublishError) as error:
        publish(hub_lfs, folder)
    assert_says(error, says, f"{hub_lfs.endpoint}/alice/composite was created and is empty", remedy=remedy)
    assert published_files(hub_lfs) == {}
    assert commits_sent(hub_lfs) == 1
    assert "/commit/" in hub_lfs.requests[-1].path
    assert not any(line.startswith("DELETE") for line in writes(hub_lfs))
    hub_lfs.faults.clear()
    assert publish(hub_lfs, folder).changed


def test_a_repository_that_changes_while_files_are_sent_is_not_written_over(hub_lfs: HubDouble, folder: Path) -> None:
    publish(hub_lfs, folder)
    (folder / "README.md").write_text("mine")
    hub_lfs.requests.clear()
    hub_lfs.faults.add("POST .*/preupload/", delay=0.3)

    def push_in_between() -> None:
        while not any("/preupload/" in request.path for request in hub_lfs.requests):
            time.sleep(0.01)
        hub_lfs.push("alice/composite", {"README.md": b"theirs"})

    with ThreadPoolExecutor() as pool:
        pool.submit(push_in_between)
        with pytest.raises(PublishError) as error:
            publish(hub_lfs, folder)
    assert_says(error, "alice/composite changed meanwhile", "nothing was published", remedy="Publish again")
    assert hub_lfs.file("alice/composite", "README.md") == b"theirs"


def test_an_upload_that_fails_is_told(hub_lfs: HubDouble, folder: Path) -> None:
    hub_lfs.faults.add("POST .*/objects/batch", status=403, times=None)
    with pytest.raises(PublishError) as error:
        publish(hub_lfs, folder)
    assert_says(error, "alice may not write to alice/composite", "is empty", remedy="right to write")


@pytest.mark.parametrize("create_pr", [False, True], ids=["branch", "pull request"])
def test_a_commit_whose_answer_was_lost_is_found_and_not_made_twice(
    hub: HubDouble, folder: Path, create_pr: bool
) -> None:
    hub.add_repo("alice/composite")
    hub.faults.add("POST .*/commit/", cut="response")
    published = publish(hub, folder, create_pr=create_pr)
    revision = "refs/pr/1" if create_pr else "main"
    assert published.commit == hub.commits("alice/composite", revision)[0].oid
    assert published.pr_url == (f"{hub.endpoint}/alice/composite/discussions/1" if create_pr else None)
    assert published.changed
    assert published_files(hub, revision=revision) == FILES
    assert len(hub.commits("alice/composite", revision)) == 2
    assert commits_sent(hub) == 1


@pytest.mark.parametrize("fault", [{"cut": "request"}, {"status": 503}])
def test_a_commit_that_was_not_made_is_not_taken_for_made(
    hub_lfs: HubDouble, folder: Path, fault: dict[str, object]
) -> None:
    hub_lfs.add_repo("alice/composite")
    hub_lfs.faults.add("POST .*/commit/", times=None, **fault)  # type: ignore[arg-type]
    started = time.monotonic()
    with pytest.raises(PublishError) as error:
        publish(hub_lfs, folder)
    assert time.monotonic() - started < 10
    assert_says(error, "alice/composite", remedy="gain")
    assert commits_sent(hub_lfs) == 1
    assert published_files(hub_lfs) == {}


def test_a_pull_request_that_was_not_opened_is_not_taken_for_another_one(hub_lfs: HubDouble, folder: Path) -> None:
    hub_lfs.add_repo("alice/composite")
    publish(hub_lfs, folder, create_pr=True)
    (folder / "README.md").write_text("new")
    hub_lfs.faults.add("POST .*/commit/", cut="request", times=None)
    with pytest.raises(PublishError):
        publish(hub_lfs, folder, create_pr=True)


def test_a_commit_of_unknown_fate_is_told(hub_lfs: HubDouble, folder: Path) -> None:
    hub_lfs.add_repo("alice/composite")
    hub_lfs.faults.add("POST .*/commit/", cut="response")
    hub_lfs.faults.add(r"GET /api/models/alice/composite\?")  # the look before passes
    hub_lfs.faults.add(r"GET /api/models/alice/composite\?", status=503, times=None)
    with pytest.raises(PublishError) as error:
        publish(hub_lfs, folder)
    assert_says(error, "connection broke", "alice/composite", remedy="not committed twice")
    hub_lfs.faults.clear()
    assert not publish(hub_lfs, folder).changed
    assert commits_sent(hub_lfs) == 1


def test_files_that_the_hub_leaves_out_are_told(hub_lfs: HubDouble, folder: Path) -> None:
    hub_lfs.add_repo("alice/composite", {".gitignore": b"*.safetensors\n", "hub_merge.json": b"{}"})
    with pytest.raises(PublishError) as error:
        publish(hub_lfs, folder)
    assert_says(error, "alice/composite was written, but without adapter_model.safetensors", remedy=".gitignore")


def test_a_published_commit_stands_when_the_hub_cannot_be_asked_about_it(hub_lfs: HubDouble, folder: Path) -> None:
    hub_lfs.faults.add("GET /api/models/alice/composite/revision/", status=503, times=None)
    assert publish(hub_lfs, folder).commit == hub_lfs.commits("alice/composite")[0].oid


def test_no_token_reaches_the_storage(hub: HubDouble, folder: Path) -> None:
    publish(hub, folder)
    stored = [request for request in hub.requests if request.headers["host"].startswith("localhost")]
    assert bool(stored) == (not hub.xet)
    assert not any("authorization" in request.headers for request in stored)
    assert not hub.leaked_tokens
