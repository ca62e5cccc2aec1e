"""What one run may take is judged before the work begins, and each limit says how to raise it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from hub_merge.adapter import Adapter, LoraFactors
from hub_merge.budgets import Budget, budget
from hub_merge.errors import BudgetExceeded, RecipeError
from hub_merge.hub import Hub
from hub_merge.pipeline import check_references, merge, score_references
from hub_merge.sources import open_adapter, open_headers
from tests.helpers import adapter_of, peft_tensors, random_factors, write_adapter
from tests.hub_double import HubDouble

MODULE = "h.0.c_attn"


def unreadable(name: str, ranks: dict[str, int]) -> Adapter:
    """An adapter whose numbers must not be asked for."""

    def load(module: str) -> LoraFactors:
        raise AssertionError(module)

    parts = {m: random_factors(np.random.default_rng(0), (6, 5), rank) for m, rank in ranks.items()}
    return Adapter(name=name, modules=adapter_of(name, parts).modules, load=load, base_model="acme/base")


def test_without_variables_the_limits_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Budget.__slots__:
        monkeypatch.delenv(f"HUB_MERGE_{name.upper()}", raising=False)
    assert budget() == Budget(max_rank=4096, max_bytes=16_000_000_000, max_adapters=64, min_free_disk=1_000_000_000)


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "1e3", "٣"])
def test_a_limit_that_is_no_whole_number_is_told(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_MERGE_MAX_RANK", value)
    with pytest.raises(RecipeError, match="HUB_MERGE_MAX_RANK"):
        budget()


def follow(error: BudgetExceeded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variable as the remedy says."""
    variable, value = re.findall(r"(HUB_MERGE_\w+)=(\d+)", error.remedy or "")[0]
    monkeypatch.setenv(variable, value)


def test_a_rank_is_judged_by_the_headers_and_raised_as_the_error_says(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUB_MERGE_MAX_RANK", "1")
    folder = write_adapter(tmp_path / "math", peft_tensors(rng, {MODULE: 2}))
    with pytest.raises(BudgetExceeded, match="math has rank 2; the limit is 1") as refused:
        Adapter.from_pretrained(folder)
    follow(refused.value, monkeypatch)
    assert Adapter.from_pretrained(folder).rank == 2


def test_ranks_of_a_merge_are_summed_before_any_number_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_MERGE_MAX_RANK", "6")
    adapters = [unreadable("a", {MODULE: 3}), unreadable("b", {MODULE: 3}), unreadable("c", {MODULE: 1, "x": 6})]
    with pytest.raises(BudgetExceeded, match="The exact sum has rank 7; the limit is 6"):
        merge(adapters)


def test_too_many_adapters_are_refused_before_one_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_MERGE_MAX_ADAPTERS", "2")
    hub = Hub(token=False, endpoint="http://127.0.0.1:9", offline=True)
    for asked in (check_references, score_references):
        with pytest.raises(BudgetExceeded, match="There are 3 adapters; the limit is 2"):
            asked(["./absent", "./absent", "./absent"], hub=hub)


def test_a_small_file_cannot_become_a_large_composite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One module of a large rank pads all others: 24 numbers of rank 1 become 8 x 22 of rank 8."""
    rng = np.random.default_rng(0)
    parts = {"x": random_factors(rng, (6, 5), 8), "y": random_factors(rng, (6, 5), 1)}
    monkeypatch.setenv("HUB_MERGE_MAX_BYTES", str(4 * 8 * 22))
    composite = merge([adapter_of("a", parts, target_modules=("x", "y"))], dtype="float32")
    with pytest.raises(BudgetExceeded, match="A composite of rank 8 in every module takes") as refused:
        composite.save_pretrained(tmp_path / "out")
    assert not list(tmp_path.iterdir())
    follow(refused.value, monkeypatch)
    assert (composite.save_pretrained(tmp_path / "out") / "adapter_model.safetensors").stat().st_size > 704


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path).free
    monkeypatch.setenv("HUB_MERGE_MIN_FREE_DISK", str(2 * free))
    composite = merge([adapter_of("a", {MODULE: random_factors(np.random.default_rng(0), (6, 5), 2)})])
    with pytest.raises(BudgetExceeded, match="HUB_MERGE_MIN_FREE_DISK"):
        composite.save_pretrained(tmp_path / "deep" / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("variable", "value"), [("MAX_BYTES", "100"), ("MIN_FREE_DISK", str(10**18))])
def test_a_download_is_judged_before_it_begins(
    variable: str, value: str, hub_lfs: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_adapter(tmp_path / "math", peft_tensors(np.random.default_rng(0), {MODULE: 2}))
    hub_lfs.add_repo("alice/math", {path.name: path.read_bytes() for path in folder.iterdir()})
    client = Hub(token=False, endpoint=hub_lfs.endpoint, cache_dir=tmp_path / "cache", retries=0)
    monkeypatch.setenv(f"HUB_MERGE_{variable}", value)
    with pytest.raises(BudgetExceeded, match=f"HUB_MERGE_{variable}"):
        open_adapter("alice/math", hub=client)
    assert not any("/resolve/" in request.path for request in hub_lfs.requests) and not (tmp_path / "cache").exists()
    if variable == "MAX_BYTES":
        with pytest.raises(BudgetExceeded, match="alice/math"):
            open_headers("alice/math", hub=client)
