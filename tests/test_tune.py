"""Merges that are chosen by measurement, on a tiny model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from click.testing import CliRunner, Result  # noqa: E402

from hub_merge import Adapter, merge  # noqa: E402
from hub_merge.adapter import LoraFactors  # noqa: E402
from hub_merge.cli.app import cli  # noqa: E402
from hub_merge.errors import EvaluationError, MergeError, ProofFailed, RecipeError  # noqa: E402
from hub_merge.evaluate import (  # noqa: E402
    Encoded,
    LanguageModel,
    QuestionFormat,
    QuestionSet,
    mean_perplexity,
    read_questions,
)
from hub_merge.hub import Hub  # noqa: E402
from hub_merge.mixtures import Mixture, read_mixtures, write_mixtures  # noqa: E402
from hub_merge.provenance import read_record  # noqa: E402
from hub_merge.recipe import Recipe, Source  # noqa: E402
from hub_merge.scores import parents_of  # noqa: E402
from hub_merge.tune import Steps, closest, learned, learning, responses, tune  # noqa: E402
from hub_merge.tune.closed import Frame, frame_of  # noqa: E402
from hub_merge.tune.learning import _drawn  # noqa: E402
from hub_merge.tune.session import tune_to_folder  # noqa: E402
from tests.helpers import random_factors  # noqa: E402
from tests.hub_double import HubDouble  # noqa: E402
from tests.tiny_models import TEXTS, tiny_base, tiny_gpt2, tiny_llama, tiny_tokenizer, trained, write_questions  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

NAMES = ("one", "two")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, two adapters and the questions of a domain each."""
    place = tmp_path_factory.mktemp("tune")
    base = tiny_base(place)
    for seed, name in enumerate(NAMES):
        trained(base, place / name, seed, target_modules=["q_proj", "v_proj"])
    for domain, rows in zip(NAMES, (TEXTS[:2], TEXTS[2:]), strict=True):
        write_questions(place / f"{domain}.jsonl", rows)
    return place


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return LanguageModel.load(folder / "base", dtype="float32")


def adapters(folder: Path) -> list[Adapter]:
    return [Adapter.from_pretrained(folder / name) for name in NAMES]


def own(domains: dict[str, Any]) -> dict[str, list[int]]:
    """Return that each domain is for the adapter at its place."""
    return {name: [place] * len(rows) for place, (name, rows) in enumerate(domains.items())}


def sets(folder: Path) -> list[QuestionSet]:
    return [read_questions(folder / f"{name}.jsonl") for name in NAMES]


def measured(model: LanguageModel, adapter: Adapter, data: list[QuestionSet]) -> float:
    """Return the mean of the domains' answer perplexities, measured once more."""
    with model.wearing(adapter):
        return mean_perplexity({entry.name: model.losses(entry.questions) for entry in data}, resamples=1).value


# --- the closed form --------------------------------------------------------------------------------------------------


def dense_error(parts: list[LoraFactors], inputs: list[Any], delta: Any) -> float:
    """Return what the closed form makes small, from dense deltas and the inputs themselves."""
    return sum(
        float(np.square((delta - part.delta()) @ X).sum() / X.shape[1]) for part, X in zip(parts, inputs, strict=True)
    )


def products(parts: list[LoraFactors], inputs: list[Any]) -> list[Any]:
    rows = np.concatenate([part.A for part in parts]).astype(np.float64)
    return [rows @ X @ X.T @ rows.T / X.shape[1] for X in inputs]


def case(seed: int) -> tuple[list[LoraFactors], list[Any]]:
    rng = np.random.default_rng(seed)
    parts = [random_factors(rng, shape=(9, 11), rank=rank) for rank in (2, 3)]
    mix = [rng.standard_normal((11, 11)) for _ in parts]
    return parts, [one @ rng.standard_normal((11, 40)) for one in mix]


def of(parts: list[LoraFactors], mixture: Mixture) -> Any:
    """Return the dense delta that a mixture makes."""
    B = np.concatenate([part.scaling * part.B.astype(np.float64) for part in parts], axis=1)
    A = np.concatenate([part.A for part in parts]).astype(np.float64)
    return B @ mixture.out @ mixture.inward @ A


