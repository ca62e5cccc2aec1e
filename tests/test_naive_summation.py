"""The summation experiment, the whole way on a tiny model; and its statistics on data made to measure."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from hub_merge.adapter import Adapter  # noqa: E402
from tests.tiny_models import by_hand, tiny_base, tiny_gpt2, tiny_llama, tiny_tokenizer, write_questions  # noqa: E402

EXAMPLE = Path(__file__).parents[1] / "examples" / "naive_summation"
DOMAINS = ("finance", "math", "medicine")
SEEDS = {"finance": (0, 2), "math": (0, 1), "medicine": (0, 1)}

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

Program = Callable[..., ModuleType]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    """Return a program of the example, run with arguments if there are any."""
    monkeypatch.syspath_prepend(str(EXAMPLE))

    def run(name: str, *arguments: object) -> ModuleType:
        module = __import__(name)
        if arguments:
            monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
            module.main()
        return module

    return run


def questions(domain: str) -> list[tuple[str, str]]:
    return [(f"{domain} {number}?", f"{domain[:3]} is {number % 3}") for number in range(8)]


def laid_out(folder: Path, make: Callable[..., Any] = tiny_llama) -> None:
    """Write a base and the questions of every domain."""
    tiny_base(folder, make)
    for domain in DOMAINS:
        for split in ("train", "test"):
            write_questions(folder / domain / f"{split}.jsonl", questions(domain))


def test_the_whole_protocol_on_a_tiny_model(program: Program, tmp_path: Path) -> None:
    laid_out(tmp_path)
    trained = [((domain,), seed) for domain in DOMAINS for seed in SEEDS[domain]]
    trained += [(chosen, 0) for size in (2, 3) for chosen in combinations(DOMAINS, size)]
    common = ("--data", tmp_path, "--base", tmp_path / "base")
    for domains, seed in trained:
        place = tmp_path / "adapters" / f"{'_'.join(domains)}_s{seed}"
        program("train", *domains, *common, "--seed", seed, "--epochs", 8, "-o", place)
    journal, file = tmp_path / "rows.jsonl", tmp_path / "results.json"
    asked = ("--adapters", tmp_path / "adapters", *common, "--journal", journal, "--dtype", "float32", "-o", file)
    program("measure", *asked)
    results = json.loads(file.read_text())
    found = {subject["name"]: subject for subject in results["subjects"]}
    assert len(found) == 1 + 6 + 4 + 2 * (3 * 4 + 8)

    base = __import__("transformers").AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    answer, text = by_hand(base, tiny_tokenizer(), questions("math"))
    assert found["base"]["perplexity"]["math"]["answer"]["value"] == pytest.approx(answer, rel=1e-5)
    assert found["base"]["perplexity"]["math"]["text"]["value"] == pytest.approx(text, rel=1e-5)
    pair = found["sum of finance_s0 + math_s0"]
    ratio = pair["perplexity"]["math"]["answer"]["value"] / found["math_s0"]["perplexity"]["math"]["answer"]["value"]
    assert pair["against"]["math_s0"]["math"]["answer"]["ratio"] == pytest.approx(ratio)
    assert {"base", "finance_s0", "math_s0", "finance_math_s0"} == set(pair["against"])

    program("report", file, "-o", tmp_path)
    written = (tmp_path / "RESULTS.md").read_text()
    assert "| math + medicine | sum | 0, 0 |" in written
    assert "-9.10 %" in written
    assert (tmp_path / "change.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in written


def test_a_training_starts_where_its_seed_says(program: Program, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    laid_out(tmp_path, tiny_gpt2)
    program(
        "train",
        "math",
        "--data",
        tmp_path,
        "--base",
        tmp_path / "base",
        "--seed",
        3,
        "--epochs",
        0,
        "-o",
        tmp_path / "o",
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapter = Adapter.from_pretrained(tmp_path / "o")
    begun = program("geometry").starts(model, [2, 3])
    assert set(adapter.modules) == set(begun[3]) and len(adapter.modules) == 2 * 3  # c_proj of attention and MLP
    for module in adapter.modules:
        np.testing.assert_array_equal(adapter.factors(module).A, begun[3][module])
        assert not np.array_equal(begun[2][module], begun[3][module])
    assert not any("lora" in name for name, _ in model.named_parameters())
    written = json.loads((tmp_path / "o" / "train_log.json").read_text())
    assert written["recipe"]["domains"] == ["math"] and written["recipe"]["seed"] == 3


def points(program: Program, losses: Callable[[int, int], float], cosines: Callable[[int, int], float]) -> list[Any]:
    """Return points of six tasks with four seeds each."""
    Point = program("prediction").Point
    return [
        Point(f"{task // 2} {seed}", (str(task),), seed < 2, losses(task, seed), {"rms_cosine": cosines(task, seed)})
        for task in range(6)
        for seed in range(4)
    ]


def test_an_effect_of_tasks_is_told_from_an_effect_of_seeds(program: Program) -> None:
    prediction = program("prediction")
    noise = np.random.default_rng(5).normal(0, 1e-3, (6, 4))
    by_task = points(program, lambda t, s: t + noise[t, s], lambda t, s: float(t))
    assert prediction.between(by_task, "rms_cosine").p == pytest.approx(2 / 720)
    assert np.isnan(prediction.within(by_task, "rms_cosine").pearson)
    by_seed = points(program, lambda t, s: s + noise[t, s], lambda t, s: float(s) + 10 * (t % 2))
    assert prediction.within(by_seed, "rms_cosine").pearson == pytest.approx(1, abs=1e-3)
    assert prediction.within(by_seed, "rms_cosine").p < 0.01
    assert prediction.between(by_seed, "rms_cosine").p > 0.2


def test_coefficients_are_those_of_scipy(program: Program) -> None:
    stats = pytest.importorskip("scipy.stats")
    prediction = program("prediction")
    rng = np.random.default_rng(2)
    x, y = np.round(rng.normal(size=30), 1), np.round(rng.normal(size=30), 1)
    assert prediction.pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
    assert prediction.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_the_interval_resamples_whole_sums(program: Program) -> None:
    prediction = program("prediction")
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 1, (6, 4))
    found = prediction.overall(points(program, lambda t, s: t + noise[t, s], lambda t, s: float(t)), "rms_cosine")
    assert found.count == 24
    assert found.low < found.pearson < found.high


def test_the_effect_of_a_start_is_told_by_task(program: Program) -> None:
    rows = program("prediction").seed_effect(
        points(program, lambda t, s: np.log(1.5 if s < 2 else 1.25), lambda t, s: 0.2 if s < 2 else 0.1)
    )
    assert len(rows) == 6
    assert rows[0]["one_start"] == pytest.approx(0.5) and rows[0]["other"] == pytest.approx(0.25)
    assert (rows[0]["cosine_one_start"], rows[0]["cosine_other"]) == pytest.approx((0.2, 0.1))
