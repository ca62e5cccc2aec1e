"""From a reference to an adapter: local folders and the Hub give the same thing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hub_merge.adapter import Adapter, unique_names
from hub_merge.errors import (
    AdapterFormatError,
    AdapterNotFound,
    HubMergeError,
    HubUnavailable,
    RecipeError,
    UnsupportedAdapter,
)
from hub_merge.hub import Hub
from hub_merge.sources import digests, file_digest, open_adapter, open_headers, open_model
from tests.helpers import adapter_of, peft_config, peft_tensors, random_factors, write_adapter
from tests.hub_double import HubDouble

MODULE = "h.0.c_attn"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n"


@pytest.fixture
def hub() -> Hub:
    """A client that cannot reach anything: a local folder never needs the Hub."""
    return Hub(token=False, endpoint="http://127.0.0.1:9", offline=True)


@pytest.fixture
def math(tmp_path: Path, rng: np.random.Generator) -> Path:
    config = peft_config(base_model_name_or_path="acme/base")
    return write_adapter(tmp_path / "math", peft_tensors(rng, {MODULE: 2}), config)


# --- local folders ----------------------------------------------------------------------------------------------------


def test_a_folder_opens_under_its_own_name_and_is_not_told_to_others(math: Path, hub: Hub) -> None:
    adapter = open_adapter(math, hub=hub)
    assert (adapter.name, adapter.base_model, list(adapter.modules)) == ("math", "acme/base", [MODULE])
    assert adapter.origin.repo_id is None and adapter.origin.folder == math
    assert adapter.factors(MODULE).scaling == 2.0  # lora_alpha 4 over r 2


@pytest.mark.parametrize("how", ["path", "absolute", "dotted", "plain", "parent and subfolder", "trailing slash"])
def test_every_way_to_name_a_folder_opens_it(how: str, math: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(math.parent)
    reference: str | Path = {
        "path": Path("math"),
        "absolute": str(math),
        "dotted": "./math",
        "plain": "math",
        "parent and subfolder": str(math.parent),
        "trailing slash": "math/",
    }[how]
    subfolder = "math" if how == "parent and subfolder" else None
    assert open_adapter(reference, subfolder=subfolder, hub=hub).name == "math"


def test_the_name_of_the_current_folder_is_its_real_name(math: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(math)
    assert open_adapter(".", hub=hub).name == "math"


def test_a_tilde_is_the_home_folder(math: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(math.parent))
    assert open_adapter("~/math", hub=hub).name == "math"


@pytest.mark.parametrize("reference", ["./absent", "/absent/folder", "../absent", "C:\\absent"])
def test_what_looks_like_a_path_is_never_asked_of_the_hub(reference: str, hub: Hub) -> None:
    with pytest.raises(AdapterNotFound, match="no such folder") as missing:
        open_adapter(reference, hub=hub)
    assert missing.value.problem.startswith(reference)
    assert "owner/name" in (missing.value.remedy or "")


def test_a_name_that_is_neither_folder_nor_hub_id_is_refused(hub: Hub) -> None:
    with pytest.raises(RecipeError, match="nonsense"):
        open_adapter("nonsense", hub=hub)


def test_a_hub_id_while_offline_is_told_as_such(hub: Hub) -> None:
    with pytest.raises(HubUnavailable, match="acme/absent"):
        open_adapter("acme/absent", hub=hub)


def test_a_folder_of_adapters_names_those_inside(math: Path, hub: Hub) -> None:
    with pytest.raises(AdapterNotFound, match=r"adapter_config\.json") as missing:
        open_adapter(math.parent, hub=hub)
    assert "math" in (missing.value.remedy or "")


def test_a_folder_without_a_config_says_so(tmp_path: Path, hub: Hub) -> None:
    with pytest.raises(AdapterNotFound, match=r"no adapter_config\.json"):
        open_adapter(tmp_path, hub=hub)


def pointer_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(POINTER)


def pointer_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_bytes(POINTER)


def pickle_only(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def truncated(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (pointer_weights, AdapterFormatError, "git-lfs pointer"),
        (pointer_config, AdapterFormatError, "git-lfs pointer"),
        (pickle_only, UnsupportedAdapter, "pickle"),
        (no_weights, AdapterFormatError, "no adapter_model.safetensors"),
        (truncated, AdapterFormatError, "not a sound safetensors file"),
    ],
)
def test_a_damaged_folder_is_refused_by_name_with_the_reason(
    damage: Callable[[Path], None], error: type[Exception], says: str, math: Path, hub: Hub
) -> None:
    damage(math)
    for opening in (open_adapter, open_headers):
        with pytest.raises(error, match=says) as refused:
            opening(str(math), hub=hub)
        assert str(refused.value).startswith(str(math))


@pytest.mark.parametrize(
    ("card", "license_"),
    [
        ("---\nlicense: mit\n---\n# x\n", "mit"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit AND apache-2.0"),
        ("---\nlicense: 3\n---\n", None),
        ("---\n{{{ no yaml\n---\n", None),
        ("no front matter", None),
        (b"---\nlicense: \xff\xfe\n---\n", None),
    ],
)
def test_the_licence_is_what_the_card_states_if_it_states_one(
    card: str | bytes, license_: str | None, math: Path, hub: Hub
) -> None:
    (math / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    assert open_adapter(math, hub=hub).origin.license == license_


def test_headers_of_a_local_adapter_cost_nothing_and_its_numbers_stay_readable(math: Path, hub: Hub) -> None:
    opened = open_headers(math, hub=hub)
    assert opened.bytes_read == 0
    assert opened.bytes_total == sum(
        (math / name).stat().st_size for name in ("adapter_config.json", "adapter_model.safetensors")
    )
    assert opened.adapter.has_values and opened.adapter.factors(MODULE).rank == 2


# --- the Hub ----------------------------------------------------------------------------------------------------------


def test_a_hub_adapter_is_the_local_one_at_a_commit(hub_lfs: HubDouble, math: Path, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in math.iterdir()}
    commit = hub_lfs.add_repo("alice/math-lora", {**files, "README.md": b"---\nlicense: mit\n---\n"})
    client = Hub(token=False, endpoint=hub_lfs.endpoint, cache_dir=tmp_path / "cache", retries=0)
    pulled, local = open_adapter("alice/math-lora", hub=client), Adapter.from_pretrained(math)
    origin = pulled.origin
    assert (pulled.name, origin.repo_id, origin.commit, origin.license) == (
        "math-lora",
        "alice/math-lora",
        commit,
        "mit",
    )
    assert np.array_equal(pulled.factors(MODULE).delta(), local.factors(MODULE).delta())
    assert digests(pulled) == digests(local)


def test_headers_of_a_hub_adapter_tell_what_the_whole_tells_for_less(
    hub_lfs: HubDouble, tmp_path: Path, rng: np.random.Generator
) -> None:
    config = peft_config(r=64, target_modules=["q_proj"])
    tensors = {
        "base_model.model.q_proj.lora_A.weight": rng.standard_normal((64, 2000)).astype(np.float32),
        "base_model.model.q_proj.lora_B.weight": rng.standard_normal((2000, 64)).astype(np.float32),
    }
    folder = write_adapter(tmp_path / "large", tensors, config)
    hub_lfs.add_repo("alice/large", {path.name: path.read_bytes() for path in folder.iterdir()})
    client = Hub(token=False, endpoint=hub_lfs.endpoint, cache_dir=tmp_path / "cache", retries=0)
    opened, local = open_headers("alice/large", hub=client), open_headers(folder, hub=client)
    assert opened.adapter.modules == local.adapter.modules and not opened.adapter.has_values
    assert opened.bytes_total == local.bytes_total == sum(path.stat().st_size for path in folder.iterdir())
    assert 0 < opened.bytes_read < opened.bytes_total / 10


def test_headers_tell_the_added_tokens_too_unless_they_are_not_wanted(
    hub_lfs: HubDouble, math: Path, tmp_path: Path
) -> None:
    tokens = {"added_tokens.json": b'{"<go>": 50257}', "tokenizer_config.json": b"{}", "tokenizer.json": b"{}"}
    hub_lfs.add_repo("alice/math", {**{path.name: path.read_bytes() for path in math.iterdir()}, **tokens})
    client = Hub(token=False, endpoint=hub_lfs.endpoint, cache_dir=tmp_path / "cache", retries=0)
    assert open_headers("alice/math", hub=client, tokens=False).adapter.added_tokens == {}
    assert not any("token" in request.path for request in hub_lfs.requests)
    assert open_headers("alice/math", hub=client).adapter.added_tokens == {50257: "<go>"}
    assert not any(request.path.endswith("/tokenizer.json") for request in hub_lfs.requests)


def test_a_folder_wins_over_a_hub_id_of_the_same_spelling(
    math: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(math.parent.parent)
    adapter = open_adapter(f"{math.parent.name}/math", hub=hub)
    assert adapter.origin.repo_id is None and adapter.name == "math"


@pytest.mark.parametrize("offline", [True, False], ids=["offline", "online"])
def test_a_mistyped_folder_is_told_as_such_and_not_only_as_a_repository_that_is_not_there(
    hub_lfs: HubDouble, math: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.chdir(math.parent.parent)
    client = Hub(token=False, endpoint=hub_lfs.endpoint, cache_dir=math.parent / "cache", offline=offline)
    for opening in (open_adapter, open_headers, open_model):
        with pytest.raises(HubMergeError, match=f"no folder or file {math.parent.name}/maths here. Taken") as error:
            opening(f"{math.parent.name}/maths", hub=client)
        assert error.value.remedy == f"Did you mean {math.parent.name}/math?"
        with pytest.raises(HubMergeError, match="Nor is there a folder or file of that name here") as error:
            opening("nobody/maths", hub=client)
        with pytest.raises(HubMergeError) as error:
            opening("nobody/maths@main", hub=client)
        assert "folder or file" not in str(error.value)


def test_a_revision_that_a_repository_lacks_says_nothing_of_folders(
    hub_lfs: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub_lfs.add_repo("alice/math", {"README.md": b""})
    client = Hub(token=False, endpoint=hub_lfs.endpoint, cache_dir=tmp_path / "cache")
    with pytest.raises(AdapterNotFound, match="no such revision") as error:
        open_adapter("alice/math", revision="v9", hub=client)
    assert "folder or file" not in str(error.value)


def test_an_adapter_in_a_subfolder_of_a_repository_is_named_after_it(
    hub_lfs: HubDouble, math: Path, tmp_path: Path
) -> None:
    hub_lfs.add_repo("alice/many", {f"runs/last/{path.name}": path.read_bytes() for path in math.iterdir()})
    client = Hub(token=False, endpoint=hub_lfs.endpoint, cache_dir=tmp_path / "cache", retries=0)
    adapter = open_adapter("alice/many", subfolder="runs/last", hub=client)
    assert (adapter.name, adapter.origin.subfolder) == ("last", "runs/last")


# --- names and identities ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "told_apart"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "a", "a"], ["a", "a-2", "a-3"]),
        (["a", "a-2", "a"], ["a", "a-2", "a-3"]),
        (["a", "a", "a-2"], ["a", "a-3", "a-2"]),
        (["a-2", "a", "a"], ["a-2", "a", "a-3"]),
        ([], []),
    ],
)
def test_adapters_of_one_name_are_told_apart(names: list[str], told_apart: list[str], rng: np.random.Generator) -> None:
    adapters = [adapter_of(name, {MODULE: random_factors(rng, (3, 2), 1)}) for name in names]
    renamed = unique_names(adapters)
    assert [adapter.name for adapter in renamed] == told_apart
    for adapter, original in zip(renamed, adapters, strict=True):
        assert adapter.factors(MODULE) is original.factors(MODULE)


def test_digests_are_those_of_config_and_weights_and_of_nothing_else(math: Path, hub: Hub) -> None:
    (math / "README.md").write_text("# card")
    (math / "optimizer.pt").write_bytes(b"junk")
    found = digests(open_adapter(math, hub=hub))
    assert [digest.name for digest in found] == ["adapter_config.json", "adapter_model.safetensors"]
    for digest in found:
        content = (math / digest.name).read_bytes()
        assert (digest.sha256, digest.size) == (hashlib.sha256(content).hexdigest(), len(content))
        assert digest == file_digest(math / digest.name)


def test_an_adapter_in_memory_has_no_files(rng: np.random.Generator) -> None:
    assert digests(adapter_of("a", {MODULE: random_factors(rng, (3, 2), 1)})) == ()