def test_the_closed_form_equals_least_squares_on_the_inputs_themselves() -> None:
    parts, inputs = case(0)
    got = of(parts, closest(parts, products(parts, inputs), 5, ridge=0))
    B = np.concatenate([part.scaling * part.B for part in parts], axis=1).astype(np.float64)
    A = np.concatenate([part.A for part in parts]).astype(np.float64)
    left = np.concatenate([np.kron((A @ X).T / np.sqrt(X.shape[1]), B) for X in inputs])
    right = np.concatenate(
        [((p.delta() @ X) / np.sqrt(X.shape[1])).T.ravel() for p, X in zip(parts, inputs, strict=True)]
    )
    M = np.linalg.lstsq(left, right, rcond=None)[0].reshape(5, 5).T
    np.testing.assert_allclose(got, B @ M @ A, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_no_step_from_the_closed_form_of_a_rank_makes_it_better(rank: int) -> None:
    parts, inputs = case(1)
    best = closest(parts, products(parts, inputs), rank, ridge=0)
    least = dense_error(parts, inputs, of(parts, best))
    rng = np.random.default_rng(2)
    for size in (1e-4, 1e-2, 1.0):
        for _ in range(20):
            out = best.out + size * rng.standard_normal(best.out.shape)
            inward = best.inward + size * rng.standard_normal(best.inward.shape)
            assert dense_error(parts, inputs, of(parts, Mixture(out, inward))) >= least
    plain = merge_of(parts, rank)
    assert np.linalg.matrix_rank(of(parts, best), tol=1e-9) == rank
    assert least < dense_error(parts, inputs, plain)


def merge_of(parts: list[LoraFactors], rank: int) -> Any:
    """Return the truncated sum by dense SVD."""
    U, S, Vt = np.linalg.svd(sum(part.delta() for part in parts))
    return (U[:, :rank] * S[:rank]) @ Vt[:rank]


def test_adapters_whose_inputs_never_meet_are_kept_whole() -> None:
    rng = np.random.default_rng(3)
    parts = [random_factors(rng, shape=(9, 12), rank=2) for _ in range(2)]
    inputs = [np.zeros((12, 50)) for _ in parts]
    inputs[0][:6], inputs[1][6:] = rng.standard_normal((2, 6, 50))
    for place, part in enumerate(parts):
        part.A[:, slice(6, 12) if place == 0 else slice(0, 6)] = 0
    got = of(parts, closest(parts, products(parts, inputs), 4, ridge=1e-9))
    np.testing.assert_allclose(got, parts[0].delta() + parts[1].delta(), atol=1e-6)


@pytest.mark.parametrize("share", [1e-3, 1e3])
def test_the_closed_form_does_not_depend_on_which_factor_is_the_large_one(share: float) -> None:
    parts, inputs = case(5)
    other = [parts[0], LoraFactors(share * parts[1].A, parts[1].B / share, parts[1].scaling)]
    one, two = (of(held, closest(held, products(held, inputs), 3)) for held in (parts, other))
    np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-9)


def test_units_that_never_respond_are_no_reason_for_nan() -> None:
    parts, _ = case(4)
    assert np.isfinite(of(parts, closest(parts, [np.zeros((5, 5))] * 2, 2))).all()


