"""The Hub double keeps the promises of the real Hub, as the real ``huggingface_hub`` client sees them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import httpx2
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, HfFileSystem
from huggingface_hub.errors import (
    BadRequestError,
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import http_backoff
from packaging.version import Version
from safetensors.numpy import save

from tests.hub_double import HubDouble

ROOT = Path(__file__).parent.parent

# What `git hash-object` and `sha256sum` say.
HELLO = b"hello\n"
HELLO_OID = "ce013625030ba8dba906f756967f9e9ca394464a"
ABC = b"abc"
ABC_SHA256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
ABC_POINTER_OID = "80d7d501c2b256023dc42e46d958b9ac2ec283ee"
ABC_POINTER_SIZE = 126

WEIGHTS = save({"a.lora_A.weight": np.arange(8, dtype=np.float32).reshape(2, 4)})
ADAPTER_CONFIG = json.dumps({"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "acme/base"})
CARD = "---\nlicense: mit\nbase_model: acme/base\ntags: [lora]\n---\n# An adapter\n"
ADAPTER = {
    "README.md": CARD.encode(),
    "adapter_config.json": ADAPTER_CONFIG.encode(),
    "adapter_model.safetensors": WEIGHTS,
}


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def status(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def lines(hub: HubDouble, pattern: str) -> list[str]:
    log = [f"{request.method} {request.path} {request.status}" for request in hub.requests]
    return [line for line in log if re.search(pattern, line)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name, content in ADAPTER.items():
        (folder / name).write_bytes(content)
    return folder


def run(hub: HubDouble, home: Path, *command: str, user: str | None = "alice", code: int = 0) -> str:
    environment = {**os.environ, **hub.environment(home, user), "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False, cwd=home)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


# --- who is asking -------------------------------------------------------------------------------------------------


def test_whoami_names_the_user_its_organisations_and_the_role_of_its_token(hub_lfs: HubDouble) -> None:
    alice = hub_lfs.api("alice").whoami()
    assert (alice["type"], alice["name"]) == ("user", "alice")
    assert [(org["name"], org["roleInOrg"]) for org in alice["orgs"]] == [("acme", "admin")]
    assert alice["auth"]["accessToken"]["role"] == "write"
    assert hub_lfs.api("reader").whoami()["auth"]["accessToken"]["role"] == "read"
    assert HfApi(hub_lfs.endpoint, token="mock-oauth-token-for-local-dev").whoami()["name"] == "local-dev"


def test_a_wrong_token_is_refused_everywhere(hub_lfs: HubDouble) -> None:
    hub_lfs.add_repo("bob/open", {"a.txt": HELLO})
    stranger = HfApi(hub_lfs.endpoint, token="hf_wrong")
    for call in (stranger.whoami, lambda: stranger.model_info("bob/open"), lambda: list(stranger.list_models())):
        with pytest.raises(HfHubHTTPError) as error:
            call()
        assert status(error) == 401
        assert not isinstance(error.value, RepositoryNotFoundError)


# --- repositories --------------------------------------------------------------------------------------------------


def test_create_repo_starts_with_gitattributes_and_happens_once(hub_lfs: HubDouble) -> None:
    api = hub_lfs.api("alice")
    url = api.create_repo("alice/new")
    assert (str(url), url.repo_id) == (f"{hub_lfs.endpoint}/alice/new", "alice/new")
    assert api.list_repo_files("alice/new") == [".gitattributes"]
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo("alice/new")
    assert status(error) == 409
    assert str(api.create_repo("alice/new", exist_ok=True)) == str(url)
    assert api.create_repo("acme/new", private=True).repo_id == "acme/new"
    assert hub_lfs.repo("acme/new").private


def test_create_repo_needs_a_write_token_of_the_namespace(hub_lfs: HubDouble) -> None:
    for user, repo_id in (("bob", "alice/new"), ("bob", "acme/new"), ("reader", "reader/new")):
        with pytest.raises(HfHubHTTPError) as error:
            hub_lfs.api(user).create_repo(repo_id)
        assert status(error) == 403
    assert list(hub_lfs.api().list_models()) == []


def test_a_deleted_repo_is_gone(hub_lfs: HubDouble) -> None:
    hub_lfs.add_repo("alice/old")
    with pytest.raises(HfHubHTTPError) as error:
        hub_lfs.api("bob").delete_repo("alice/old")
    assert status(error) == 403
    hub_lfs.api("alice").delete_repo("alice/old")
    with pytest.raises(RepositoryNotFoundError):
        hub_lfs.api("alice").model_info("alice/old")


def test_renamed_repos_redirect_with_their_query(hub: HubDouble, tmp_path: Path) -> None:
    hub.add_repo("alice/new", ADAPTER)
    hub.renames.update({"gpt2": "alice/new", "alice/old": "alice/new"})
    for old in ("gpt2", "alice/old"):
        info = hub.api().model_info(old, files_metadata=True)
        assert info.id == "alice/new"
        assert {file.size for file in info.siblings or []} > {len(WEIGHTS)}
        path = hub.api().hf_hub_download(old, "adapter_model.safetensors", cache_dir=tmp_path / "cache")
        assert Path(path).read_bytes() == WEIGHTS


# --- uploading -----------------------------------------------------------------------------------------------------


def test_upload_folder_commits_what_changed_and_only_that(hub: HubDouble, folder: Path) -> None:
    api = hub.api("alice")
    api.create_repo("alice/lora")
    first = api.upload_folder(repo_id="alice/lora", folder_path=folder)
    for name, content in ADAPTER.items():
        assert hub.file("alice/lora", name) == content
    assert api.upload_folder(repo_id="alice/lora", folder_path=folder).oid == first.oid
    assert len(hub.commits("alice/lora")) == 2

    (folder / "adapter_model.safetensors").write_bytes(ABC)
    second = api.upload_folder(repo_id="alice/lora", folder_path=folder, commit_message="Retrain")
    assert [commit.oid for commit in hub.commits("alice/lora")][:2] == [second.oid, first.oid]
    assert hub.file("alice/lora", "adapter_model.safetensors") == ABC
    assert hub.file("alice/lora", "adapter_model.safetensors", revision=first.oid) == WEIGHTS


def test_large_files_take_the_way_of_the_mode(hub: HubDouble) -> None:
    hub.add_repo("alice/lora")
    hub.api("alice").create_commit("alice/lora", [add("w.safetensors", ABC)], commit_message="weights")
    assert len(lines(hub, "PUT /uploads/")) == (0 if hub.xet else 1)
    assert len(lines(hub, "xet-write-token/main 200")) == (1 if hub.xet else 0)


def test_every_file_has_the_identifiers_that_git_gives_it(hub: HubDouble) -> None:
    hub.add_repo("alice/lora")
    api = hub.api("alice")
    api.create_commit("alice/lora", [add("a.txt", HELLO), add("b.bin", ABC)], commit_message="files")
    text, weights = api.get_paths_info("alice/lora", ["a.txt", "b.bin"])
    assert (text.blob_id, text.size, text.lfs, text.xet_hash) == (HELLO_OID, 6, None, None)
    assert (weights.blob_id, weights.size) == (ABC_POINTER_OID, 3)
    assert (weights.lfs.sha256, weights.lfs.size, weights.lfs.pointer_size) == (ABC_SHA256, 3, ABC_POINTER_SIZE)
    assert (weights.xet_hash is not None) == hub.xet
    siblings = {file.rfilename: file for file in api.model_info("alice/lora", files_metadata=True).siblings}
    assert (siblings["a.txt"].blob_id, siblings["a.txt"].size) == (HELLO_OID, 6)
    assert (siblings["b.bin"].blob_id, siblings["b.bin"].lfs.sha256) == (ABC_POINTER_OID, ABC_SHA256)


def test_the_xet_hash_is_the_one_that_hf_xet_computes(hub: HubDouble, folder: Path) -> None:
    import hf_xet

    expected = hf_xet.hash_files([str(folder / "adapter_model.safetensors")])[0].hash if hub.xet else None
    hub.add_repo("alice/seeded", {"adapter_model.safetensors": WEIGHTS})
    hub.add_repo("alice/uploaded")
    hub.api("alice").upload_folder(repo_id="alice/uploaded", folder_path=folder)
    for repo_id in ("alice/seeded", "alice/uploaded"):
        assert hub.api().get_paths_info(repo_id, "adapter_model.safetensors")[0].xet_hash == expected


def test_files_of_21_megabytes_arrive_whole_in_several_parts(hub: HubDouble) -> None:
    content = np.random.default_rng(0).bytes(21_000_000)
    hub.add_repo("alice/big")
    hub.api("alice").create_commit("alice/big", [add("big.bin", content)], commit_message="big")
    sha256 = hashlib.sha256(content).hexdigest()
    assert hub.api().get_paths_info("alice/big", "big.bin")[0].lfs.sha256 == sha256
    assert hashlib.sha256(hub.file("alice/big", "big.bin")).hexdigest() == sha256
    parts = lines(hub, r"PUT /uploads/\w+/\d 200")
    assert len(parts) == (0 if hub.xet else 3)
    assert len(lines(hub, "POST /api/complete_multipart 200")) == (0 if hub.xet else 1)


def test_uploads_from_a_binary_buffer_work_in_both_modes(hub: HubDouble, folder: Path) -> None:
    hub.add_repo("alice/lora")
    with (folder / "adapter_model.safetensors").open("rb") as file:
        operation = CommitOperationAdd("w.safetensors", file)
        hub.api("alice").create_commit("alice/lora", [operation], commit_message="from a buffer")
    assert hub.file("alice/lora", "w.safetensors") == WEIGHTS


def test_large_files_are_told_by_suffix_by_size_and_by_content(hub: HubDouble) -> None:
    hub.add_repo("alice/files")
    contents = {"a.txt": HELLO, "b.safetensors": ABC, "c.txt": b"a\0b", "d.txt": b"x" * (10 * 1024 * 1024 + 1)}
    operations = [add(path, content) for path, content in contents.items()]
    hub.api("alice").create_commit("alice/files", operations, commit_message="files")
    large = {file.path for file in hub.api().get_paths_info("alice/files", list(contents)) if file.lfs}
    assert large == {"b.safetensors", "c.txt", "d.txt"}


def test_gitignored_files_stay_home(hub: HubDouble, folder: Path) -> None:
    hub.add_repo("alice/files", {".gitignore": b"*.log\n!keep.log\nlogs/\n/top.txt\n"})
    paths = ["a.log", "keep.log", "logs/x.txt", "deep/a.log", "top.txt", "deep/top.txt"]
    api = hub.api("alice")
    api.create_commit("alice/files", [add(path, HELLO) for path in paths], commit_message="files")
    assert set(api.list_repo_files("alice/files")) & set(paths) == {"keep.log", "deep/top.txt"}
    (folder / ".gitignore").write_text("*.json\n")
    api.upload_folder(repo_id="alice/files", folder_path=folder)
    assert "adapter_config.json" not in api.list_repo_files("alice/files")


def test_a_stale_parent_commit_is_refused(hub: HubDouble) -> None:
    head = hub.add_repo("alice/lora", ADAPTER)
    api = hub.api("alice")
    commit = api.create_commit("alice/lora", [add("a.txt", HELLO)], commit_message="one", parent_commit=head)
    with pytest.raises(HfHubHTTPError) as error:
        api.create_commit("alice/lora", [add("b.txt", HELLO)], commit_message="two", parent_commit=head)
    assert status(error) == 412
    assert hub.commits("alice/lora")[0].oid == commit.oid
    api.create_commit("alice/lora", [add("b.txt", HELLO)], commit_message="two", parent_commit=commit.oid[:7])
    assert hub.file("alice/lora", "b.txt") == HELLO


def test_files_and_folders_are_deleted_and_a_missing_one_is_an_error(hub_lfs: HubDouble) -> None:
    hub_lfs.add_repo("alice/files", {"a.txt": HELLO, "d/b.txt": HELLO, "d/e/c.txt": HELLO, "dd.txt": HELLO})
    api = hub_lfs.api("alice")
    operations = [CommitOperationDelete("a.txt"), CommitOperationDelete("d/")]
    api.create_commit("alice/files", operations, commit_message="clean")
    assert api.list_repo_files("alice/files") == [".gitattributes", "dd.txt"]
    with pytest.raises(EntryNotFoundError):
        api.create_commit("alice/files", [CommitOperationDelete("a.txt")], commit_message="again")


def test_a_commit_cannot_point_to_an_object_that_was_never_uploaded(hub: HubDouble) -> None:
    hub.add_repo("alice/lora")
    header = {"key": "header", "value": {"summary": "pointer", "description": ""}}
    pointer = {"key": "lfsFile", "value": {"path": "w.bin", "algo": "sha256", "oid": ABC_SHA256, "size": 3}}
    answer = httpx2.post(
        f"{hub.endpoint}/api/models/alice/lora/commit/main",
        content="\n".join(json.dumps(line) for line in (header, pointer)),
        headers={"Authorization": f"Bearer {hub.token('alice')}", "Content-Type": "application/x-ndjson"},
    )
    assert answer.status_code == 400
    assert len(hub.commits("alice/lora")) == 1


def test_files_are_copied_within_a_repo_and_across(hub: HubDouble) -> None:
    hub.add_repo("bob/source", {"w.safetensors": WEIGHTS, "a.txt": HELLO})
    hub.add_repo("alice/target", {"old.safetensors": ABC})
    api = hub.api("alice")
    operations = [
        CommitOperationCopy("old.safetensors", "new.safetensors"),
        CommitOperationCopy("a.txt", "b.txt", src_repo_id="bob/source", src_repo_type="model"),
    ]
    if hub.xet:  # the client refuses to copy large files without a Xet hash from another repository
        from_bob = {"src_repo_id": "bob/source", "src_repo_type": "model"}
        operations.append(CommitOperationCopy("w.safetensors", "w.safetensors", **from_bob))
    api.create_commit("alice/target", operations, commit_message="copy")
    assert hub.file("alice/target", "new.safetensors") == ABC
    assert hub.file("alice/target", "b.txt") == HELLO
    assert not hub.xet or hub.file("alice/target", "w.safetensors") == WEIGHTS


# --- describing ----------------------------------------------------------------------------------------------------


def test_model_info_tells_what_card_and_configs_say(hub_lfs: HubDouble) -> None:
    card = dedent(
        """\
        ---
        license: apache-2.0
        language: [en, de]
        datasets: [acme/data]
        base_model: acme/base
        pipeline_tag: text-generation
        tags: [lora, merge]
        ---
        See [the paper](https://arxiv.org/abs/2508.11985).
        """
    )
    head = hub_lfs.add_repo("alice/lora", {**ADAPTER, "README.md": card.encode()}, downloads=7, likes=2)
    info = hub_lfs.api().model_info("alice/lora")
    assert (info.id, info.author, info.sha, info.private, info.gated) == ("alice/lora", "alice", head, False, False)
    assert (info.downloads, info.likes, info.library_name, info.pipeline_tag) == (7, 2, "peft", "text-generation")
    assert set(info.tags or []) == {
        *("peft", "safetensors", "text-generation", "lora", "merge", "en", "de", "dataset:acme/data"),
        *(
            "arxiv:2508.11985",
            "base_model:acme/base",
            "base_model:adapter:acme/base",
            "license:apache-2.0",
            "region:us",
        ),
    }
    assert info.config == {"peft": {"base_model_name_or_path": "acme/base", "task_type": "CAUSAL_LM"}}
    assert info.card_data is not None
    assert info.card_data.language == ["en", "de"]
    expanded = hub_lfs.api().model_info("alice/lora", expand=["sha", "baseModels"])
    assert expanded.base_models == {"relation": "adapter", "models": [{"_id": "acme/base", "id": "acme/base"}]}
    assert (expanded.sha, expanded.tags) == (head, None)


@pytest.mark.parametrize(
    ("card", "tags"),
    [
        (
            "base_model: [a/b, c/d]",
            {"base_model:a/b", "base_model:merge:a/b", "base_model:c/d", "base_model:merge:c/d"},
        ),
        ("base_model: a/b", {"base_model:a/b", "base_model:finetune:a/b"}),
        ("base_model: a/b\nbase_model_relation: quantized", {"base_model:a/b", "base_model:quantized:a/b"}),
    ],
)
def test_the_relation_to_the_base_model_is_inferred_or_set(hub_lfs: HubDouble, card: str, tags: set[str]) -> None:
    config = json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 1})
    hub_lfs.add_repo("alice/model", {"README.md": f"---\n{card}\n---\n".encode(), "config.json": config.encode()})
    info = hub_lfs.api().model_info("alice/model")
    assert {tag for tag in info.tags or [] if tag.startswith("base_model:")} == tags
    assert info.library_name == "transformers"
    assert info.config == {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}


def test_security_verdicts_show_in_info_tree_and_paths(hub_lfs: HubDouble) -> None:
    files = {"good.safetensors": WEIGHTS, "evil.bin": ABC}
    hub_lfs.add_repo("alice/lora", files, security={"evil.bin": "unsafe"})
    api = hub_lfs.api()
    issues = [{"path": "evil.bin", "level": "unsafe"}]
    report = api.model_info("alice/lora", securityStatus=True).security_repo_status
    assert report == {"scansDone": True, "filesWithIssues": issues}
    assert api.model_info("alice/lora").security_repo_status is None
    evil, good = api.get_paths_info("alice/lora", ["evil.bin", "good.safetensors"], expand=True)
    assert (evil.security.safe, evil.security.status) == (False, "unsafe")
    assert (good.security.safe, good.security.status) == (True, "safe")
    hub_lfs.repo("alice/lora").scans_done = False
    assert api.get_paths_info("alice/lora", "evil.bin", expand=True)[0].security is None


def test_revisions_resolve_to_commits(hub: HubDouble) -> None:
    head = hub.add_repo("alice/lora", ADAPTER)
    initial = hub.commits("alice/lora")[1].oid
    api = hub.api("alice")
    assert api.resolve_revision("alice/lora", revision="main").resolved == head
    api.create_tag("alice/lora", tag="v0", revision=initial)
    assert api.resolve_revision("alice/lora", revision="v0").resolved == initial
    assert api.model_info("alice/lora", revision=initial).sha == initial
    assert api.model_info("alice/lora", revision="HEAD").sha == head
    with pytest.raises(RevisionNotFoundError):
        api.resolve_revision("alice/lora", revision="nowhere")


def test_the_tree_lists_files_and_folders_over_several_pages(hub_lfs: HubDouble) -> None:
    files = {f"{name}.txt": HELLO for name in "abcdefg"} | {"sub/x.txt": HELLO, "sub/deep/y.txt": HELLO}
    hub_lfs.add_repo("alice/files", files)
    head = hub_lfs.push("alice/files", {"a.txt": ABC}, title="Change a")
    api = hub_lfs.api()
    top = list(api.list_repo_tree("alice/files"))
    assert [entry.path for entry in top] == [".gitattributes", *(f"{name}.txt" for name in "abcdefg"), "sub"]
    assert len(lines(hub_lfs, "GET /api/models/alice/files/tree/main 200")) == 3
    assert [entry.path for entry in api.list_repo_tree("alice/files", "sub")] == ["sub/deep", "sub/x.txt"]
    assert len(list(api.list_repo_tree("alice/files", recursive=True))) == 12
    changed, unchanged = list(api.list_repo_tree("alice/files", expand=True))[1:3]
    assert (changed.last_commit.oid, changed.last_commit.title) == (head, "Change a")
    assert unchanged.last_commit.title == "Upload files"
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("alice/files", "nowhere"))


def test_paths_info_leaves_out_what_is_missing(hub_lfs: HubDouble) -> None:
    hub_lfs.add_repo("alice/files", {"sub/a.txt": HELLO})
    found = hub_lfs.api().get_paths_info("alice/files", ["sub/a.txt", "missing.txt", "sub"])
    assert [entry.path for entry in found] == ["sub/a.txt", "sub"]
    url = f"{hub_lfs.endpoint}/api/models/alice/files/paths-info/main"
    as_json = httpx2.post(url, json={"paths": ["sub/a.txt", "missing.txt"], "expand": False}).json()
    assert [entry["oid"] for entry in as_json] == [HELLO_OID]


def test_list_models_filters_and_pages(hub_lfs: HubDouble) -> None:
    for index in range(8):
        hub_lfs.add_repo(f"alice/lora-{index}", ADAPTER, downloads=index)
    hub_lfs.add_repo("alice/other", {"README.md": b"---\ntags: [lora]\n---\n"}, downloads=99)
    hub_lfs.add_repo("bob/hidden", ADAPTER, private=True, downloads=98)
    api = hub_lfs.api()
    wanted = ["base_model:adapter:acme/base", "lora"]
    listed = list(api.list_models(filter=wanted, sort="downloads", limit=5))
    assert [model.id for model in listed] == [f"alice/lora-{index}" for index in (7, 6, 5, 4, 3)]
    assert len(lines(hub_lfs, "GET /api/models 200")) == 2
    assert (listed[0].sha, listed[0].config, listed[0].card_data) == (None, None, None)
    assert {model.id for model in api.list_models(filter="lora")} == {
        *(f"alice/lora-{index}" for index in range(8)),
        "alice/other",
    }
    assert "bob/hidden" in {model.id for model in hub_lfs.api("bob").list_models()}
    assert [model.id for model in hub_lfs.api("bob").list_models(author="bob")] == ["bob/hidden"]
    assert [model.id for model in api.list_models(search="LORA-3")] == ["alice/lora-3"]
    assert list(api.list_models(pipeline_tag="text-generation")) == []


def test_list_models_gives_the_fields_that_were_asked_for(hub_lfs: HubDouble) -> None:
    head = hub_lfs.add_repo("alice/lora", ADAPTER, gated="manual")
    api = hub_lfs.api()
    peft = {"peft": {"base_model_name_or_path": "acme/base", "task_type": "CAUSAL_LM"}}
    (full,) = api.list_models(full=True, cardData=True, fetch_config=True, gated=True)
    assert (full.sha, full.gated, full.config, full.card_data.license) == (head, "manual", peft, "mit")
    assert "adapter_config.json" in {file.rfilename for file in full.siblings}
    (expanded,) = api.list_models(expand=["sha", "config"])
    assert (expanded.sha, expanded.config, expanded.tags) == (head, peft, None)
    assert list(api.list_models(gated=False)) == []


def test_lora_repos_have_no_safetensors_metadata_but_their_files_do(hub: HubDouble) -> None:
    hub.add_repo("alice/lora", ADAPTER)
    api = hub.api()
    with pytest.raises(NotASafetensorsRepoError):
        api.get_safetensors_metadata("alice/lora")
    header = api.parse_safetensors_file_metadata("alice/lora", "adapter_model.safetensors")
    assert (header.tensors["a.lora_A.weight"].dtype, header.tensors["a.lora_A.weight"].shape) == ("F32", [2, 4])
    assert [request.status for request in hub.requests if "range" in request.headers][-1] == 206


def test_sharded_models_have_their_headers_read_by_the_server(hub: HubDouble) -> None:
    index = {"metadata": {"total_size": 32}, "weight_map": {"a.lora_A.weight": "model-1.safetensors"}}
    files = {"model.safetensors.index.json": json.dumps(index).encode(), "model-1.safetensors": WEIGHTS}
    hub.add_repo("alice/model", files)
    metadata = hub.api().get_safetensors_metadata("alice/model")
    assert metadata.weight_map == {"a.lora_A.weight": "model-1.safetensors"}
    assert metadata.parameter_count == {"F32": 8}


# --- downloading ---------------------------------------------------------------------------------------------------


def test_files_download_at_branches_tags_and_commits(hub: HubDouble, tmp_path: Path) -> None:
    old = hub.add_repo("alice/lora", ADAPTER)
    hub.push("alice/lora", {"adapter_model.safetensors": ABC, "adapter_config.json": b"{}"})
    api = hub.api()
    for revision, weights, config in ((old, WEIGHTS, ADAPTER_CONFIG.encode()), ("main", ABC, b"{}")):
        for name, content in (("adapter_model.safetensors", weights), ("adapter_config.json", config)):
            path = api.hf_hub_download("alice/lora", name, revision=revision, cache_dir=tmp_path)
            assert Path(path).read_bytes() == content
            assert hub.commits("alice/lora", revision)[0].oid in path
    assert len(lines(hub, "xet-read-token")) == (2 if hub.xet else 0)
    assert len(lines(hub, "GET /objects/")) == (0 if hub.xet else 2)
    assert api.file_exists("alice/lora", "README.md")
    assert not api.file_exists("alice/lora", "missing.txt")


def test_what_does_not_exist_is_named_by_its_error(hub: HubDouble, tmp_path: Path) -> None:
    head = hub.add_repo("alice/lora", ADAPTER)
    for api in (hub.api(), hub.api("bob")):
        with pytest.raises(EntryNotFoundError) as entry:
            api.hf_hub_download("alice/lora", "missing.txt", cache_dir=tmp_path)
        assert entry.value.response.headers["X-Repo-Commit"] == head
        with pytest.raises(RevisionNotFoundError):
            api.hf_hub_download("alice/lora", "README.md", revision="nowhere", cache_dir=tmp_path)
        with pytest.raises(RepositoryNotFoundError):
            api.hf_hub_download("alice/missing", "README.md", cache_dir=tmp_path)
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("missing")


def test_snapshots_hold_the_files_that_match(hub: HubDouble, tmp_path: Path) -> None:
    head = hub.add_repo("alice/lora", {**ADAPTER, "optimizer.pt": b"\0" * 100})
    api = hub.api()
    patterns = ["adapter_*"]
    plan = api.snapshot_download("alice/lora", allow_patterns=patterns, cache_dir=tmp_path, dry_run=True)
    sizes = {name: len(ADAPTER[name]) for name in ("adapter_config.json", "adapter_model.safetensors")}
    assert {file.filename: file.file_size for file in plan} == sizes
    snapshot = Path(api.snapshot_download("alice/lora", allow_patterns=patterns, cache_dir=tmp_path))
    assert snapshot.name == head
    assert {path.name: path.read_bytes() for path in snapshot.iterdir()} == {name: ADAPTER[name] for name in sizes}


def test_the_file_system_reads_byte_ranges(hub: HubDouble) -> None:
    hub.add_repo("alice/lora", ADAPTER)
    files = HfFileSystem(endpoint=hub.endpoint, token=False)
    assert files.cat_file("alice/lora/adapter_model.safetensors", start=8, end=40) == WEIGHTS[8:40]
    assert files.cat_file("alice/lora/adapter_config.json", start=2, end=5) == ADAPTER_CONFIG.encode()[2:5]


@pytest.mark.parametrize(
    ("wanted", "code", "content", "content_range"),
    [
        ("bytes=0-1", 206, b"he", "bytes 0-1/6"),
        ("bytes=4-99", 206, b"o\n", "bytes 4-5/6"),
        ("bytes=2-", 206, b"llo\n", "bytes 2-5/6"),
        ("bytes=-2", 206, b"o\n", "bytes 4-5/6"),
        ("bytes=6-", 416, None, "bytes */6"),
        ("chars=1-2", 200, HELLO, None),
    ],
)
def test_ranges_are_served_like_by_any_good_server(
    hub_lfs: HubDouble, wanted: str, code: int, content: bytes | None, content_range: str | None
) -> None:
    hub_lfs.add_repo("alice/files", {"a.txt": HELLO, "a.bin": HELLO})
    for name in ("a.txt", "a.bin"):
        url = f"{hub_lfs.endpoint}/alice/files/resolve/main/{name}"
        headers = {"Range": wanted, "Accept-Encoding": "gzip"}
        answer = httpx2.get(url, headers=headers, follow_redirects=True)
        assert (answer.status_code, answer.headers.get("content-range")) == (code, content_range)
        assert content is None or answer.content == content
        assert "content-encoding" not in answer.headers


def test_regular_files_redirect_within_the_hub_and_large_ones_to_storage(hub: HubDouble) -> None:
    head = hub.add_repo("alice/files", {"a b.txt": HELLO, "w.bin": ABC})
    regular = httpx2.head(f"{hub.endpoint}/alice/files/resolve/main/a%20b.txt")
    assert regular.status_code == 307
    assert regular.headers["location"] == f"/api/resolve-cache/models/alice/files/{head}/a%20b.txt"
    cached = httpx2.head(hub.endpoint + regular.headers["location"])
    assert (cached.status_code, cached.headers["etag"]) == (200, f'"{HELLO_OID}"')
    assert (cached.headers["x-repo-commit"], cached.headers["content-length"]) == (head, "6")
    large = httpx2.head(f"{hub.endpoint}/alice/files/resolve/main/w.bin")
    assert large.status_code == 302
    assert large.headers["location"].startswith(hub.endpoint.replace("127.0.0.1", "localhost"))
    assert (large.headers["x-linked-etag"], large.headers["x-linked-size"]) == (f'"{ABC_SHA256}"', "3")
    assert ("x-xet-hash" in large.headers) == hub.xet


def test_raw_files_are_their_git_blobs(hub: HubDouble) -> None:
    hub.add_repo("alice/files", {"a.txt": HELLO, "w.bin": ABC})
    for name, oid in (("a.txt", HELLO_OID), ("w.bin", ABC_POINTER_OID)):
        blob = httpx2.get(f"{hub.endpoint}/alice/files/raw/main/{name}").content
        assert hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest() == oid


# --- two origins ---------------------------------------------------------------------------------------------------


def test_tokens_do_not_reach_storage(hub: HubDouble, tmp_path: Path) -> None:
    hub.add_repo("alice/secret", ADAPTER, private=True)
    api = hub.api("alice")
    path = api.hf_hub_download("alice/secret", "adapter_model.safetensors", cache_dir=tmp_path)
    assert Path(path).read_bytes() == WEIGHTS
    header = api.parse_safetensors_file_metadata("alice/secret", "adapter_model.safetensors")
    assert set(header.tensors) == {"a.lora_A.weight"}
    assert lines(hub, "GET /objects/")
    assert hub.leaked_tokens == []


def test_a_token_that_does_reach_storage_is_refused_and_recorded(hub_lfs: HubDouble) -> None:
    hub_lfs.add_repo("alice/lora", {"w.bin": ABC})
    storage = hub_lfs.endpoint.replace("127.0.0.1", "localhost")
    url = f"{storage}/objects/{ABC_SHA256}"
    assert httpx2.get(url).content == ABC
    assert httpx2.get(url, headers={"Authorization": f"Bearer {hub_lfs.token('alice')}"}).status_code == 400
    assert [request.path for request in hub_lfs.leaked_tokens] == [f"/objects/{ABC_SHA256}"]
    hub_lfs.leaked_tokens.clear()


def test_each_origin_serves_its_own_paths_and_no_other_host_is_served(hub_lfs: HubDouble) -> None:
    hub_lfs.add_repo("alice/lora", {"w.bin": ABC})
    storage = hub_lfs.endpoint.replace("127.0.0.1", "localhost")
    assert httpx2.get(f"{storage}/api/models/alice/lora").status_code == 404
    assert httpx2.get(f"{hub_lfs.endpoint}/objects/{ABC_SHA256}").status_code == 404
    assert httpx2.get(f"{hub_lfs.endpoint}/api/models", headers={"Host": "huggingface.co"}).status_code == 421


# --- cards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "front_matter",
    ["license: not-a-license", "tags: {a: b}", "base_model: [1]", "- a list", "a: [", "base_model_relation: child"],
)
def test_a_bad_card_is_refused_before_and_at_the_commit(hub_lfs: HubDouble, front_matter: str) -> None:
    hub_lfs.add_repo("alice/lora")
    card = f"---\n{front_matter}\n---\n# Card\n".encode()
    with pytest.raises(ValueError, match="Invalid metadata in README"):
        hub_lfs.api("alice").create_commit("alice/lora", [add("README.md", card)], commit_message="card")
    hub_lfs.faults.add("POST /api/validate-yaml", status=200, body=b"{}")
    with pytest.raises(BadRequestError):
        hub_lfs.api("alice").create_commit("alice/lora", [add("README.md", card)], commit_message="card")
    assert len(hub_lfs.commits("alice/lora")) == 1


@pytest.mark.skipif(
    Version(huggingface_hub.__version__) < Version("2.2"),
    reason="huggingface_hub before 2.2 asks huggingface.co, whatever the endpoint is, whether a card is valid",
)
def test_cards_are_loaded_validated_updated_and_proposed_by_others(hub: HubDouble, tmp_path: Path) -> None:
    hub.add_repo("alice/lora", ADAPTER)
    script = dedent(
        """
        from huggingface_hub import ModelCard, metadata_update
        card = ModelCard.load("alice/lora")
        assert card.data.license == "mit"
        card.validate()
        try:
            ModelCard("---\\nlicense: not-a-license\\n---\\n").validate()
        except ValueError as error:
            assert "license" in str(error)
        else:
            raise SystemExit("a bad card was accepted")
        metadata_update("alice/lora", {"pipeline_tag": "text-generation"})
        card.text = "# Improved"
        print(card.push_to_hub("alice/lora", token="hf_bob", create_pr=True))
        """
    )
    url = run(hub, tmp_path, sys.executable, "-c", script)
    assert "pipeline_tag: text-generation" in hub.file("alice/lora", "README.md").decode()
    assert "# Improved" in hub.file("alice/lora", "README.md", revision="refs/pr/1").decode()
    assert hub.commits("alice/lora", "refs/pr/1")[0].oid in url


# --- pull requests -------------------------------------------------------------------------------------------------


def test_a_pull_request_of_another_user_is_shown_and_merged(hub: HubDouble) -> None:
    head = hub.add_repo("alice/lora", ADAPTER)
    operations = [add("w.safetensors", ABC), add("adapter_config.json", b"{}\n")]
    commit = hub.api("bob").create_commit("alice/lora", operations, commit_message="Improve", create_pr=True)
    assert (commit.pr_num, commit.pr_revision) == (1, "refs/pr/1")
    assert commit.pr_url == f"{hub.endpoint}/alice/lora/discussions/1"
    assert hub.commits("alice/lora")[0].oid == head
    hub.push("alice/lora", {"meanwhile.txt": HELLO})

    details = hub.api("bob").get_discussion_details("alice/lora", 1)
    assert (details.title, details.author, details.status, details.is_pull_request) == ("Improve", "bob", "open", True)
    assert (details.target_branch, details.conflicting_files) == ("refs/heads/main", [])
    assert [event.type for event in details.events] == ["comment", "commit"]
    assert f"+oid sha256:{ABC_SHA256}" in details.diff
    with pytest.raises(HfHubHTTPError) as error:
        hub.api("bob").merge_pull_request("alice/lora", 1)
    assert status(error) == 403
    hub.api("alice").merge_pull_request("alice/lora", 1)
    assert hub.file("alice/lora", "w.safetensors") == ABC
    assert hub.file("alice/lora", "meanwhile.txt") == HELLO
    merged = hub.api().get_discussion_details("alice/lora", 1)
    assert (merged.status, merged.merge_commit_oid) == ("merged", hub.commits("alice/lora")[0].oid)


def test_a_pull_request_that_conflicts_cannot_be_merged(hub_lfs: HubDouble) -> None:
    hub_lfs.add_repo("alice/lora", {"a.txt": HELLO})
    hub_lfs.api("bob").create_commit("alice/lora", [add("a.txt", b"bob")], commit_message="Mine", create_pr=True)
    hub_lfs.push("alice/lora", {"a.txt": b"alice"})
    assert hub_lfs.api().get_discussion_details("alice/lora", 1).conflicting_files == ["a.txt"]
    with pytest.raises(HfHubHTTPError) as error:
        hub_lfs.api("alice").merge_pull_request("alice/lora", 1)
    assert status(error) == 409
    assert hub_lfs.file("alice/lora", "a.txt") == b"alice"


def test_a_folder_is_uploaded_as_a_pull_request(hub: HubDouble, folder: Path, tmp_path: Path) -> None:
    hub.add_repo("alice/lora")
    commit = hub.api("bob").upload_folder(repo_id="alice/lora", folder_path=folder, create_pr=True)
    assert commit.pr_revision == "refs/pr/1"
    assert hub.file("alice/lora", "adapter_model.safetensors", revision="refs/pr/1") == WEIGHTS
    assert len(hub.commits("alice/lora")) == 1
    api = hub.api("bob")
    path = api.hf_hub_download("alice/lora", "README.md", revision="refs/pr/1", cache_dir=tmp_path / "cache")
    assert Path(path).read_text() == CARD
    follow_up = [add("more.txt", HELLO)]
    api.create_commit("alice/lora", follow_up, commit_message="More", revision="refs/pr/1")
    assert httpx2.get(f"{hub.endpoint}/api/models/alice/lora/revision/refs/pr/1").json()["sha"] == (
        hub.commits("alice/lora", "refs/pr/1")[0].oid
    )
    with pytest.raises(HfHubHTTPError) as error:
        hub.api("local-dev").create_commit(
            "alice/lora", [add("x.txt", HELLO)], commit_message="Not mine", revision="refs/pr/1"
        )
    assert status(error) == 403


def test_discussions_are_listed_commented_renamed_and_closed(hub_lfs: HubDouble) -> None:
    hub_lfs.add_repo("alice/lora")
    bob = hub_lfs.api("bob")
    for number in range(4):
        bob.create_discussion("alice/lora", f"Question {number}", description="Why?")
    bob.create_pull_request("alice/lora", "A draft")
    assert bob.comment_discussion("alice/lora", 1, "Because.").content == "Because."
    assert bob.rename_discussion("alice/lora", 2, "A better question").new_title == "A better question"
    hub_lfs.api("alice").change_discussion_status("alice/lora", 3, "closed")
    listed = {item.num: item for item in bob.get_repo_discussions("alice/lora")}
    assert {number: item.status for number, item in listed.items()} == {
        **{1: "open", 2: "open", 4: "open", 3: "closed"},
        5: "draft",
    }
    assert listed[2].title == "A better question"
    drafts = bob.get_repo_discussions("alice/lora", discussion_type="pull_request")
    assert [item.num for item in drafts] == [5]
    closed = bob.get_repo_discussions("alice/lora", discussion_status="closed")
    assert [item.num for item in closed] == [3]
    with pytest.raises(HfHubHTTPError) as error:
        hub_lfs.api("local-dev").change_discussion_status("alice/lora", 1, "closed")
    assert status(error) == 403


# --- refs ----------------------------------------------------------------------------------------------------------


def test_branches_and_tags_are_made_used_and_deleted(hub_lfs: HubDouble) -> None:
    head = hub_lfs.add_repo("alice/lora", ADAPTER)
    initial = hub_lfs.commits("alice/lora")[1].oid
    api = hub_lfs.api("alice")
    api.create_branch("alice/lora", branch="dev/x", revision=initial)
    api.create_tag("alice/lora", tag="v1")
    on_branch = api.create_commit("alice/lora", [add("a.txt", HELLO)], commit_message="dev", revision="dev/x")
    api.create_commit("alice/lora", [add("b.txt", HELLO)], commit_message="pr", create_pr=True)
    refs = api.list_repo_refs("alice/lora", include_pull_requests=True)
    assert {branch.name: branch.target_commit for branch in refs.branches} == {"main": head, "dev/x": on_branch.oid}
    assert [(tag.name, tag.ref, tag.target_commit) for tag in refs.tags] == [("v1", "refs/tags/v1", head)]
    assert [request.ref for request in refs.pull_requests or []] == ["refs/pr/1"]
    for again in (
        lambda: api.create_branch("alice/lora", branch="dev/x"),
        lambda: api.create_tag("alice/lora", tag="v1"),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            again()
        assert status(error) == 409
    api.create_branch("alice/lora", branch="dev/x", exist_ok=True)
    api.delete_branch("alice/lora", branch="dev/x")
    api.delete_tag("alice/lora", tag="v1")
    refs = api.list_repo_refs("alice/lora")
    assert ([branch.name for branch in refs.branches], refs.tags) == (["main"], [])


def test_commits_are_listed_newest_first_over_several_pages(hub_lfs: HubDouble) -> None:
    hub_lfs.add_repo("alice/lora")
    api = hub_lfs.api("alice")
    for number in range(5):
        operation = add("a.txt", str(number).encode())
        api.create_commit("alice/lora", [operation], commit_message=f"c{number}", commit_description=f"d{number}")
    listed = api.list_repo_commits("alice/lora")
    assert [commit.title for commit in listed] == ["c4", "c3", "c2", "c1", "c0", "initial commit"]
    assert (listed[0].message, listed[0].authors) == ("d4", ["alice"])
    assert len(lines(hub_lfs, "commits/main 200")) == 2


# --- access --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gated", ["auto", "manual"])
def test_gated_repos_show_their_metadata_and_keep_their_content(hub: HubDouble, gated: str, tmp_path: Path) -> None:
    hub.add_repo("alice/gated", ADAPTER, gated=gated)
    for user, code in ((None, 401), ("bob", 403)):
        api = hub.api(user)
        assert api.model_info("alice/gated").gated == gated
        assert "adapter_config.json" in api.list_repo_files("alice/gated")
        for call in (
            lambda api=api: api.auth_check("alice/gated"),
            lambda api=api: api.hf_hub_download("alice/gated", "adapter_config.json", cache_dir=tmp_path),
        ):
            with pytest.raises(GatedRepoError) as error:
                call()
            assert status(error) == code
    hub.grant("alice/gated", "bob")
    hub.api("bob").auth_check("alice/gated")
    for api in (hub.api("alice"), hub.api("bob")):
        path = api.hf_hub_download("alice/gated", "adapter_model.safetensors", cache_dir=tmp_path)
        assert Path(path).read_bytes() == WEIGHTS


def test_private_repos_do_not_exist_for_others(hub: HubDouble, tmp_path: Path) -> None:
    hub.add_repo("acme/private", ADAPTER, private=True)
    for user, code in ((None, 401), ("bob", 404)):
        api = hub.api(user)
        for call in (
            lambda api=api: api.model_info("acme/private"),
            lambda api=api: api.auth_check("acme/private"),
            lambda api=api: api.list_repo_files("acme/private"),
            lambda api=api: api.hf_hub_download("acme/private", "README.md", cache_dir=tmp_path),
        ):
            with pytest.raises(RepositoryNotFoundError) as error:
                call()
            assert status(error) == code
            assert not isinstance(error.value, GatedRepoError)
    assert hub.api("alice").model_info("acme/private").private
    hub.grant("acme/private", "bob")
    assert hub.api("bob").model_info("acme/private").private


def test_disabled_repos_keep_their_content(hub_lfs: HubDouble, tmp_path: Path) -> None:
    hub_lfs.add_repo("bob/disabled", ADAPTER, disabled=True)
    assert hub_lfs.api().model_info("bob/disabled").disabled
    with pytest.raises(LocalEntryNotFoundError) as error:
        hub_lfs.api("bob").hf_hub_download("bob/disabled", "adapter_config.json", cache_dir=tmp_path)
    assert isinstance(error.value.__cause__, DisabledRepoError)


def test_only_writers_of_the_namespace_write(hub: HubDouble, folder: Path) -> None:
    hub.add_repo("alice/lora", ADAPTER)
    hub.add_repo("reader/lora", ADAPTER)
    for user, repo_id in (("bob", "alice/lora"), ("reader", "reader/lora"), (None, "alice/lora")):
        api = hub.api(user)
        for call in (
            lambda api=api, repo_id=repo_id: api.create_commit(repo_id, [add("w.bin", ABC)], commit_message="no"),
            lambda api=api, repo_id=repo_id: api.upload_folder(repo_id=repo_id, folder_path=folder),
            lambda api=api, repo_id=repo_id: api.create_tag(repo_id, tag="v1"),
            lambda api=api, repo_id=repo_id: api.auth_check(repo_id, write=True),
            lambda api=api, repo_id=repo_id: api.update_repo_settings(repo_id, private=True),
        ):
            with pytest.raises(HfHubHTTPError) as error:
                call()
            assert status(error) == (403 if user else 401)
        assert len(hub.commits(repo_id)) == 2
    hub.api("alice").auth_check("alice/lora", write=True)
    with pytest.raises(HfHubHTTPError) as error:
        hub.api("reader").create_commit("alice/lora", [add("w.bin", ABC)], commit_message="no", create_pr=True)
    assert status(error) == 403


def test_tokens_and_links_for_uploads_are_for_writers_and_for_pull_requests(hub: HubDouble) -> None:
    hub.add_repo("alice/lora")
    batch = {"operation": "upload", "objects": [{"oid": ABC_SHA256, "size": 3}]}

    def ask(user: str, pull_request: bool) -> int:
        headers = {"Authorization": f"Bearer {hub.token(user)}"}
        if hub.xet:
            revision = "None?create_pr=1" if pull_request else "main"
            url = f"{hub.endpoint}/api/models/alice/lora/xet-write-token/{revision}"
            return httpx2.get(url, headers=headers).status_code
        target = {} if pull_request else {"ref": {"name": "main"}}
        url = f"{hub.endpoint}/alice/lora.git/info/lfs/objects/batch"
        return httpx2.post(url, headers=headers, json={**batch, **target}).status_code

    assert [ask(user, pull_request=False) for user in ("alice", "bob", "reader")] == [200, 403, 403]
    assert [ask(user, pull_request=True) for user in ("alice", "bob", "reader")] == [200, 200, 403]


def test_datasets_and_spaces_are_repos_too(hub: HubDouble, tmp_path: Path) -> None:
    api = hub.api("alice")
    for repo_type, options in (("dataset", {}), ("space", {"space_sdk": "gradio"})):
        url = api.create_repo("alice/thing", repo_type=repo_type, **options)
        assert str(url) == f"{hub.endpoint}/{repo_type}s/alice/thing"
        operations = [add("w.bin", ABC), add("a.txt", HELLO)]
        api.create_commit("alice/thing", operations, commit_message="files", repo_type=repo_type)
        for name, content in (("w.bin", ABC), ("a.txt", HELLO)):
            path = hub.api().hf_hub_download("alice/thing", name, repo_type=repo_type, cache_dir=tmp_path)
            assert Path(path).read_bytes() == content
    assert [item.id for item in api.list_datasets()] == [item.id for item in api.list_spaces()] == ["alice/thing"]
    assert list(api.list_models()) == []


def test_settings_make_a_repo_private_or_gated(hub_lfs: HubDouble) -> None:
    hub_lfs.add_repo("alice/lora")
    hub_lfs.api("alice").update_repo_settings("alice/lora", private=True, gated="auto")
    info = hub_lfs.api("alice").model_info("alice/lora")
    assert (info.private, info.gated) == (True, "auto")


# --- collections ---------------------------------------------------------------------------------------------------


def test_collections_hold_items_once(hub_lfs: HubDouble) -> None:
    hub_lfs.add_repo("bob/lora")
    api = hub_lfs.api("alice")
    collection = api.create_collection("My Adapters!", description="All of them")
    assert re.fullmatch(r"alice/my-adapters-[0-9a-f]{24}", collection.slug)
    assert api.create_collection("My Adapters!", exists_ok=True).slug == collection.slug
    api.add_collection_item(collection.slug, "bob/lora", "model", note="a parent")
    with pytest.raises(HfHubHTTPError) as error:
        api.add_collection_item(collection.slug, "bob/lora", "model")
    assert status(error) == 409
    found = hub_lfs.api().get_collection(collection.slug)
    items = [(item.item_id, item.item_type, item.note, item.position) for item in found.items]
    assert items == [("bob/lora", "model", "a parent", 0)]
    assert (found.title, found.description) == ("My Adapters!", "All of them")
    assert [item.slug for item in api.list_collections(item="models/bob/lora")] == [collection.slug]
    with pytest.raises(HfHubHTTPError) as error:
        hub_lfs.api("bob").add_collection_item(collection.slug, "bob/lora", "model", exists_ok=True)
    assert status(error) == 403
    with pytest.raises(HfHubHTTPError) as error:
        api.create_collection("Too long", description="x" * 151)
    assert status(error) == 400


# --- faults --------------------------------------------------------------------------------------------------------


def test_a_503_is_retried_and_not_carried_out(hub_lfs: HubDouble) -> None:
    hub_lfs.add_repo("alice/lora")
    hub_lfs.faults.add("GET /api/models/alice/lora/tree", status=503)
    assert http_backoff("GET", f"{hub_lfs.endpoint}/api/models/alice/lora/tree/main").status_code == 200
    assert [line[-3:] for line in lines(hub_lfs, "/tree/main")] == ["503", "200"]
    hub_lfs.faults.add("POST .*/commit/main", status=503)
    with pytest.raises(HfHubHTTPError):
        hub_lfs.api("alice").create_commit("alice/lora", [add("a.txt", HELLO)], commit_message="once")
    assert len(hub_lfs.commits("alice/lora")) == 1


def test_a_429_names_the_limit_and_the_wait(hub_lfs: HubDouble) -> None:
    hub_lfs.add_repo("alice/lora")
    headers = {"RateLimit": '"api";r=0;t=0', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
    hub_lfs.faults.add("GET /api/models/alice/lora", status=429, headers=headers, times=2)
    with pytest.raises(HfHubHTTPError, match=r"'api' rate limit.\nRetry after 0 seconds \(0/500"):
        hub_lfs.api().model_info("alice/lora")
    assert http_backoff("GET", f"{hub_lfs.endpoint}/api/models/alice/lora/tree/main").status_code == 200
    assert [line[-3:] for line in lines(hub_lfs, "/tree/main")] == ["429", "200"]


def test_a_fault_matches_the_query_and_wears_off(hub_lfs: HubDouble) -> None:
    hub_lfs.add_repo("alice/lora")
    fault = hub_lfs.faults.add(r"GET /api/models/alice/lora\?blobs=true", status=500, times=1)
    api = hub_lfs.api()
    assert api.model_info("alice/lora").id == "alice/lora"
    with pytest.raises(HfHubHTTPError):
        api.model_info("alice/lora", files_metadata=True)
    assert api.model_info("alice/lora", files_metadata=True).id == "alice/lora"
    assert fault.times == 0
    hub_lfs.faults.add("/api/whoami-v2", headers={"X-HF-Warning": "topic; be careful"}, times=None)
    token = {"Authorization": f"Bearer {hub_lfs.token('alice')}"}
    for _ in range(2):
        answer = httpx2.get(f"{hub_lfs.endpoint}/api/whoami-v2", headers=token)
        assert (answer.status_code, answer.headers["x-hf-warning"]) == (200, "topic; be careful")


@pytest.mark.parametrize(("cut", "commits"), [("request", 1), ("response", 2)])
def test_a_cut_connection_loses_the_request_or_only_its_answer(hub_lfs: HubDouble, cut: str, commits: int) -> None:
    hub_lfs.add_repo("alice/lora")
    hub_lfs.faults.add("POST .*/commit/main", cut=cut)  # type: ignore[arg-type]
    with pytest.raises(httpx2.RemoteProtocolError):
        hub_lfs.api("alice").create_commit("alice/lora", [add("a.txt", HELLO)], commit_message="once")
    assert len(hub_lfs.commits("alice/lora")) == commits
    assert hub_lfs.requests[-1].status is None


def test_a_download_cut_in_its_body_is_resumed(hub_lfs: HubDouble, tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(24_000_000)  # the client writes down every 10 MiB it has
    hub_lfs.add_repo("alice/lora", {"w.bin": content})
    hub_lfs.faults.add("GET /objects/", cut="body")
    path = hub_lfs.api().hf_hub_download("alice/lora", "w.bin", cache_dir=tmp_path)
    assert Path(path).read_bytes() == content
    ranges = [request.headers.get("range") for request in hub_lfs.requests if request.path.startswith("/objects/")]
    assert ranges == [None, f"bytes={10 * 1024 * 1024}-"]


@pytest.mark.parametrize("length", [2, 9])
def test_a_body_of_the_wrong_length_is_noticed(hub_lfs: HubDouble, length: int, tmp_path: Path) -> None:
    hub_lfs.add_repo("alice/lora", {"a.txt": HELLO})
    hub_lfs.faults.add("GET /api/resolve-cache/", length=length)
    with pytest.raises(OSError, match="Consistency check failed"):
        hub_lfs.api().hf_hub_download("alice/lora", "a.txt", cache_dir=tmp_path)


def test_a_slow_answer_runs_into_the_clients_timeout(hub_lfs: HubDouble) -> None:
    hub_lfs.add_repo("alice/lora")
    hub_lfs.faults.add("GET /api/models/alice/lora", delay=5)
    with pytest.raises(httpx2.ReadTimeout):
        hub_lfs.api().model_info("alice/lora", timeout=0.1)


# --- running it ----------------------------------------------------------------------------------------------------


def test_it_starts_and_stops_at_once_and_leaves_nothing_behind() -> None:
    start = time.perf_counter()
    for _ in range(5):
        with HubDouble(xet=False) as hub:
            hub.add_repo("alice/lora", ADAPTER)
            hub.api().model_info("alice/lora")
    assert time.perf_counter() - start < 2
    assert not hub.folder.exists()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(hub.endpoint)


def test_two_doubles_do_not_know_each_other(hub_lfs: HubDouble) -> None:
    hub_lfs.add_repo("alice/lora")
    with HubDouble(xet=False) as other:
        assert list(other.api().list_models()) == []


def test_it_cannot_be_reached_but_through_its_loopback_address(hub_lfs: HubDouble) -> None:
    port = httpx2.URL(hub_lfs.endpoint).port
    socket.create_connection(("127.0.0.1", port), timeout=1).close()
    for address in ("127.0.0.2", "::1", socket.gethostname()):
        with pytest.raises(OSError), socket.create_connection((address, port), timeout=1) as connection:
            assert connection.getpeername()[0] == "127.0.0.1"
            raise OSError("the host name is an alias of the loopback address")


def test_agents_and_telemetry_find_what_they_call(hub_lfs: HubDouble) -> None:
    harnesses = httpx2.get(f"{hub_lfs.endpoint}/api/agent-harnesses").json()
    assert set(harnesses) == {"standardEnvVars", "harnesses"}
    assert httpx2.head(f"{hub_lfs.endpoint}/api/telemetry/hub-merge/push").status_code == 200


def test_the_log_keeps_what_was_sent(hub_lfs: HubDouble) -> None:
    hub_lfs.add_repo("alice/lora")
    HfApi(hub_lfs.endpoint, token="hf_alice", library_name="hub-merge").get_paths_info("alice/lora", ["a", "b"])
    sent = hub_lfs.requests[-1]
    assert (sent.method, sent.path, sent.query) == ("POST", "/api/models/alice/lora/paths-info/main", {})
    assert (sent.body, sent.status) == (b"paths=a&paths=b&expand=false", 200)
    assert sent.headers["authorization"] == "Bearer hf_alice"
    assert sent.headers["user-agent"].startswith("hub-merge/")


def test_another_process_uploads_while_this_one_downloads(tmp_path: Path, folder: Path) -> None:
    with HubDouble() as hub:
        hub.add_repo("alice/lora", {"w.bin": ABC})
        script = f"""
            import hf_xet
            from huggingface_hub import HfApi
            api = HfApi()
            cas = api.upload_folder(repo_id="alice/lora", folder_path={str(folder)!r})
            address = {("local://" + str(hub.folder / "cas"))!r}
            with hf_xet.XetSession().new_upload_commit(endpoint=address):
                content = api.parse_safetensors_file_metadata("alice/lora", "adapter_model.safetensors")
            assert list(content.tensors) == ["a.lora_A.weight"]
        """
        run(hub, tmp_path, sys.executable, "-c", dedent(script))
        assert hub.file("alice/lora", "adapter_model.safetensors") == WEIGHTS
        assert not hub.crashes


def test_the_command_serves_the_folders_it_is_given(tmp_path: Path) -> None:
    repo = tmp_path / "seed" / "alice" / "lora"
    (repo / "sub").mkdir(parents=True)
    (repo / "sub" / "w.bin").write_bytes(ABC)
    command = [sys.executable, "-m", "tests.hub_double", "--port", "0", "--seed-folder", str(tmp_path / "seed")]
    environment = {**os.environ, "HF_XET_CACHE": str(tmp_path / "xet")}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            exported = dict(pair.split("=", 1) for pair in process.stdout.readline().split()[1:])
            api = HfApi(exported["HF_ENDPOINT"], token=exported["HF_TOKEN"])
            assert api.whoami()["name"] == "alice"
            assert api.get_paths_info("alice/lora", "sub/w.bin")[0].lfs.sha256 == ABC_SHA256
        finally:
            process.terminate()
        assert process.stdout.read() == "stopped\n"
    assert process.returncode == 0


def test_the_hf_command_works_against_it(hub: HubDouble, folder: Path, tmp_path: Path) -> None:
    def hf(*arguments: str) -> str:
        return run(hub, tmp_path, str(Path(sys.executable).parent / "hf"), *arguments)

    assert "alice" in hf("auth", "whoami")
    hf("repos", "create", "alice/lora")
    hf("upload", "alice/lora", str(folder), ".")
    assert hub.file("alice/lora", "adapter_model.safetensors") == WEIGHTS
    hf("download", "alice/lora", "--local-dir", str(tmp_path / "down"))
    assert (tmp_path / "down" / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert json.loads(hf("models", "ls", "--filter", "lora", "--json"))[0]["id"] == "alice/lora"
    assert json.loads(hf("models", "info", "alice/lora", "--json"))["sha"] == hub.commits("alice/lora")[0].oid
    assert "# An adapter" in hf("models", "card", "alice/lora")
    hf("discussions", "create", "alice/lora", "--title", "A question")
    assert "A question" in hf("discussions", "list", "alice/lora")


def test_transformers_and_peft_publish_and_load_the_same_model(hub: HubDouble, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    script = dedent(
        """
        import torch
        from peft import LoraConfig, PeftModel, get_peft_model
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        shape = dict(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=16, bos_token_id=0, eos_token_id=0)
        GPT2LMHeadModel(GPT2Config(**shape)).push_to_hub("alice/base")
        base = GPT2LMHeadModel.from_pretrained("alice/base")
        tokens = torch.arange(8)[None]
        plain = base.eval()(tokens).logits
        lora = LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(base, lora).eval()
        adapted = model(tokens).logits
        model.push_to_hub("alice/lora")
        loaded = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained("alice/base"), "alice/lora").eval()
        assert torch.equal(loaded(tokens).logits, adapted)
        assert not torch.allclose(plain, adapted)
        """
    )
    run(hub, tmp_path, sys.executable, "-c", script)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(hub.commits("alice/lora")[0].files)
    assert "model.safetensors" in hub.commits("alice/base")[0].files


def test_a_request_whose_sender_is_gone_before_all_of_it_had_come_is_not_answered(hub_lfs: HubDouble) -> None:
    address = httpx2.URL(hub_lfs.endpoint)
    with socket.create_connection((address.host, address.port)) as cut:
        cut.sendall(b"POST /api/repos/create HTTP/1.1\r\nHost: hub\r\nContent-Length: 100\r\n\r\n{")
    httpx2.get(f"{hub_lfs.endpoint}/api/models")
    assert [request.path for request in hub_lfs.requests] == ["/api/models"]
    assert not hub_lfs.crashes
