"""Real adapters of the community: each merges with its like and is proved, or is refused with the reason.

What should happen is derived here from the files alone, with the safetensors library, torch and dense float64.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from hub_merge.adapter import Adapter, Origin
from hub_merge.bases import read_base
from hub_merge.errors import AdapterError, AdapterFormatError, HubMergeError, IncompatibleAdapters, UnsupportedAdapter
from hub_merge.formats.mlx import adapter_from_mlx
from hub_merge.formats.peft import adapter_from_tensors, parse_config, read_object
from hub_merge.formats.tensors import ArrayStore
from hub_merge.hub import Hub
from hub_merge.pipeline import compress, merge, verify
from hub_merge.ranks import Profile
from hub_merge.scores import score
from tests.helpers import Dense
from tests.verdicts import TABLE, table

pytestmark = pytest.mark.wild

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
POINTER = b"version https://git-lfs"


@pytest.fixture(scope="module")
def hub() -> Hub:
    """A client that cannot reach anything: local adapters never need the Hub."""
    return Hub(token=False, endpoint="http://127.0.0.1:9", offline=True)


def folders(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.rglob(CONFIG))


@cache
def config_of(folder: Path) -> Mapping[str, Any]:
    content: Mapping[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8-sig"))
    return content


@cache
def shapes_of(folder: Path) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of every tensor, by the safetensors library."""
    with safe_open(folder / WEIGHTS, framework="numpy") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


@cache
def lora_fields() -> frozenset[str]:
    """Return the fields that PEFT itself writes into a LoRA's config."""
    peft = pytest.importorskip("peft")
    return frozenset(field.name for field in fields(peft.LoraConfig))


def is_plain(folder: Path) -> bool:
    """Whether the files hold nothing but the factors of a plain LoRA, of the rank that the config states."""
    config = config_of(folder)
    if config.get("peft_type") != "LORA" or not (folder / WEIGHTS).is_file():
        return False
    if any(value and name not in lora_fields() for name, value in config.items()):
        return False
    shapes = shapes_of(folder)
    return all(
        (".lora_A.weight" in key and shape[0] == config["r"]) or (".lora_B.weight" in key and shape[1] == config["r"])
        for key, shape in shapes.items()
    )


def fit(first: Path, second: Path) -> bool:
    """Whether two plain adapters of one stated base have one task and one shape in each shared module."""
    tasks = {config_of(folder).get("task_type") for folder in (first, second)} - {None}
    a, b = shapes_of(first), shapes_of(second)
    end = lambda key: -1 if ".lora_A." in key else 0
    return len(tasks) <= 1 and all(a[key][end(key)] == b[key][end(key)] for key in a.keys() & b.keys())


def opened(*paths: Path) -> list[Adapter]:
    return [Adapter.from_pretrained(path) for path in paths]