# --- what is measured on the model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "head", "gpt2"])
def test_responses_are_those_of_the_inputs_that_peft_gives_each_module(kind: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    base = (tiny_gpt2 if kind == "gpt2" else tiny_llama)(len(tokenizer))
    targets = {"llama": ["q_proj", "v_proj"], "head": ["q_proj", "lm_head"], "gpt2": ["c_attn"]}[kind]
    base.name_or_path = base.config._name_or_path = "tiny/base"
    places = [
        trained(base, tmp_path / n, s, target_modules=targets, fan_in_fan_out=kind == "gpt2")
        for s, n in enumerate(NAMES)
    ]
    parents = [Adapter.from_pretrained(place) for place in places]
    model = LanguageModel(base, tokenizer, label="tiny", batch_tokens=60)
    rows = model.encode(sets_of(TEXTS))
    got = responses(model, parents, [rows[:2], rows[2:]])
    seen: dict[str, list[Any]] = {}
    worn = peft.PeftModel.from_pretrained(base, places[1])
    modules = dict(worn.base_model.model.named_modules())
    for name in parents[1].modules:
        modules[name].register_forward_hook(
            lambda _, inputs, __, name=name: seen.setdefault(name, []).append(inputs[0][0].detach().numpy())
        )
    with torch.no_grad():
        for row in rows[2:]:
            worn(torch.tensor([row.tokens]))
    assert seen.keys() == got.keys()
    for name, entries in seen.items():
        X = np.concatenate(entries).astype(np.float64)
        A = np.concatenate([part.A for part in parents_of(parents, name)]).astype(np.float64)
        np.testing.assert_allclose(got[name][1], A @ X.T @ X @ A.T / len(X), rtol=2e-4, atol=1e-5)


def begun(parents: list[Adapter], found: dict[str, Any]) -> tuple[dict[str, Mixture], dict[str, Frame]]:
    """Return where learning starts, and the coordinates that it moves in."""
    parts = {name: parents_of(parents, name) for name in found}
    start = {name: closest(parts[name], products, 2) for name, products in found.items()}
    return start, {name: frame_of(parts[name], products) for name, products in found.items()}


def sets_of(rows: list[tuple[str, str]]) -> list[Any]:
    return [QuestionFormat()({"question": question, "answer": answer}) for question, answer in rows]


def test_learning_makes_the_rows_cheaper_and_leaves_the_model_alone(folder: Path, model: LanguageModel) -> None:
    parents, data = adapters(folder), sets(folder)
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    encoded = {entry.name: model.encode(entry.questions) for entry in data}
    found = responses(model, parents, list(encoded.values()))
    start, frames = begun(parents, found)
    owners, steps = own(encoded), Steps(epochs=15, batch=2, rate=0.05)
    end = learned(model, parents, start, frames, encoded, owners, steps=steps)
    plain = merge(parents, "sum", rank=2)
    values = [measured(model, merge(parents, "mix", mixtures=mixtures), data) for mixtures in (start, end)]
    assert values[1] < 0.97 * values[0]
    assert values[1] < measured(model, plain, data)
    assert all(torch.equal(weight, before[name]) for name, weight in model.model.state_dict().items())
    assert all(weight.requires_grad for weight in model.model.parameters())
    again = learned(model, parents, start, frames, encoded, owners, steps=steps)
    assert all(np.array_equal(end[name].out, again[name].out) for name in end)


@pytest.mark.parametrize("distill", [0.0, 0.5, 1.0])
def test_learning_goes_down_the_mean_loss_of_the_domains_however_rows_are_batched(
    folder: Path, model: LanguageModel, monkeypatch: pytest.MonkeyPatch, distill: float
) -> None:
    """The gradient of one step over all rows is that of the losses; steps of one row each add up to it.

    The losses are computed from whole logits of one row at a time, with adapters worn as they are measured.
    """
    parents, rate, vocabulary = adapters(folder), 1e-3, model.model.config.vocab_size
    rows = {"one": [*TEXTS[:3], ("Again?", "three and three and three and three again")], "two": TEXTS[3:]}
    data = [QuestionSet(name, sets_of(texts), "train", QuestionFormat()) for name, texts in rows.items()]
    encoded = {entry.name: model.encode(entry.questions) for entry in data}
    owners = {"one": [0, 1, 0, 0], "two": [1] * len(TEXTS[3:])}
    found = responses(model, parents, list(encoded.values()))
    start, frames = begun(parents, found)
    monkeypatch.setattr(torch.optim, "Adam", lambda weights, rate, betas: torch.optim.SGD(weights, rate))
    monkeypatch.setattr(learning, "_share", lambda step, count, warm_up: 1.0)

    def coordinates(mixtures: Any) -> dict[str, list[Any]]:
        return {name: [frames[name].left @ one.out, one.inward @ frames[name].right] for name, one in mixtures.items()}

    begin = coordinates(start)
    sizes = {name: [np.sqrt(np.square(one).mean()) for one in both] for name, both in begin.items()}

    def moved(batch: int) -> dict[str, list[Any]]:
        steps = Steps(epochs=1, batch=batch, rate=rate, distill=distill)
        end = coordinates(learned(model, parents, start, frames, encoded, owners, steps=steps))
        return {name: [(end[name][n] - both[n]) / sizes[name][n] for n in (0, 1)] for name, both in begin.items()}

    def value(step: float, along: dict[str, list[Any]]) -> float:
        there = {}
        for name, both in begin.items():
            out, inward = (both[n] + step * sizes[name][n] * along[name][n] for n in (0, 1))
            there[name] = Mixture(frames[name].undo_left @ out, inward @ frames[name].undo_right)
        return mean_loss(merge(parents, "mix", mixtures=there))

    def said(adapter: Adapter, row: Encoded) -> torch.Tensor:
        with model.wearing(adapter), torch.no_grad():
            logits = model.model(input_ids=torch.tensor([row.tokens])).logits[0, row.start - 1 : -1]
        return logits.double().log_softmax(-1)

    goals = {
        name: [
            distill * said(parents[owner], row).exp()
            + (1 - distill) * torch.nn.functional.one_hot(torch.tensor(row.tokens[row.start :]), vocabulary)
            for owner, row in zip(owners[name], encoded[name], strict=True)
        ]
        for name in encoded
    }

    def mean_loss(adapter: Adapter) -> float:
        means = []
        for name, goal in goals.items():
            losses = [-(one * said(adapter, row)).sum(-1) for one, row in zip(goal, encoded[name], strict=True)]
            means.append(float(torch.cat(losses).mean()))
        return float(np.mean(means))

    whole, split = moved(len(TEXTS)), moved(1)
    rng = np.random.default_rng(0)
    for _ in range(3):
        along = {name: [rng.standard_normal(one.shape) for one in both] for name, both in whole.items()}
        slope = (value(1e-2, along) - value(-1e-2, along)) / 2e-2
        assert dot(whole, along) == pytest.approx(-rate * slope, rel=0.05, abs=rate * 1e-2)
    assert dot(whole, split) > 0.99 * np.sqrt(dot(whole, whole) * dot(split, split))


def dot(one: dict[str, list[Any]], other: dict[str, list[Any]]) -> float:
    return sum(float(np.vdot(a, b)) for name in one for a, b in zip(one[name], other[name], strict=True))


def test_runs_differ_in_the_order_of_rows_and_their_mean_counts(folder: Path, model: LanguageModel) -> None:
    parents = adapters(folder)
    encoded = {entry.name: model.encode(entry.questions) for entry in sets(folder)}
    start, frames = begun(parents, responses(model, parents, list(encoded.values())))

    def ends(runs: int, seed: int) -> list[Any]:
        steps = Steps(runs=runs, batch=1)
        found = learned(model, parents, start, frames, encoded, own(encoded), steps=steps, seed=seed)
        return [one for mixture in found.values() for one in (mixture.out, mixture.inward)]

    first, second, both = ends(1, 3), ends(1, 4), ends(2, 3)
    assert not all(np.allclose(one, other) for one, other in zip(first, second, strict=True))
    for one, other, mean in zip(first, second, both, strict=True):
        np.testing.assert_allclose(mean, (one + other) / 2, rtol=1e-4, atol=1e-5)


def test_learning_sees_every_row_of_unequal_domains_equally_often() -> None:
    lengths = {"many": 37, "few": 5}
    domains = {name: [Encoded((place,) * (place + 2), 1) for place in range(count)] for name, count in lengths.items()}
    steps = Steps(epochs=3, batch=4)
    drawn = list(_drawn(domains, steps, 30, seed=0))
    assert len(drawn) == 30
    for name, count in lengths.items():
        seen = [row for step in drawn for row in step.get(name, ())]
        for turn in range(steps.epochs):
            assert sorted(seen[turn * count : (turn + 1) * count]) == list(range(count))
        assert len(seen) == steps.epochs * count
    assert max(len(step["many"]) for step in drawn) <= steps.batch
    assert [step for step in drawn if "few" not in step]


@pytest.mark.parametrize("how", ["closed", "gradient"])
def test_the_best_candidate_is_chosen_and_the_report_tells_what_was_measured(
    folder: Path, model: LanguageModel, how: Any
) -> None:
    plain, data = merge(adapters(folder), "sum", rank=2), sets(folder)
    tuned = tune(model, plain, data, how=how, steps=Steps(epochs=3, batch=2))
    report = tuned.tuning
    assert report is not None
    means = {entry["name"]: entry["mean"] for entry in report["candidates"]}
    assert means["sum"] == pytest.approx(measured(model, plain, data))
    assert min(means.values()) == means[report["chosen"]] == pytest.approx(measured(model, tuned, data), rel=1e-4)
    assert tuned.rank == 2
    learning = 2 * 3 * 4 if how == "gradient" else 0
    assert report["cost"]["backward_rows"] == learning
    assert report["cost"]["forward_rows"] == 4 + 4 * len(means) + 2 * learning
    assert [entry["rows"] for entry in report["domains"]] == [2, 2]


def test_adapters_of_different_precision_are_tuned(folder: Path, model: LanguageModel) -> None:
    parents, data = adapters(folder), sets(folder)
    for place, dtype in enumerate((ml_dtypes.bfloat16, np.float16)):
        factors = {name: parents[place].factors(name).astype(dtype) for name in parents[place].modules}
        parents[place] = replace(parents[place], load=factors.__getitem__)
    plain = merge(parents, "sum", rank=2)
    tuned = tune(model, plain, data, how="closed")
    assert measured(model, tuned, data) <= measured(model, plain, data)


def test_the_plain_sum_stays_where_nothing_beats_it(
    folder: Path, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worse(parts: Any, products: Any, rank: int) -> Mixture:
        total = sum(part.rank for part in parts)
        return Mixture(np.full((total, rank), 9.0), np.ones((rank, total)))

    monkeypatch.setattr("hub_merge.tune.tuning.closest", worse)
    plain, data = merge(adapters(folder), "sum", rank=2), sets(folder)
    tuned = tune(model, plain, data)
    assert tuned.tuning is not None
    assert tuned.tuning["chosen"] == "sum"
    assert tuned.mixtures is None
    assert measured(model, tuned, data) == pytest.approx(measured(model, plain, data))


def test_rows_of_other_domains_go_to_the_adapter_that_answers_them_best(folder: Path, model: LanguageModel) -> None:
    parents = adapters(folder)
    questions = sets_of(TEXTS)
    losses = []
    for parent in parents:
        with model.wearing(parent):
            losses.append([loss.answer for loss in model.losses(questions)])
    best = [int(a > b) for a, b in zip(*losses, strict=True)]
    assert set(best) == {0, 1}, "the rows must tell the adapters apart"
    tuned = tune(model, merge(parents, "sum", rank=2), [QuestionSet("all", questions)])
    assert tuned.tuning is not None
    assert tuned.tuning["rows_by_adapter"] == [best.count(0), best.count(1)]


def test_what_cannot_be_tuned_is_refused(folder: Path, model: LanguageModel) -> None:
    parents, data = adapters(folder), sets(folder)
    for asked in ({"method": "ties", "rank": 2}, {"rank": "auto"}, {}, {"rank": 2, "weights": [1, 0.5]}):
        with pytest.raises(MergeError, match="finds method and weights itself"):
            tune(model, merge(parents, **{"method": "sum", **asked}), data)
    with pytest.raises(EvaluationError, match="No question shows what two does"):
        tune(model, merge(parents, "sum", rank=2), data[:1])


# --- files ------------------------------------------------------------------------------------------------------------


def test_mixtures_survive_their_file_and_other_files_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mixtures = {"a.b": Mixture(rng.standard_normal((5, 2), np.float32), rng.standard_normal((2, 5), np.float32))}
    digest = write_mixtures(mixtures, tmp_path)
    found = read_mixtures(tmp_path, digest)
    assert np.array_equal(found["a.b"].out, mixtures["a.b"].out)
    assert np.array_equal(found["a.b"].inward, mixtures["a.b"].inward)
    with pytest.raises(ProofFailed, match="not the file that was recorded"):
        read_mixtures(tmp_path, "0" * 64)
    with pytest.raises(RecipeError, match="not beside it"):
        read_mixtures(tmp_path / "elsewhere", digest)
    with pytest.raises(RecipeError, match="do not form a product"):
        Mixture(np.zeros((5, 2)), np.zeros((3, 5)))


def test_mixtures_of_other_adapters_are_refused(folder: Path) -> None:
    parents = adapters(folder)
    right = {name: Mixture(np.ones((4, 2)), np.ones((2, 4))) for name in parents[0].modules}
    with pytest.raises(MergeError, match="takes no mixtures"):
        merge(parents, "sum", mixtures=right)
    with pytest.raises(MergeError, match="different modules"):
        merge(parents, "mix", mixtures=dict(list(right.items())[1:]))
    with pytest.raises(MergeError, match="for 4 units; the adapters have 2"):
        merge(parents[:1], "mix", mixtures=right).factors(next(iter(right)))


# --- the command ------------------------------------------------------------------------------------------------------


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["merge", *(str(folder / name) for name in NAMES), *arguments])


def test_a_tuned_composite_is_proved_verified_and_made_again_from_its_recipe(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = [option for name in NAMES for option in ("--tune", f"{name}={folder / name}.jsonl")]
    learning = ["--tune-by", "gradient", "--tune-epochs", "40", "--tune-model", str(folder / "base")]
    found = run(folder, *data, *learning, "--rank", "2", "-o", str(out), "--json")
    assert found.exit_code == 0, found.output
    record = read_record(out)
    assert record.tuning is not None and record.tuning["chosen"] == "gradient"
    assert record.recipe.merge_method == "mix"
    assert str(folder) not in (out / "hub_merge.json").read_text()
    parents = [str(folder / name) for name in NAMES]
    assert CliRunner().invoke(cli, ["verify", str(out), *parents]).exit_code == 0
    again = tmp_path / "again"
    made = CliRunner().invoke(cli, ["merge", str(out / "recipe.yaml"), *parents, "-o", str(again)])
    assert made.exit_code == 0, made.output
    weights = "adapter_model.safetensors"
    assert (again / weights).read_bytes() == (out / weights).read_bytes()
    card = (out / "README.md").read_text()
    assert "`gradient` (chosen)" in card and "2 rows of `one`" in card
    shutil.copy(again / weights, out / "mixtures.safetensors")
    broken = CliRunner().invoke(cli, ["verify", str(out), *parents])
    assert broken.exit_code != 0


def test_a_tuned_composite_of_adapters_of_the_hub_carries_the_licence_of_their_base(
    hub_lfs: HubDouble, folder: Path, tmp_path: Path
) -> None:
    hub_lfs.add_repo("tiny/base", {"README.md": b"---\nlicense: mit\n---\n"})
    for name in NAMES:
        hub_lfs.add_repo(f"bob/{name}", {path.name: path.read_bytes() for path in (folder / name).iterdir()})
    recipe = Recipe("sum", tuple(Source(f"bob/{name}") for name in NAMES), rank=2)
    client = Hub(token=False, endpoint=hub_lfs.endpoint, cache_dir=tmp_path / "cache")
    found = tune_to_folder(recipe, tmp_path / "out", sets(folder), hub=client, model=str(folder / "base"))
    assert (found.base_license, found.base_commit) == ("mit", hub_lfs.repo("tiny/base").head.oid)
    assert found == read_record(tmp_path / "out")


def test_options_of_tuning_need_tune(folder: Path, tmp_path: Path) -> None:
    found = run(folder, "--tune-by", "gradient", "-o", str(tmp_path / "out"))
    assert found.exit_code == 2
    assert "--tune-by says how to --tune" in found.output
