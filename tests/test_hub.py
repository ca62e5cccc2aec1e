"""Finding, pinning, pulling and looking into adapters, with the real client against the Hub double."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from unittest.mock import patch

import numpy as np
import pytest
from huggingface_hub import HfApi, ModelInfo, get_session
from safetensors.numpy import save

from hub_merge.cli import main as command_line
from hub_merge.errors import (
    AdapterError,
    AdapterFormatError,
    AdapterNotFound,
    HubMergeError,
    HubUnavailable,
    RecipeError,
    UnsupportedAdapter,
)
from hub_merge.frontmatter import LicenseDetails
from hub_merge.hub import Hub, PinnedRepo, Reference, RemoteFile, parse_reference
from hub_merge.hub.failures import redact
from hub_merge.hub.ranges import fetch_range, read_header
from hub_merge.hub.repositories import stated_base_models, stated_license
from hub_merge.patience import BOUNDS
from tests.hub_double import HubDouble

ROOT = Path(__file__).parents[1]
BASE = "acme/base"
CONFIG = json.dumps({"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": BASE}).encode()
WEIGHTS = save({"base_model.model.h.0.lora_A.weight": np.arange(8, dtype=np.float32).reshape(2, 4)})
BIG_WEIGHTS = save({"base_model.model.h.0.lora_A.weight": np.ones((8, 100_000), np.float32)})
CARD = f"---\nlicense: mit\nbase_model: {BASE}\n---\n# Adapter\n".encode()
ADAPTER = {"adapter_config.json": CONFIG, "adapter_model.safetensors": WEIGHTS, "README.md": CARD}
UNTAGGED = {"adapter_config.json": CONFIG, "adapter_model.safetensors": WEIGHTS}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def connect(hub: HubDouble, cache: Path, user: str | None = "bob", **settings: object) -> Hub:
    options = {"timeout": 5.0, "retries": 1, **settings}
    return Hub(token=hub.token(user) if user else False, endpoint=hub.endpoint, cache_dir=cache, **options)  # type: ignore[arg-type]


def lines(hub: HubDouble) -> list[str]:
    return [f"{request.method} {request.path}" for request in hub.requests]


def resolve(client: Hub, text: str) -> PinnedRepo:
    return client.resolve(parse_reference(text))


def assert_says(error: pytest.ExceptionInfo[HubMergeError], *subjects: str, remedy: str) -> None:
    for subject in subjects:
        assert subject in error.value.problem
    assert remedy in (error.value.remedy or "")
    assert "hf_bob" not in str(error.value)


# --- references -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("alice/math", Reference("alice/math")),
        (" alice/math ", Reference("alice/math")),
        ("alice/math@v1.0", Reference("alice/math", "v1.0")),
        ("alice/math:sub/folder", Reference("alice/math", None, "sub/folder")),
        ("alice/math@refs/pr/3:sub/", Reference("alice/math", "refs/pr/3", "sub")),
        ("hf://alice/math", Reference("alice/math")),
        ("hf://models/alice/math@main/sub/folder", Reference("alice/math", "main", "sub/folder")),
        ("https://huggingface.co/alice/math", Reference("alice/math")),
        ("https://huggingface.co/alice/math/tree/main/sub", Reference("alice/math", "main", "sub")),
        ("huggingface.co/alice/math/tree/refs%2Fpr%2F3", Reference("alice/math", "refs/pr/3")),
        ("https://huggingface.co/alice/math/blob/main/adapter_config.json", Reference("alice/math", "main")),
        ("https://hf.co/alice/math/blob/v1/sub/README.md?x=1#top", Reference("alice/math", "v1", "sub")),
    ],
)
def test_a_reference_is_understood_in_every_usual_form(text: str, reference: Reference) -> None:
    assert parse_reference(text) == reference


def test_pages_of_another_hub_are_understood() -> None:
    address = "http://hub.example.org:8080/alice/math/tree/main"
    assert parse_reference(address, endpoint="http://hub.example.org:8080") == Reference("alice/math", "main")


@pytest.mark.parametrize("text", ["alice/math", "alice/math@v1", "alice/math:sub", "alice/math@refs/pr/3:a/b"])
def test_a_reference_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_reference(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gpt2",
        "a/b/c",
        "alice/ma th",
        "alice/math@",
        "alice/math@../../x",
        "alice/math@a b",
        "alice/math@-x",
        "alice/math:../up",
        "alice/math:/root",
        "alice/math:a//b",
        "alice/math:a\\b",
        "C:\\adapters",
        "hf://alice",
        "hf://datasets/alice/data",
        "https://huggingface.co/alice",
        "https://huggingface.co/alice/math/discussions/1",
        "https://example.org/alice/math",
    ],
)
def test_what_names_no_adapter_is_refused_with_a_hint_how_to_name_one(text: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_reference(text)
    assert error.value.remedy


def test_a_token_in_an_address_is_not_repeated() -> None:
    token = "hf_" + "a" * 34
    with pytest.raises(RecipeError) as error:
        parse_reference(f"https://user:{token}@example.org/alice/math")
    assert token not in str(error.value)
    assert redact(f"x {token} y") == "x hf_*** y"


# --- resolving --------------------------------------------------------------------------------------------------------


def test_a_revision_is_pinned_to_its_commit_once(hub_lfs: HubDouble, cache: Path) -> None:
    commit = hub_lfs.add_repo("alice/math", ADAPTER, downloads=7, likes=2)
    pinned = resolve(connect(hub_lfs, cache), "alice/math")
    hub_lfs.push("alice/math", {"README.md": b"new"})
    assert (pinned.repo_id, pinned.revision, pinned.commit) == ("alice/math", None, commit)
    assert (pinned.license, pinned.base_models, pinned.downloads, pinned.likes) == ("mit", (BASE,), 7, 2)
    assert (pinned.author, pinned.gated, pinned.private, pinned.disabled) == ("alice", False, False, False)
    assert pinned.files["adapter_config.json"].size == len(CONFIG)
    assert pinned.files["adapter_config.json"].sha256 is None
    assert pinned.files["adapter_model.safetensors"].sha256 is not None
    assert lines(hub_lfs) == ["GET /api/models/alice/math"]
    assert not cache.exists()
    assert hub_lfs.requests[0].headers["user-agent"].startswith("hub-merge/")


def test_a_commit_and_a_branch_resolve_to_what_they_hold(hub_lfs: HubDouble, cache: Path) -> None:
    first = hub_lfs.add_repo("alice/math", ADAPTER)
    hub_lfs.push("alice/math", {"new.txt": b"new"})
    hub_lfs.api("alice").create_branch("alice/math", branch="old", revision=first)
    client = connect(hub_lfs, cache)
    for revision in (first, "old"):
        pinned = resolve(client, f"alice/math@{revision}")
        assert pinned.commit == first
        assert "new.txt" not in pinned.files


def test_a_renamed_repository_gets_its_new_id(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/math", ADAPTER)
    hub_lfs.renames["alice/old-name"] = "alice/math"
    client = connect(hub_lfs, cache)
    pinned = resolve(client, "alice/old-name")
    assert pinned.repo_id == "alice/math"
    assert (client.pull(pinned) / "adapter_config.json").read_bytes() == CONFIG


@pytest.mark.parametrize(
    "stated",
    [["acme/base"], {"relation": "adapter", "models": [{"_id": "1", "id": "acme/base"}]}, [{"id": "acme/base"}]],
)
def test_base_models_are_read_in_every_shape_the_hub_gives_them(stated: object) -> None:
    assert stated_base_models(ModelInfo(id="a/b", baseModels=stated)) == ("acme/base",)


def test_base_model_and_licence_are_taken_from_card_or_tags_where_the_hub_has_no_field() -> None:
    card = ModelInfo(id="a/b", cardData={"base_model": ["x/y", 3], "license": "mit"}, tags=["license:other"])
    tags = ModelInfo(id="a/b", tags=["license:apache-2.0", "base_model:x/y", "base_model:adapter:x/y"])
    assert (stated_base_models(card), stated_license(card)) == (("x/y",), ("mit", LicenseDetails("card")))
    assert (stated_base_models(tags), stated_license(tags)) == (("x/y",), ("apache-2.0", LicenseDetails("tag")))
    nothing = ModelInfo(id="a/b")
    assert (stated_base_models(nothing), stated_license(nothing)) == ((), (None, LicenseDetails()))


def test_a_missing_repository_is_told_with_and_without_a_token(hub_lfs: HubDouble, cache: Path) -> None:
    with pytest.raises(AdapterNotFound) as error:
        resolve(connect(hub_lfs, cache, None), "alice/nothing")
    assert_says(error, "alice/nothing", "private", "no token was sent", remedy="hf auth login")
    with pytest.raises(AdapterNotFound) as error:
        resolve(connect(hub_lfs, cache), "alice/nothing")
    assert_says(error, "alice/nothing", "private", "the owner of the token", remedy="spelling")
    assert len(hub_lfs.requests) == 2


def test_a_private_repository_is_seen_by_its_owner_only(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/secret", ADAPTER, private=True)
    with pytest.raises(AdapterNotFound) as error:
        resolve(connect(hub_lfs, cache), "alice/secret")
    assert_says(error, "alice/secret", "private", remedy="hf auth login")
    assert resolve(connect(hub_lfs, cache, "alice"), "alice/secret").private


def test_a_missing_revision_is_told(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/math", ADAPTER)
    with pytest.raises(AdapterNotFound) as error:
        resolve(connect(hub_lfs, cache), "alice/math@v9")
    assert_says(error, "alice/math@v9", "no such revision", remedy=f"{hub_lfs.endpoint}/alice/math/commits/main")


def test_a_token_that_the_hub_does_not_know_is_told_and_not_shown(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/math", ADAPTER)
    token = "hf_" + "z" * 34
    with pytest.raises(AdapterNotFound) as error:
        resolve(Hub(token=token, endpoint=hub_lfs.endpoint, cache_dir=cache), "alice/math")
    assert_says(error, "alice/math", "does not accept the token", remedy="hf auth login")
    assert token not in str(error.value)


def test_what_the_hub_says_is_repeated_without_tokens(hub_lfs: HubDouble, cache: Path) -> None:
    token = "hf_" + "z" * 34
    hub_lfs.faults.add("GET /api/models", status=418, headers={"X-Error-Message": f"no tea for {token}"})
    with pytest.raises(AdapterNotFound) as error:
        resolve(connect(hub_lfs, cache), "alice/math")
    assert_says(error, "no tea for hf_***", remedy="hf auth login")


# --- when the Hub has a bad day ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
def test_an_error_that_passes_is_waited_out(hub_lfs: HubDouble, cache: Path, status: int) -> None:
    hub_lfs.add_repo("alice/math", ADAPTER)
    hub_lfs.faults.add("GET /api/models", status=status)
    assert resolve(connect(hub_lfs, cache), "alice/math").repo_id == "alice/math"
    assert [request.status for request in hub_lfs.requests] == [status, 200]


def test_a_lost_connection_is_tried_again(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/math", ADAPTER)
    hub_lfs.faults.add("GET /api/models", cut="request")
    assert resolve(connect(hub_lfs, cache), "alice/math").repo_id == "alice/math"
    assert len(hub_lfs.requests) == 2


def test_an_error_that_stays_is_given_up_after_the_set_number_of_attempts(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.faults.add("GET /api/models", status=503, times=None)
    with pytest.raises(HubUnavailable) as error:
        resolve(connect(hub_lfs, cache, retries=2), "alice/math")
    assert_says(error, hub_lfs.endpoint, "503", "alice/math", remedy="HF_HUB_OFFLINE=1")
    assert len(hub_lfs.requests) == 3


def test_a_refusal_is_not_repeated(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.faults.add("GET /api/models", status=403, times=None)
    with pytest.raises(AdapterNotFound):
        resolve(connect(hub_lfs, cache), "alice/math")
    assert len(hub_lfs.requests) == 1


@pytest.mark.parametrize(
    "headers",
    [{"RateLimit": '"api";r=0;t=1', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}, {"Retry-After": "1"}],
)
def test_the_wait_that_the_hub_asks_for_is_kept(hub_lfs: HubDouble, cache: Path, headers: dict[str, str]) -> None:
    hub_lfs.add_repo("alice/math", ADAPTER)
    hub_lfs.faults.add("GET /api/models", status=429, headers=headers)
    started = time.monotonic()
    resolve(connect(hub_lfs, cache), "alice/math")
    assert time.monotonic() - started >= 1.0
    assert len(hub_lfs.requests) == 2


def test_a_long_wait_is_told_instead_of_kept(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.faults.add("GET /api/models", status=429, headers={"RateLimit": '"api";r=0;t=280'}, times=None)
    started = time.monotonic()
    with pytest.raises(HubUnavailable) as error:
        resolve(connect(hub_lfs, cache), "alice/math")
    assert time.monotonic() - started < 5
    assert_says(error, "wait 280 s", "alice/math", remedy="Wait")
    assert len(hub_lfs.requests) == 1


def test_a_hub_that_does_not_answer_is_not_waited_for_longer_than_the_time_limit(
    hub_lfs: HubDouble, cache: Path
) -> None:
    hub_lfs.faults.add("GET /api/models", delay=3, times=None)
    started = time.monotonic()
    with pytest.raises(HubUnavailable) as error:
        resolve(connect(hub_lfs, cache, timeout=0.2, retries=1), "alice/math")
    assert time.monotonic() - started < 2.5
    assert_says(error, "did not answer in time", "alice/math", remedy="Try again")


def test_the_time_limit_does_not_bind_other_users_of_huggingface_hub(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/math", ADAPTER)
    session, timeout = get_session(), get_session().timeout
    resolve(connect(hub_lfs, cache, timeout=0.2), "alice/math")
    hub_lfs.faults.add("GET /api/models", delay=0.6)
    assert HfApi(endpoint=hub_lfs.endpoint, token=False).model_info("alice/math").id == "alice/math"
    assert get_session() is session
    assert get_session().timeout == timeout


def test_a_hub_that_is_not_there_is_told(cache: Path) -> None:
    with HubDouble(xet=False) as gone:
        endpoint = gone.endpoint
    with pytest.raises(HubUnavailable) as error:
        resolve(Hub(token=False, endpoint=endpoint, cache_dir=cache, retries=0), "alice/math")
    assert_says(error, endpoint, "could not be reached", remedy="HF_ENDPOINT")


def test_an_endpoint_that_is_no_hub_is_told(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.faults.add("GET /api/models", status=200, body=b"<html>Log in to the hotel</html>", times=None)
    client = connect(hub_lfs, cache)
    with pytest.raises(HubUnavailable) as error:
        resolve(client, "alice/math")
    assert_says(error, "something unexpected", "alice/math", remedy="HF_ENDPOINT")
    with pytest.raises(HubUnavailable):
        client.search()


def test_a_description_without_a_commit_is_told(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.faults.add("GET /api/models", status=200, body=b'{"id": "alice/math", "sha": "abc"}')
    with pytest.raises(HubUnavailable, match="no commit"):
        resolve(connect(hub_lfs, cache), "alice/math")


# --- pulling ----------------------------------------------------------------------------------------------------------


def test_pulling_brings_the_wanted_files_whole_and_nothing_else(hub: HubDouble, cache: Path) -> None:
    others = {
        "adapter_model.bin": b"\0pickle",
        "optimizer.pt": b"\0",
        "notes.txt": b"x",
        "checkpoint-1/README.md": b"x",
    }
    wanted = {**ADAPTER, "LICENSE.txt": b"MIT", "added_tokens.json": b"{}", "adapter_model.safetensors": BIG_WEIGHTS}
    commit = hub.add_repo("alice/math", {**wanted, **others})
    client = connect(hub, cache)
    folder = client.pull(resolve(client, "alice/math"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == wanted
    assert folder == cache / "models--alice--math" / "snapshots" / commit
    assert not any("adapter_model.bin" in line or "optimizer.pt" in line for line in lines(hub))


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **environment}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, check=True)


@pytest.mark.parametrize("progress", [True, False])
def test_progress_bars_are_drawn_only_when_asked_for(hub_lfs: HubDouble, tmp_path: Path, progress: bool) -> None:
    hub_lfs.add_repo("alice/math", ADAPTER)
    program = (
        "from hub_merge.hub import Hub, Reference; hub = Hub(token=False);"
        f"hub.pull(hub.resolve(Reference('alice/math')), progress={progress})"
    )
    bars_even_without_terminal = {"HF_HUB_DISABLE_PROGRESS_BARS": "", "TQDM_POSITION": "-1"}
    drawn = run(program, **hub_lfs.environment(tmp_path), **bars_even_without_terminal).stderr
    assert ("100%" in drawn) == progress


def test_pulling_keeps_to_the_pinned_commit(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/math", ADAPTER)
    client = connect(hub_lfs, cache)
    pinned = resolve(client, "alice/math")
    hub_lfs.push("alice/math", {"README.md": b"another card", "adapter_model.safetensors": BIG_WEIGHTS})
    folder = client.pull(pinned)
    assert (folder / "README.md").read_bytes() == CARD
    assert (folder / "adapter_model.safetensors").read_bytes() == WEIGHTS


def test_what_was_pulled_is_not_asked_for_again(hub: HubDouble, cache: Path) -> None:
    hub.add_repo("alice/math", ADAPTER)
    client = connect(hub, cache)
    pinned = resolve(client, "alice/math")
    folder = client.pull(pinned)
    before = len(hub.requests)
    assert client.pull(pinned) == folder
    assert len(hub.requests) == before


def test_an_adapter_in_a_subfolder_is_pulled_from_there(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/many", {f"a/b/{name}": content for name, content in ADAPTER.items()})
    client = connect(hub_lfs, cache)
    folder = client.pull(resolve(client, "alice/many:a/b"))
    assert sorted(path.name for path in folder.iterdir()) == sorted(ADAPTER)
    assert folder.parts[-2:] == ("a", "b")


def sharded(missing: str = "") -> dict[str, bytes]:
    shards = {f"adapter_model-0000{number}-of-00002.safetensors": WEIGHTS for number in (1, 2)}
    index = json.dumps({"weight_map": {}}).encode()
    files = {"adapter_config.json": CONFIG, "adapter_model.safetensors.index.json": index, **shards}
    return {name: content for name, content in files.items() if name != missing}


def test_a_sharded_adapter_is_pulled_with_its_index(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/big", sharded())
    client = connect(hub_lfs, cache)
    pinned = resolve(client, "alice/big")
    headers = client.read_headers(pinned)
    assert headers.index == json.dumps({"weight_map": {}}).encode()
    assert list(headers.headers) == [name for name in sharded() if "-of-" in name]
    assert sorted(path.name for path in client.pull(pinned).iterdir()) == sorted(sharded())


def test_a_missing_shard_is_told_before_anything_is_downloaded(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/big", sharded(missing="adapter_model-00002-of-00002.safetensors"))
    client = connect(hub_lfs, cache)
    with pytest.raises(AdapterFormatError) as error:
        client.pull(resolve(client, "alice/big"))
    assert_says(error, "alice/big", "1 of the 2 files", remedy="revision")
    assert len(hub_lfs.requests) == 1


def test_only_chosen_files_are_pulled_where_patterns_are_given(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/math", {**ADAPTER, "adapter_model.bin": b"\0"})
    client = connect(hub_lfs, cache)
    pinned = resolve(client, "alice/math")
    folder = client.pull(pinned, ["*.md", "*.bin"])
    assert [path.name for path in folder.iterdir()] == ["README.md"]
    with pytest.raises(AdapterNotFound) as error:
        client.pull(pinned, ["*.bin", "*.txt"])
    assert_says(error, "alice/math", "*.bin, *.txt", remedy="/alice/math/tree/")


LOST = {
    "made private": lambda hub: setattr(hub.repo("alice/math"), "private", True),
    "gated": lambda hub: setattr(hub.repo("alice/math"), "gated", "manual"),
    "deleted": lambda hub: hub.delete_repo("alice/math"),
    "disabled": lambda hub: setattr(hub.repo("alice/math"), "disabled", True),
    "failing": lambda hub: hub.faults.add("GET .*(README|objects)", status=503, times=None),
}


@pytest.mark.parametrize("lose", LOST.values(), ids=LOST.keys())
def test_a_partial_snapshot_in_the_cache_is_never_taken_for_whole(
    hub_lfs: HubDouble, cache: Path, lose: Callable[[HubDouble], object]
) -> None:
    commit = hub_lfs.add_repo("alice/math", ADAPTER)
    client = connect(hub_lfs, cache, retries=0)
    pinned = resolve(client, "alice/math")
    hub_lfs.api().hf_hub_download("alice/math", "adapter_config.json", revision=commit, cache_dir=cache)
    lose(hub_lfs)
    with pytest.raises((AdapterNotFound, HubUnavailable)) as error:
        client.pull(pinned)
    assert_says(error, "alice/math (", remedy="")
    assert error.value.remedy


def test_a_file_that_was_cut_short_in_the_cache_is_downloaded_again(hub: HubDouble, cache: Path) -> None:
    hub.add_repo("alice/math", ADAPTER)
    client = connect(hub, cache)
    pinned = resolve(client, "alice/math")
    weights = client.pull(pinned) / "adapter_model.safetensors"
    weights.write_bytes(WEIGHTS[:50])
    client.pull(pinned)
    assert weights.read_bytes() == WEIGHTS


def test_a_download_that_breaks_off_is_resumed(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/math", {**ADAPTER, "adapter_model.safetensors": BIG_WEIGHTS})
    hub_lfs.faults.add("GET /objects", cut="body")
    client = connect(hub_lfs, cache)
    folder = client.pull(resolve(client, "alice/math"))
    assert (folder / "adapter_model.safetensors").read_bytes() == BIG_WEIGHTS


def test_a_file_that_arrives_short_is_told_and_not_kept(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/math", ADAPTER)
    hub_lfs.faults.add("GET /objects", length=20)
    client = connect(hub_lfs, cache)
    pinned = resolve(client, "alice/math")
    with pytest.raises(HubUnavailable) as error:
        client.pull(pinned)
    assert_says(error, "alice/math (adapter_model.safetensors)", "not whole", remedy="Try again")
    assert (client.pull(pinned) / "adapter_model.safetensors").read_bytes() == WEIGHTS


def test_a_size_other_than_the_stated_one_is_told(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/math", ADAPTER)
    client = connect(hub_lfs, cache)
    pinned = resolve(client, "alice/math")
    wrong = replace(pinned, files={**pinned.files, "README.md": RemoteFile(3)})
    with pytest.raises(AdapterFormatError) as error:
        client.pull(wrong)
    assert_says(error, "alice/math (README.md)", "3 bytes", remedy="Try again")


def test_a_download_that_fails_for_a_moment_is_tried_again(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/math", ADAPTER)
    hub_lfs.faults.add("GET /objects", status=503)
    client = connect(hub_lfs, cache)
    assert (client.pull(resolve(client, "alice/math")) / "adapter_model.safetensors").read_bytes() == WEIGHTS


def test_a_cache_that_cannot_be_written_is_told(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/math", ADAPTER)
    cache.write_text("a file where a folder should be")
    client = connect(hub_lfs, cache)
    with pytest.raises(AdapterError) as error:
        client.pull(resolve(client, "alice/math"))
    assert_says(error, "alice/math", "could not be stored", remedy="HF_HOME")


@pytest.mark.parametrize(
    ("user", "who"), [(None, "no token was sent"), ("bob", "the owner of the token")], ids=["anonymous", "bob"]
)
def test_a_gated_adapter_is_described_but_its_files_need_access(
    hub_lfs: HubDouble, cache: Path, user: str | None, who: str
) -> None:
    hub_lfs.add_repo("alice/gated", ADAPTER, gated="manual")
    client = connect(hub_lfs, cache, user)
    pinned = resolve(client, "alice/gated")
    assert pinned.gated
    for read in (client.pull, client.read_headers, client.readme):
        with pytest.raises(AdapterNotFound) as error:
            read(pinned)
        assert_says(error, "alice/gated", "gated", who, remedy=f"{hub_lfs.endpoint}/alice/gated")
        assert "hf auth login" in str(error.value)


def test_a_gated_adapter_is_pulled_by_who_was_let_in(hub: HubDouble, cache: Path) -> None:
    hub.add_repo("alice/gated", ADAPTER, gated="manual")
    hub.grant("alice/gated", "bob")
    client = connect(hub, cache)
    folder = client.pull(resolve(client, "alice/gated"))
    assert (folder / "adapter_model.safetensors").read_bytes() == WEIGHTS


def test_a_disabled_repository_is_told(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/math", ADAPTER, disabled=True)
    client = connect(hub_lfs, cache)
    pinned = resolve(client, "alice/math")
    assert pinned.disabled
    with pytest.raises(AdapterNotFound) as error:
        client.read_headers(pinned)
    assert_says(error, "alice/math", "disabled", remedy=f"{hub_lfs.endpoint}/alice/math")


# --- repositories that hold something else ----------------------------------------------------------------------------

ELSEWHERE = {"a/adapter_config.json": CONFIG, "b/c/adapter_config.json": CONFIG}


@pytest.mark.parametrize(
    ("files", "reference", "kind", "says", "remedy"),
    [
        (ELSEWHERE, "alice/x", AdapterNotFound, "no adapter_config.json in its root", "alice/x:a, alice/x:b/c"),
        (ELSEWHERE, "alice/x@main:b", AdapterNotFound, "the folder 'b'", "alice/x@main:a, alice/x@main:b/c"),
        ({"notes.txt": b"x"}, "alice/x", AdapterNotFound, "no adapter_config.json in its root", "PEFT"),
        ({"adapter_config.json": CONFIG}, "alice/x", AdapterNotFound, "no adapter_model.safetensors", "PEFT"),
        ({"adapter_model.safetensors": WEIGHTS}, "alice/x", AdapterNotFound, "no adapter_config.json", "PEFT"),
        (
            {"adapter_config.json": CONFIG, "adapter_model.bin": b"\0"},
            "alice/x",
            UnsupportedAdapter,
            "pickle only (adapter_model.bin), which can run any code",
            "safe_serialization=True",
        ),
        ({"lora.pt": b"\0"}, "alice/x", UnsupportedAdapter, "pickle only (lora.pt)", "safetensors"),
        (
            {"one.safetensors": WEIGHTS, "two.safetensors": WEIGHTS},
            "alice/x@main",
            AdapterFormatError,
            "2 files could be meant",
            "alice/x@main:one.safetensors, alice/x@main:two.safetensors",
        ),
        (
            {"a/one.safetensors": WEIGHTS, "a/two.gguf": b"GGUF"},
            "alice/x:a",
            AdapterFormatError,
            "2 files could be meant",
            "alice/x:a/one.safetensors, alice/x:a/two.gguf",
        ),
        ({"one.safetensors": WEIGHTS}, "alice/x:two.safetensors", AdapterNotFound, "no file two.safetensors", "name"),
        (
            {"config.json": b"{}", "model-00001-of-00002.safetensors": WEIGHTS},
            "alice/x",
            UnsupportedAdapter,
            "a full model (model-00001-of-00002.safetensors)",
            "another repository",
        ),
        ({"pytorch_model.bin": b"\0"}, "alice/x", UnsupportedAdapter, "a full model (pytorch_model.bin)", "another"),
    ],
)
def test_what_is_no_adapter_is_named_for_what_it_is(
    hub_lfs: HubDouble,
    cache: Path,
    files: dict[str, bytes],
    reference: str,
    kind: type[HubMergeError],
    says: str,
    remedy: str,
) -> None:
    hub_lfs.add_repo("alice/x", files)
    client = connect(hub_lfs, cache)
    pinned = resolve(client, reference)
    for read in (client.pull, client.read_headers):
        with pytest.raises(kind) as error:
            read(pinned)
        assert_says(error, reference, says, remedy=remedy)
    assert len(hub_lfs.requests) == 1


def test_a_long_list_of_folders_is_shortened(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/x", {f"checkpoint-{number:02}/adapter_config.json": CONFIG for number in range(12)})
    client = connect(hub_lfs, cache)
    with pytest.raises(AdapterNotFound, match="alice/x:checkpoint-07 and 4 more"):
        client.pull(resolve(client, "alice/x"))


# --- headers ----------------------------------------------------------------------------------------------------------


def test_headers_cost_kilobytes_of_a_file_of_megabytes(hub: HubDouble, cache: Path) -> None:
    hub.add_repo("alice/math", {**ADAPTER, "adapter_model.safetensors": BIG_WEIGHTS})
    client = connect(hub, cache)
    remote = client.read_headers(resolve(client, "alice/math"))
    header = remote.headers["adapter_model.safetensors"]
    assert BIG_WEIGHTS.startswith(header)
    assert len(header) == 8 + int.from_bytes(BIG_WEIGHTS[:8], "little")
    assert (remote.config, remote.index) == (CONFIG, None)
    assert remote.sizes == {"adapter_model.safetensors": len(BIG_WEIGHTS)}
    assert len(BIG_WEIGHTS) > 3_000_000
    assert remote.bytes_read < 150_000
    assert not list(cache.glob("**/snapshots/*/*"))


def test_no_token_reaches_the_storage(hub: HubDouble, cache: Path) -> None:
    hub.add_repo("alice/secret", ADAPTER, private=True)
    client = connect(hub, cache, "alice")
    client.read_headers(resolve(client, "alice/secret"))
    (stored,) = [request for request in hub.requests if request.path.startswith("/objects/")]
    (asked,) = [request for request in hub.requests if request.path.endswith("/adapter_model.safetensors")]
    assert "authorization" not in stored.headers
    assert asked.headers["authorization"] == f"Bearer {hub.token('alice')}"
    assert not hub.leaked_tokens


def test_nothing_is_sent_along_for_an_anonymous_user(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/math", ADAPTER)
    client = connect(hub_lfs, cache, None)
    client.pull(resolve(client, "alice/math"))
    assert not any("authorization" in request.headers for request in hub_lfs.requests)


def test_the_stored_login_is_used_unless_it_is_switched_off(
    hub_lfs: HubDouble, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_lfs.add_repo("alice/math", ADAPTER)
    monkeypatch.setenv("HF_TOKEN", hub_lfs.token("alice"))
    for token in (None, False):
        resolve(Hub(token=token, endpoint=hub_lfs.endpoint, cache_dir=cache), "alice/math")
    with_login, without = hub_lfs.requests
    assert with_login.headers["authorization"] == f"Bearer {hub_lfs.token('alice')}"
    assert "authorization" not in without.headers


def test_a_login_that_is_insisted_on_and_missing_is_told(hub_lfs: HubDouble, cache: Path) -> None:
    with pytest.raises(AdapterNotFound) as error:
        resolve(Hub(token=True, endpoint=hub_lfs.endpoint, cache_dir=cache), "alice/math")
    assert_says(error, "token is needed", "alice/math", remedy="hf auth login")


def test_a_long_header_is_read_in_two_steps(hub_lfs: HubDouble, cache: Path) -> None:
    weights = save({f"base_model.model.layers.{number}.lora_A.weight": np.ones((1, 1)) for number in range(2000)})
    length = int.from_bytes(weights[:8], "little")
    assert length > 150_000
    hub_lfs.add_repo("alice/math", {**ADAPTER, "adapter_model.safetensors": weights})
    client = connect(hub_lfs, cache)
    remote = client.read_headers(resolve(client, "alice/math"))
    assert remote.headers["adapter_model.safetensors"] == weights[: 8 + length]
    assert remote.bytes_read == 8 + length + len(CONFIG)
    ranges = [request.headers["range"] for request in hub_lfs.requests if request.path.startswith("/objects/")]
    assert ranges == ["bytes=0-100007", f"bytes=100008-{length + 7}"]


def test_a_server_that_ignores_ranges_is_read_no_further_than_needed(hub_lfs: HubDouble) -> None:
    content = bytes(range(256)) * 4000
    hub_lfs.faults.add("GET /file", status=200, body=content, times=None)
    assert fetch_range(f"{hub_lfs.endpoint}/file", {}, 0, 10) == content[:10]
    assert fetch_range(f"{hub_lfs.endpoint}/file", {}, 1000, 1010) == content[1000:1010]


class EndlessFile(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(b"x" * 65536)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_server_that_never_stops_sending_is_left() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), EndlessFile) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        assert fetch_range(f"http://127.0.0.1:{server.server_port}/", {}, 5, 15) == b"x" * 10
        server.shutdown()


def test_an_answer_that_ends_early_is_asked_for_again(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/math", ADAPTER)
    hub_lfs.faults.add("GET /objects", length=20)
    hub_lfs.faults.add("GET /objects", cut="body")
    client = connect(hub_lfs, cache, retries=2)
    remote = client.read_headers(resolve(client, "alice/math"))
    assert WEIGHTS.startswith(remote.headers["adapter_model.safetensors"])


def test_a_file_that_is_no_safetensors_is_told(hub_lfs: HubDouble, cache: Path) -> None:
    for content in (b"<html></html>", b"", b"abc"):
        hub_lfs.add_repo("alice/broken", {**ADAPTER, "adapter_model.safetensors": content})
        client = connect(hub_lfs, cache)
        with pytest.raises(AdapterFormatError) as error:
            client.read_headers(resolve(client, "alice/broken"))
        assert_says(error, "alice/broken (adapter_model.safetensors)", f"{len(content)} bytes", remedy="revision")


def test_an_absurdly_long_header_is_refused_before_it_is_read() -> None:
    asked = []

    def read(start: int, end: int) -> bytes:
        asked.append((start, end))
        return (30_000_000).to_bytes(8, "little").ljust(end - start, b" ")

    with pytest.raises(AdapterFormatError) as error:
        read_header(read, 1_000_000_000, "alice/huge (adapter_model.safetensors)")
    assert_says(error, "alice/huge", "30000000 bytes", remedy="another adapter")
    assert asked == [(0, 100_008)]


def test_an_absurdly_long_configuration_is_refused_before_it_is_read(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/huge", {**ADAPTER, "adapter_config.json": b" " * 1_000_001})
    client = connect(hub_lfs, cache)
    with pytest.raises(AdapterFormatError) as error:
        client.read_headers(resolve(client, "alice/huge"))
    assert_says(error, "alice/huge (adapter_config.json)", "1000001 bytes", remedy="revision")
    assert len(hub_lfs.requests) <= 3


def test_headers_of_what_is_in_the_cache_cost_nothing(hub: HubDouble, cache: Path) -> None:
    hub.add_repo("alice/math", ADAPTER)
    client = connect(hub, cache)
    pinned = resolve(client, "alice/math")
    first = client.read_headers(pinned)
    client.pull(pinned)
    before = len(hub.requests)
    again = client.read_headers(pinned)
    assert (again.headers, again.config, again.bytes_read) == (first.headers, first.config, 0)
    assert len(hub.requests) == before


def test_the_card_is_read_where_there_is_one(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/math", ADAPTER)
    hub_lfs.add_repo("alice/bare", UNTAGGED)
    client = connect(hub_lfs, cache)
    assert client.readme(resolve(client, "alice/math")) == CARD.decode()
    assert client.readme(resolve(client, "alice/bare")) is None


# --- without network --------------------------------------------------------------------------------------------------


def test_what_was_pulled_is_found_again_offline(hub: HubDouble, cache: Path) -> None:
    commit = hub.add_repo("alice/math", ADAPTER)
    online = connect(hub, cache)
    pulled = resolve(online, "alice/math")
    folder = online.pull(pulled)
    before = len(hub.requests)
    offline = connect(hub, cache, offline=True)
    for text in ("alice/math", "alice/math@main", f"alice/math@{commit}"):
        pinned = resolve(offline, text)
        assert (pinned.commit, pinned.from_cache, pinned.license) == (commit, True, "mit")
        assert pinned.base_models == (BASE,)
        assert offline.pull(pinned) == folder
        assert offline.read_headers(pinned).config == CONFIG
        assert offline.readme(pinned) == CARD.decode()
    assert pinned.files["adapter_model.safetensors"].sha256 == pulled.files["adapter_model.safetensors"].sha256
    assert len(hub.requests) == before


def test_offline_nothing_is_asked_and_what_is_missing_is_told(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/math", ADAPTER)
    client = connect(hub_lfs, cache, offline=True)
    with pytest.raises(HubUnavailable) as error:
        resolve(client, "alice/math@v1:sub")
    assert_says(error, "alice/math@v1:sub", "not in the cache", remedy="HF_HUB_OFFLINE")
    with pytest.raises(HubUnavailable) as error:
        client.search(BASE)
    assert_says(error, "the list of models", "switched off", remedy="HF_HUB_OFFLINE")
    assert client.canonical(BASE) is None
    assert client.model(BASE) is None
    assert not hub_lfs.requests


def test_the_environment_can_switch_the_network_off() -> None:
    program = "from hub_merge.hub import Hub; print(Hub().offline)"
    assert run(program, HF_HUB_OFFLINE="1").stdout == "True\n"


def test_hf_xet_is_about_as_patient_as_the_rest_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = pytest.importorskip("hf_xet").XetConfig
    others = {name: value for name, value in os.environ.items() if name not in BOUNDS}
    monkeypatch.setattr("sys.argv", ["hub-merge", "--version"])
    with patch.dict(os.environ, {**others, "HF_XET_CLIENT_CONNECT_TIMEOUT": "33s"}, clear=True):
        with pytest.raises(SystemExit):
            command_line()
        found = config()
    seconds = {name: found.get(f"client.{name}").total_seconds() for name in ("retry_max_duration", "connect_timeout")}
    assert (found.get("client.retry_max_attempts"), seconds["retry_max_duration"]) == (4, 20)
    assert seconds["connect_timeout"] == 33


def test_importing_the_module_does_not_import_huggingface_hub() -> None:
    program = "import hub_merge.hub, hub_merge.publish, sys; print('huggingface_hub' in sys.modules)"
    assert run(program).stdout == "False\n"


@pytest.mark.parametrize("kept", [["adapter_config.json"], ["adapter_model.safetensors"], ["README.md"]])
def test_offline_a_part_of_an_adapter_is_not_taken_for_whole(hub_lfs: HubDouble, cache: Path, kept: list[str]) -> None:
    hub_lfs.add_repo("alice/math", ADAPTER)
    online = connect(hub_lfs, cache)
    online.pull(resolve(online, "alice/math"), kept)
    client = connect(hub_lfs, cache, offline=True)
    pinned = resolve(client, "alice/math")
    for read in (client.pull, client.read_headers):
        with pytest.raises(HubUnavailable) as error:
            read(pinned)
        assert_says(error, "alice/math", "not all of it", remedy="HF_HUB_OFFLINE")


def test_offline_a_part_of_the_shards_is_not_taken_for_whole(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/big", sharded())
    online = connect(hub_lfs, cache)
    online.pull(resolve(online, "alice/big"), ["*.json", "*-00001-of-*"])
    client = connect(hub_lfs, cache, offline=True)
    with pytest.raises(HubUnavailable, match="not all of it"):
        client.pull(resolve(client, "alice/big"))


# --- base models ------------------------------------------------------------------------------------------------------


def test_a_base_model_is_known_by_its_present_name_and_asked_for_once(hub_lfs: HubDouble, cache: Path) -> None:
    head = hub_lfs.add_repo("acme/base", {"README.md": b"---\nlicense: apache-2.0\n---\n"}, owner="alice")
    hub_lfs.renames["gpt2"] = "acme/base"
    client = connect(hub_lfs, cache)
    for _ in range(2):
        assert client.canonical("gpt2") == "acme/base"
        model = client.model("gpt2")
        assert model and (model.repo_id, model.license, model.commit) == ("acme/base", "apache-2.0", head)
        assert model.files["README.md"].size == len(b"---\nlicense: apache-2.0\n---\n")
    assert lines(hub_lfs) == ["GET /api/models/gpt2", "GET /api/models/acme/base"]


def test_a_base_model_that_cannot_be_seen_has_no_name_and_tells_nothing(hub_lfs: HubDouble, cache: Path) -> None:
    client = connect(hub_lfs, cache)
    for model_id in ("acme/nothing", "./local", "/root/model", "a/b/c"):
        assert client.canonical(model_id) is None
        assert client.model(model_id) is None
    assert lines(hub_lfs) == ["GET /api/models/acme/nothing"]


def test_a_hub_that_fails_does_not_pass_for_an_unknown_base_model(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("acme/base", {"README.md": b"x"}, owner="alice")
    hub_lfs.faults.add("GET /api/models", status=503)
    client = connect(hub_lfs, cache, retries=0)
    with pytest.raises(HubUnavailable):
        client.canonical("acme/base")
    assert client.canonical("acme/base") == "acme/base"


# --- searching --------------------------------------------------------------------------------------------------------


def config(base: str, task: str = "CAUSAL_LM") -> bytes:
    return json.dumps({"base_model_name_or_path": base, "task_type": task}).encode()


def card(base: str = BASE, license: str = "mit") -> bytes:
    return f"---\nbase_model: {base}\nlicense: {license}\n---\n".encode()


def test_adapters_are_found_by_tag_and_by_configuration_and_each_once(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("acme/base", {"config.json": b"{}"}, owner="alice")
    tagged = hub_lfs.add_repo("alice/base-math", ADAPTER, downloads=5, likes=1)
    hub_lfs.add_repo("bob/base-untagged", UNTAGGED, downloads=9)
    hub_lfs.add_repo("bob/base-other", {**UNTAGGED, "adapter_config.json": config("acme/other")}, downloads=99)
    found = connect(hub_lfs, cache).search(BASE)
    assert [(listing.repo_id, listing.found_by) for listing in found] == [
        ("bob/base-untagged", "config"),
        ("alice/base-math", "tag"),
    ]
    best = found[1]
    assert (best.commit, best.base_model, best.license, best.task_type) == (tagged, BASE, "mit", "CAUSAL_LM")
    assert (best.downloads, best.likes, best.gated) == (5, 1, False)
    assert best.last_modified is not None
    assert best.last_modified.startswith("20")
    assert lines(hub_lfs) == ["GET /api/models/acme/base", "GET /api/models", "GET /api/models"]


def test_former_names_of_the_base_model_count_too(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("acme/base", {"config.json": b"{}"}, owner="alice")
    hub_lfs.renames["acme/oldbase"] = "acme/base"
    hub_lfs.add_repo("alice/a", {**UNTAGGED, "README.md": card("acme/oldbase")})
    hub_lfs.add_repo("alice/b", {**UNTAGGED, "README.md": card("acme/base")})
    hub_lfs.add_repo("alice/c-base", {**UNTAGGED, "adapter_config.json": config("ACME/OldBase")})
    found = connect(hub_lfs, cache).search("acme/oldbase")
    assert {listing.repo_id for listing in found} == {"alice/a", "alice/b", "alice/c-base"}


def test_a_search_is_narrowed_by_text_author_licence_and_task(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/math-small", ADAPTER)
    hub_lfs.add_repo("alice/law", {**UNTAGGED, "README.md": card(license="apache-2.0")})
    hub_lfs.add_repo("bob/math", {**UNTAGGED, "README.md": card(), "adapter_config.json": config(BASE, "SEQ_CLS")})
    client = connect(hub_lfs, cache)

    def names(**narrowed: str) -> set[str]:
        return {listing.repo_id for listing in client.search(BASE, **narrowed)}  # type: ignore[arg-type]

    assert names() == {"alice/math-small", "alice/law", "bob/math"}
    assert names(text="math") == {"alice/math-small", "bob/math"}
    assert names(author="alice") == {"alice/math-small", "alice/law"}
    assert names(license="apache-2.0") == {"alice/law"}
    assert names(task="seq_cls") == {"bob/math"}
    assert {listing.repo_id for listing in client.search(text="law")} == {"alice/law"}


def test_a_search_goes_over_pages_and_stops_at_its_limit(hub_lfs: HubDouble, cache: Path) -> None:
    for number in range(8):
        hub_lfs.add_repo(f"alice/lora-{number}", UNTAGGED, downloads=number, likes=-number)
    client = connect(hub_lfs, cache)
    assert [listing.downloads for listing in client.search(limit=5)] == [7, 6, 5, 4, 3]
    assert [listing.downloads for listing in client.search(limit=2, sort="likes")] == [0, 1]
    assert [listing.repo_id for listing in client.search(limit=1, sort="last_modified")] == ["alice/lora-7"]
    assert len(client.search()) == 8


def test_an_entry_that_cannot_be_read_does_not_spoil_a_search(hub_lfs: HubDouble, cache: Path) -> None:
    entries = [
        {"id": "a/b", "lastModified": 3},
        "x",
        {},
        {"id": "c/d", "config": [], "tags": None, "cardData": {"license": 5}},
    ]
    hub_lfs.faults.add("GET /api/models", status=200, body=json.dumps(entries).encode())
    assert [listing.repo_id for listing in connect(hub_lfs, cache).search()] == ["c/d"]


def test_the_address_of_a_next_page_cannot_lead_away_with_the_token(hub_lfs: HubDouble, cache: Path) -> None:
    hub_lfs.add_repo("alice/math", ADAPTER)
    away = hub_lfs.endpoint.replace("127.0.0.1", "localhost")
    link = {"Link": f'<{away}/api/models?filter=peft&limit=5>; rel="next"'}
    hub_lfs.faults.add("GET /api/models", status=200, body=b'[{"id": "a/b"}]', headers=link)
    found = connect(hub_lfs, cache).search(limit=2)
    assert {listing.repo_id for listing in found} == {"a/b", "alice/math"}
    assert all(request.headers["host"] == hub_lfs.endpoint.removeprefix("http://") for request in hub_lfs.requests)


def test_a_base_model_that_is_no_hub_id_is_refused(hub_lfs: HubDouble, cache: Path) -> None:
    with pytest.raises(RecipeError) as error:
        connect(hub_lfs, cache).search("/root/model")
    assert_says(error, "/root/model", remedy="Give an id")
    assert not hub_lfs.requests