def dense_deltas(folder: Path) -> dict[str, Dense]:
    """Return the deltas of an adapter without patterns, read by torch and multiplied dense in float64."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    if path.is_file():
        tensors = load_file(path)
    else:
        tensors = torch.load(folder / "adapter_model.bin", map_location="cpu", weights_only=True)
    scaling = config_of(folder)["lora_alpha"] / config_of(folder)["r"]
    return {
        key.removesuffix(".lora_A.weight"): scaling
        * (tensors[key.replace("lora_A", "lora_B")].double().numpy() @ tensors[key].double().numpy())
        for key in tensors
        if key.endswith(".lora_A.weight")
    }


# --- opening ----------------------------------------------------------------------------------------------------------


def test_every_real_folder_opens_or_is_refused_for_what_its_files_are(wild: Path) -> None:
    found = folders(wild / "adapters_real")
    assert len(found) > 50
    for folder in found:
        if config_of(folder).get("peft_type") != "LORA":
            with pytest.raises(UnsupportedAdapter, match="peft_type"):
                Adapter.from_pretrained(folder)
        elif not (folder / WEIGHTS).is_file():
            with pytest.raises(UnsupportedAdapter, match="pickle"):
                Adapter.from_pretrained(folder)
        else:
            adapter = Adapter.from_pretrained(folder)
            pairs = [key for key in shapes_of(folder) if ".lora_A." in key]
            assert len(adapter.modules) + sum(f.code == "rank_mismatch" for f in adapter.findings) >= len(pairs) > 0
            assert (not [f for f in adapter.findings if f.severity == "problem"]) is is_plain(folder), folder.name


def test_every_verdict_is_the_recorded_one_and_has_a_reason(wild: Path) -> None:
    """Opening, checking and judging all of them takes seconds; nothing crashes, nothing hangs."""
    assert table(wild) == TABLE.read_text(encoding="utf-8"), "look at each change, then run `python -m tests.verdicts`"
    lines = TABLE.read_text(encoding="utf-8").splitlines()[8:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert len(rows) > 70
    assert all(reason for _, _, verdict, reason in rows if verdict == "refused")


def test_every_broken_folder_is_refused_with_the_right_reason(wild: Path) -> None:
    found = folders(wild / "adapters_broken")
    assert len(found) >= 10
    for folder in found:
        names = [name for name in (CONFIG, WEIGHTS) if (folder / name).read_bytes().startswith(POINTER)]
        assert names, f"{folder} is broken in a way that this test does not know"
        with pytest.raises(AdapterFormatError, match="git-lfs pointer") as refused:
            Adapter.from_pretrained(folder)
        assert names[0] in refused.value.problem and str(folder) in refused.value.problem
        assert "git lfs pull" in (refused.value.remedy or "")


def test_every_real_config_is_read_or_refused_by_a_typed_error(wild: Path) -> None:
    paths = sorted((wild / "configs").glob("*.json"))
    assert len(paths) > 150
    read = 0
    for path in paths:
        text = path.read_bytes()
        try:
            content = json.loads(text.decode("utf-8-sig"))
        except ValueError:
            content = None
        if isinstance(content, dict) and "lora_parameters" in content:
            mlx = adapter_from_mlx(read_object(text), ArrayStore({}), name=path.stem, origin=Origin())
            assert [found.code for found in mlx.findings] == ["no_factors"]
            assert mlx.base_model == content["model"]
        if not isinstance(content, dict) or content.get("peft_type") != "LORA":
            with pytest.raises(AdapterError) as refused:
                parse_config(text)
            assert refused.value.remedy, path.name
            continue
        config = parse_config(text)
        assert config == content
        adapter = adapter_from_tensors(config, ArrayStore({}), name=path.stem)
        assert "no_factors" in {found.code for found in adapter.findings}
        assert adapter.task_type == content.get("task_type")
        read += 1
    assert read > 100


# --- merging ----------------------------------------------------------------------------------------------------------


def test_every_pair_of_one_base_merges_and_verifies_or_is_refused_with_the_reason(
    wild: Path, tmp_path: Path, hub: Hub
) -> None:
    groups: dict[str, list[Path]] = {}
    for folder in folders(wild / "adapters_real"):
        groups.setdefault(read_base(config_of(folder).get("base_model_name_or_path")).label, []).append(folder)
    pairs = [(base, *pair) for base, group in groups.items() for pair in combinations(group, 2)]
    assert len(pairs) > 100
    merged, should = set(), set()
    for number, (base, first, second) in enumerate(pairs):
        if base != "not stated" and is_plain(first) and is_plain(second) and fit(first, second):
            should.add((first, second))
        try:
            output = merge(opened(first, second)).save_pretrained(tmp_path / str(number))
        except IncompatibleAdapters as refused:
            problems = refused.report.problems
            assert problems and all(found.code and found.seen and found.remedy for found in problems)
        except HubMergeError as refused:
            assert refused.remedy
        else:
            assert verify(output, parents=[first, second], hub=hub).passed
            merged.add((first, second))
    assert merged == should
    assert len(merged) >= 7


def test_neighbours_of_different_bases_are_refused_for_their_bases(wild: Path) -> None:
    plain = [
        folder
        for folder in folders(wild / "adapters_real")
        if is_plain(folder) and read_base(config_of(folder).get("base_model_name_or_path")).model_id
    ]
    refused_pairs = 0
    for first, second in pairwise(plain):
        bases = [read_base(config_of(folder)["base_model_name_or_path"]).model_id for folder in (first, second)]
        if bases[0] == bases[1]:
            continue
        with pytest.raises(IncompatibleAdapters) as refused:
            merge(opened(first, second))
        assert "base_differs" in {found.code for found in refused.value.report.problems}
        refused_pairs += 1
    assert refused_pairs >= 10


def test_adapters_of_one_project_merge_whatever_their_rank_scaling_and_modules(
    wild: Path, tmp_path: Path, hub: Hub
) -> None:
    """Ranks 2, 4 and 8, with and without rsLoRA, two or four projections; and DoRA is refused."""
    names = ("math", "finance_r2_qv", "math_r8_rslora")
    parents = [wild / "adapters" / name for name in names]
    weights = [1.0, -0.5, 2.0]
    output = merge(opened(*parents), weights=weights).save_pretrained(tmp_path / "out")
    assert verify(output, parents=parents, hub=hub).passed
    wanted: dict[str, Any] = {}
    for folder, weight in zip(parents, weights, strict=True):
        rank_too_many = np.sqrt(config_of(folder)["r"]) if config_of(folder)["use_rslora"] else 1.0
        for module, delta in dense_deltas(folder).items():
            wanted[module] = wanted.get(module, 0.0) + weight * rank_too_many * delta
    written = dense_deltas(output)
    assert written.keys() == wanted.keys() and len(wanted) == 120
    for module, delta in wanted.items():
        assert np.linalg.norm(written[module] - delta) <= 1e-6 * np.linalg.norm(delta), module
    with pytest.raises(IncompatibleAdapters) as refused:
        merge(opened(parents[0], wild / "adapters" / "medicine_dora"))
    assert "dora" in {found.code for found in refused.value.report.problems}


# --- ranks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["portable", "peft"])
def test_a_real_adapter_is_compressed_to_the_ranks_that_its_dense_deltas_call_for(
    profile: Profile, wild: Path, hub: Hub, tmp_path: Path
) -> None:
    """Its rsLoRA scaling is one number for all modules, so that it moves no share of the energy."""
    source = wild / "adapters" / "math_r8_rslora"
    squares = {
        module.removeprefix("base_model.model."): np.linalg.eigvalsh(delta.T @ delta)[:-9:-1]
        for module, delta in dense_deltas(source).items()
    }
    total = sum(values.sum() for values in squares.values())
    shares = np.cumsum(sum(squares.values()) / total)
    wanted = int(np.searchsorted(shares, 0.9)) + 1
    folder = compress(Adapter.from_pretrained(source), energy=0.9, profile=profile).save_pretrained(tmp_path / "small")
    ranks = {module: spec.rank for module, spec in Adapter.from_pretrained(folder).modules.items()}
    kept = sum(squares[module][:rank].sum() for module, rank in ranks.items()) / total
    result = verify(folder, parents=[source], hub=hub)
    assert result.passed and (proof := result.proof) is not None
    assert proof.energy_kept == pytest.approx(kept, rel=1e-5) and kept >= 0.9 - 1e-8
    if profile == "portable":
        assert set(ranks.values()) == {wanted} and 1 < wanted < 8
    else:
        pieces = sorted((value for values in squares.values() for value in values[1:]), reverse=True)
        first = sum(values[0] for values in squares.values())
        fewest = len(ranks) + int(np.searchsorted(first + np.cumsum(pieces), 0.9 * total)) + 1
        assert sum(ranks.values()) == fewest < wanted * len(ranks)


# --- scores -----------------------------------------------------------------------------------------------------------


def rms_cosines(adapters: list[Adapter]) -> dict[tuple[str, str], float | None]:
    return {(pair.first, pair.second): pair.rms_cosine for pair in score(adapters).pairs}


def named(root: Path, *names: str) -> list[Adapter]:
    return [Adapter.from_pretrained(root / name).renamed(name) for name in names]


def test_three_tasks_of_one_author_overlap_by_a_tenth(wild: Path) -> None:
    root = wild / "adapters_real" / "justbautista__fine-tuning"
    values = rms_cosines(named(root, "emotion__lora_model", "keywords__lora_model", "therapist__lora_model")).values()
    assert all(value is not None and 0.10 <= value <= 0.12 for value in values)


def test_three_runs_of_one_task_are_nearly_one(wild: Path) -> None:
    root = wild / "adapters_real" / "ao-wei__gemma3-270m-svg-lora-partb"
    values = rms_cosines(named(root, "adapter", "adapter_seed123", "adapter_curriculum_stage1")).values()
    assert all(value is not None and 0.97 <= round(value, 3) <= 0.998 for value in values)


def test_the_three_domains_of_this_project_have_the_cosines_that_were_measured(wild: Path) -> None:
    assert rms_cosines(named(wild / "adapters", "math", "medicine", "finance")) == {
        ("math", "medicine"): pytest.approx(0.201, abs=5e-4),
        ("math", "finance"): pytest.approx(0.178, abs=5e-4),
        ("medicine", "finance"): pytest.approx(0.157, abs=5e-4),
    }


def test_gpt2_adapters_of_different_authors_score_as_their_dense_deltas_do(wild: Path) -> None:
    """Also those that come as pickles, through torch and ``from_state_dict``; one of them was never trained.

    All pairs but one lie between 0.0005 and 0.027. The one has two classifiers of one notebook and lies at 0.11.
    """
    torch = pytest.importorskip("torch")
    found = [f for f in folders(wild / "adapters_real") if config_of(f).get("base_model_name_or_path") == "gpt2"]
    assert len(found) >= 7
    adapters, units = [], {}
    for folder in found:
        name = folder.parent.name
        if (folder / WEIGHTS).is_file():
            adapters.append(Adapter.from_pretrained(folder).renamed(name))
        else:
            state = torch.load(folder / "adapter_model.bin", map_location="cpu", weights_only=True)
            adapters.append(Adapter.from_state_dict(state, config_of(folder), name=name))
        units[name] = {module: d / np.linalg.norm(d) for module, d in dense_deltas(folder).items() if d.any()}
    outside = []
    for (first, second), value in rms_cosines(adapters).items():
        shared = units[first].keys() & units[second].keys()
        cosines = [np.vdot(units[first][module], units[second][module]) for module in shared]
        if not cosines:
            assert value is None
            continue
        assert value == pytest.approx(np.sqrt(np.mean(np.square(cosines))), rel=1e-9)
        if not 0.0005 <= value <= 0.027:
            outside.append(value)
    assert outside == [pytest.approx(0.1135, abs=5e-5)]
