"""The comparison of LEGO and the tuned merges, the whole way on a tiny model, as the commands of the examples."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from tests.tiny_models import by_hand, tiny_base, tiny_tokenizer, trained, write_questions  # noqa: E402

EXAMPLES = Path(__file__).parents[1] / "examples"
DOMAINS = ("math", "medicine", "finance")
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]
MIXED = {
    "math_r8_rslora": {"r": 8, "lora_alpha": 16, "use_rslora": True},
    "finance_r2_qv": {"r": 2, "target_modules": ["q_proj", "v_proj"]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, the adapters that the examples name and the questions of each domain."""
    place = tmp_path_factory.mktemp("examples")
    base = tiny_base(place)
    names = ["_".join(chosen) for size in (1, 2, 3) for chosen in combinations(DOMAINS, size)]
    for seed, name in enumerate([*names, *MIXED]):
        trained(base, place / name, seed, **{"r": 4, "target_modules": PROJECTIONS, **MIXED.get(name, {})})
    for domain in DOMAINS:
        for split, count in (("train", 6), ("test", 4)):
            write_questions(place / domain / f"{split}.jsonl", rows(domain, count))
    return place


def rows(domain: str, count: int) -> list[tuple[str, str]]:
    return [(f"{domain} {number}?", f"{domain[:3]} is {number % 3}") for number in range(count)]


def told(example: str, program: str, folder: Path, out: Path, *options: object) -> tuple[dict[str, Any], str]:
    """Run a program of an example; return its results and its report."""
    out.mkdir(exist_ok=True)
    common = ("--adapters", folder, "--data", folder, "--base", folder / "base", "--dtype", "float32", "-o", out)
    command = [sys.executable, EXAMPLES / example / program, *common, *options]
    subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, timeout=300)
    return json.loads((out / "results.json").read_text()), (out / "RESULTS.md").read_text()


def of_peft(folder: Path, name: str, domain: str) -> float:
    """Return the answer perplexity of a trained adapter, worn by PEFT and read token by token."""
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    model = peft.PeftModel.from_pretrained(base, folder / name).eval()
    return by_hand(model, tiny_tokenizer(), rows(domain, 2))[0]


def test_lego_beside_the_other_methods(folder: Path, tmp_path: Path) -> None:
    results, written = told("lego", "compare.py", folder, tmp_path, "--rows", 2, "--journal", tmp_path / "rows.jsonl")
    found = {(subject["group"], subject["name"]): subject for subject in results["subjects"]}
    assert len(found) == len(results["subjects"])
    for domain in DOMAINS:
        figure = found["reference", "merged data"]["perplexity"][domain]["value"]
        assert figure == pytest.approx(of_peft(folder, "math_medicine_finance", domain), rel=1e-4)
    same = found["equal rank", "lego, svd form"]["mean"]
    assert found["gauge", "lego, svd form, another basis"]["mean"] == pytest.approx(same, rel=1e-3)
    assert found["gauge", "lego, faithful, signs flipped"]["mean"] != pytest.approx(same, rel=1e-3)
    for title in ("Methods at rank 4", "Adapters of different ranks", "One adapter, compressed", "What was seen"):
        assert f"## {title}" in written


def test_tuned_composites_beside_untuned_ones_and_merged_data(folder: Path, tmp_path: Path) -> None:
    work = (
        "--work",
        tmp_path / "work",
        "--rows",
        2,
        "--untuned-rows",
        1,
        "--closed-rows",
        3,
        "--learn-rows",
        4,
        "--medicine-rows",
        6,
    )
    results, written = told("tuned", "measure.py", folder, tmp_path, *work, "--methods", "svd", "lego")
    assert [group["domains"] for group in results["groups"]] == [
        list(chosen) for size in (2, 3) for chosen in combinations(DOMAINS, size)
    ]
    for group in results["groups"]:
        entries = {entry["name"]: entry for entry in group["composites"]}
        assert set(entries) == {"merged data", "tuned, gradient", "tuned, closed", "svd", "lego"}
        assert [set(entries[name]["rows"].values()) for name in ("tuned, closed", "lego")] == [{2}, {1}]
        figures = [of_peft(folder, "_".join(group["domains"]), domain) for domain in group["domains"]]
        assert entries["merged data"]["mean"]["value"] == pytest.approx(sum(figures) / len(figures), rel=1e-4)
        for how, count, medicine in (("closed", 3, 3), ("gradient", 4, 6)):
            rows_of = {domain["name"]: domain["rows"] for domain in group["tuning"][how]["domains"]}
            assert rows_of == {name: medicine if name == "medicine" else count for name in group["domains"]}
        assert f"## {' + '.join(group['domains'])}" in written
