"""Hostile repositories and a hostile storage: refused by what is cheap to read, and never kept."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from hub_merge.compat import check
from hub_merge.errors import AdapterFormatError, AdapterNotFound, BudgetExceeded, HubMergeError, RecipeError
from hub_merge.hub import Hub, parse_reference
from hub_merge.pipeline import check_references, merge_to_folder, push_folder, verify
from hub_merge.recipe import Recipe, Source
from hub_merge.sources import open_adapter, open_headers
from tests.attacks.files import CONFIG, INDEX, SOUND, WEIGHTS, config_of, weights_of
from tests.attacks.formats import ATTACKS
from tests.hub_double import HubDouble

GOOD = {CONFIG: config_of(), WEIGHTS: SOUND}
EIGHT_BILLION = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}
"""Shapes of one of the 32 layers of Llama-3.1-8B."""


@pytest.fixture
def client(hub_lfs: HubDouble, tmp_path: Path) -> Hub:
    return Hub(token=False, endpoint=hub_lfs.endpoint, cache_dir=tmp_path / "cache", retries=0)


def kept(tmp_path: Path) -> list[str]:
    """Return the names of files in the cache."""
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


# --- the same attacks, told by the headers ----------------------------------------------------------------------------

BY_NUMBERS = {"numbers_that_are_nan", "numbers_that_are_infinite"}
"""What only the weights show."""
LOCAL = {
    "card_",
    "tokenizer_that",
    "config_that_waits",
    "weights_without",
    "weights_that_are",
    "config_that_is",
    "index_",
    "kohya_file_that_is",
    "mlx_config_that_is",
    "gguf_",
}
"""What needs links, or files that headers do not read or that have none."""
BY_HEADERS = [
    name
    for name, attack in ATTACKS.items()
    if name not in BY_NUMBERS and not name.startswith(tuple(LOCAL)) and not attack.allow_pickle
]
LARGE = 5_000_000


def hostile_files(name: str, folder: Path) -> dict[str, bytes]:
    ATTACKS[name].build(folder)
    if sum(path.stat().st_size for path in folder.rglob("*")) > LARGE:
        pytest.skip("it needs a large file")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", BY_HEADERS)
def test_headers_alone_refuse_what_the_folder_is_refused_for(
    name: str, hub_lfs: HubDouble, client: Hub, tmp_path: Path
) -> None:
    hub_lfs.add_repo("alice/evil", hostile_files(name, tmp_path / "built"))
    attack = ATTACKS[name]
    try:
        result = check([open_headers("alice/evil", hub=client).adapter])
    except HubMergeError as error:
        assert type(error).__name__ == attack.error and error.remedy
    else:
        assert attack.says in {found.code for found in result.report.problems}
    assert kept(tmp_path) == []


def test_a_header_of_a_gigabyte_is_not_asked_for(hub_lfs: HubDouble, client: Hub) -> None:
    hub_lfs.add_repo("alice/evil", {**GOOD, WEIGHTS: (10**9).to_bytes(8, "little") + b"{}"})
    with pytest.raises(AdapterFormatError, match="announces a header of 1000000000"):
        open_headers("alice/evil", hub=client)
    asked = [request.headers["range"] for request in hub_lfs.requests if "range" in request.headers]
    assert asked and all(int(text.rpartition("-")[2]) < 200_000 for text in asked)


@pytest.mark.parametrize("file", [CONFIG, INDEX])
def test_a_text_of_megabytes_is_refused_before_it_is_asked_for(file: str, hub_lfs: HubDouble, client: Hub) -> None:
    shard = "adapter_model-00001-of-00001.safetensors"
    hub_lfs.add_repo("alice/evil", {CONFIG: config_of(), INDEX: b"{}", shard: SOUND, file: b" " * 2_000_000})
    with pytest.raises(AdapterFormatError, match="2000000 bytes"):
        open_headers("alice/evil", hub=client)
    assert not any(request.path.endswith(file) for request in hub_lfs.requests)


def test_a_licence_file_of_gigabytes_is_not_downloaded(
    hub_lfs: HubDouble, client: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUB_MERGE_MAX_BYTES", "10000")
    hub_lfs.add_repo("alice/evil", {**GOOD, "LICENSE": b" " * 20_000})
    with pytest.raises(BudgetExceeded, match="alice/evil"):
        open_adapter("alice/evil", hub=client)
    assert kept(tmp_path) == []


# --- between check and use --------------------------------------------------------------------------------------------


def test_a_repository_that_is_swapped_after_the_check_is_read_as_it_was_checked(
    hub_lfs: HubDouble, client: Hub, tmp_path: Path
) -> None:
    commit = hub_lfs.add_repo("alice/math", GOOD)
    pinned = client.resolve(parse_reference("alice/math"))
    headers = client.read_headers(pinned)
    hub_lfs.push("alice/math", {CONFIG: config_of(lora_alpha=4e6), WEIGHTS: SOUND[:-1]})
    assert client.read_headers(pinned) == headers
    folder = client.pull(pinned)
    assert pinned.commit == commit and (folder / WEIGHTS).read_bytes() == SOUND
    assert json.loads((folder / CONFIG).read_bytes())["lora_alpha"] == 4


def test_a_merge_checks_what_it_merges_and_not_what_was_checked_before(
    hub_lfs: HubDouble, client: Hub, tmp_path: Path
) -> None:
    hub_lfs.add_repo("alice/math", GOOD)
    assert check_references(["alice/math"], hub=client).compatible
    hub_lfs.push("alice/math", {CONFIG: config_of(use_dora=True)})
    recipe = Recipe("sum", (Source("alice/math"),))
    with pytest.raises(HubMergeError, match="dora"):
        merge_to_folder(recipe, tmp_path / "out", hub=client)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_those_the_repository_describes_are_refused_and_not_kept(
    hub_lfs: HubDouble, client: Hub, tmp_path: Path
) -> None:
    """A storage that hands out other bytes of the same length."""
    hub_lfs.add_repo("alice/math", GOOD)
    evil = SOUND[:-1] + b"\x01"
    hub_lfs.faults.add("GET /objects", status=200, body=evil)
    with pytest.raises(AdapterFormatError, match="sha256"):
        open_adapter("alice/math", hub=client)
    blobs = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size == len(SOUND)]
    assert blobs == []
    assert open_adapter("alice/math", hub=client).rank == 2


def test_an_answer_that_would_unpack_to_gigabytes_stays_packed(hub_lfs: HubDouble, client: Hub) -> None:
    hub_lfs.add_repo("alice/math", GOOD)
    bomb = gzip.compress(bytes(300_000_000), 9)
    hub_lfs.faults.add("GET /objects", status=206, body=bomb, headers={"Content-Encoding": "gzip"})
    tracemalloc.start()
    try:
        with pytest.raises(HubMergeError):
            open_headers("alice/math", hub=client)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subfolder", ["../up", "a/../../up", "/etc", "a\\..\\up", ".", "a//b", "a\nb", "\u202egnp"])
def test_a_subfolder_that_leads_out_of_the_repository_is_refused(subfolder: str, client: Hub) -> None:
    with pytest.raises(RecipeError):
        open_headers(f"alice/math:{subfolder}", hub=client)
    with pytest.raises((RecipeError, AdapterNotFound)):
        open_headers("alice/math", subfolder=subfolder, hub=client)


def test_an_index_on_the_hub_cannot_point_out_of_its_folder(hub_lfs: HubDouble, client: Hub) -> None:
    shard = "adapter_model-00001-of-00001.safetensors"
    index = json.dumps({"weight_map": {"x": f"../{WEIGHTS}"}}).encode()
    hub_lfs.add_repo(
        "alice/evil", {WEIGHTS: SOUND, f"a/{CONFIG}": config_of(), f"a/{INDEX}": index, f"a/{shard}": SOUND}
    )
    with pytest.raises(AdapterFormatError, match="out of its folder"):
        open_adapter("alice/evil:a", hub=client)


@pytest.mark.parametrize("name", ["README.md", "recipe.yaml", WEIGHTS, "hub_merge.json"])
def test_a_file_from_elsewhere_is_not_published_with_a_composite(
    name: str, hub_lfs: HubDouble, client: Hub, tmp_path: Path
) -> None:
    hub_lfs.add_repo("alice/math", GOOD)
    folder = tmp_path / "out"
    merge_to_folder(Recipe("sum", (Source("alice/math"),), base_model="acme/base"), folder, hub=client)
    (tmp_path / "secret").write_bytes((folder / name).read_bytes())
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "secret")
    writer = Hub(token=hub_lfs.token("alice"), endpoint=hub_lfs.endpoint, cache_dir=tmp_path / "cache")
    with pytest.raises(AdapterFormatError, match=f"{name} is a link"):
        push_folder(folder, "alice/out", hub=writer)
    assert not any(request.method == "POST" for request in hub_lfs.requests)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("repo_id", "../../etc"),
        ("repo_id", "/etc"),
        ("repo_id", ["alice/math"]),
        ("commit", "../../x"),
        ("subfolder", "../../x"),
        ("scalings", ["a", "b"]),
        ("weight", "1e400"),
        ("rank", "many"),
        ("name", {"a": 1}),
        ("license_details", {"texts": [[5, None]]}),
        ("license_details", {"texts": [], "found_in": ["card"]}),
        ("license_details", ["texts"]),
    ],
)
def test_a_record_that_points_elsewhere_or_holds_something_else_is_refused(
    field: str, value: object, hub_lfs: HubDouble, client: Hub, tmp_path: Path
) -> None:
    hub_lfs.add_repo("alice/math", GOOD)
    folder = tmp_path / "out"
    merge_to_folder(Recipe("sum", (Source("alice/math"),), base_model="acme/base"), folder, hub=client)
    record = json.loads((folder / "hub_merge.json").read_text())
    record["parents"][0][field] = value
    (folder / "hub_merge.json").write_text(json.dumps(record))
    with pytest.raises(RecipeError):
        verify(folder, hub=client)


@pytest.mark.leaks_on_purpose
def test_a_parent_that_a_record_gives_two_places_is_fetched_from_its_repository(
    hub_lfs: HubDouble, client: Hub, tmp_path: Path
) -> None:
    """``model`` names a local folder; only repository and commit count."""
    hub_lfs.add_repo("alice/math", GOOD)
    folder = tmp_path / "out"
    merge_to_folder(Recipe("sum", (Source("alice/math"),), base_model="acme/base"), folder, hub=client)
    record = json.loads((folder / "hub_merge.json").read_text())
    record["parents"][0]["model"] = str(tmp_path)
    (folder / "hub_merge.json").write_text(json.dumps(record))
    assert verify(folder, hub=client).passed


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_an_adapter_of_eight_billion_parameters_is_judged_by_less_than_two_percent_of_it(
    hub_lfs: HubDouble, client: Hub
) -> None:
    modules = {
        f"base_model.model.model.layers.{layer}.{name}": (16, shape)
        for layer in range(32)
        for name, shape in EIGHT_BILLION.items()
    }
    weights = weights_of(modules)
    config = config_of(r=16, target_modules=[name.rpartition(".")[2] for name in EIGHT_BILLION])
    hub_lfs.add_repo("alice/large", {CONFIG: config, WEIGHTS: weights})
    result = check_references(["alice/large"], hub=client)
    assert result.compatible and result.total_rank == 16
    ranges = [request.headers["range"] for request in hub_lfs.requests if request.status == 206]
    read = sum(int(end) - int(start) + 1 for start, end in (text.removeprefix("bytes=").split("-") for text in ranges))
    assert len(weights) > 160_000_000 and 0 < read < 0.02 * len(weights)
    assert not any(request.status == 200 and "/objects/" in request.path for request in hub_lfs.requests)
