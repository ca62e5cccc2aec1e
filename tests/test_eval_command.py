"""``hub-merge eval``, the whole way on a tiny model: folders and questions in, figures, JSON and picture out."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from click.testing import CliRunner, Result  # noqa: E402

from hub_merge import Adapter, merge  # noqa: E402
from hub_merge.cli.app import cli  # noqa: E402
from hub_merge.errors import CheckpointError, EvaluationError, HubMergeError, OutputExists  # noqa: E402
from hub_merge.evaluate import LanguageModel, evaluate, read_questions, results_of, run_tasks  # noqa: E402
from hub_merge.measurements import Measurement  # noqa: E402
from tests.helpers import fill_disk  # noqa: E402
from tests.tiny_models import TEXTS, by_hand, tiny_base, tiny_tokenizer, trained, write_questions  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

NAMES = ("one", "two", "three")
TASK = """
task: tiny
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: " {{{{answer}}}}"
metric_list: [{{metric: perplexity}}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, three adapters and the questions of two domains."""
    place = tmp_path_factory.mktemp("eval")
    base = tiny_base(place)
    for seed, name in enumerate(NAMES):
        trained(base, place / name, seed, target_modules=["q_proj", "v_proj"])
    for domain, rows in (("first", TEXTS[:2]), ("second", TEXTS[2:])):
        write_questions(place / domain / "test.jsonl", rows)
    return place


Run = Callable[..., Result]


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``eval`` on the base in float32."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, fails: type[Exception] | None = None) -> Result:
        done = CliRunner().invoke(cli, ["eval", "--base", str(folder / "base"), "--dtype", "float32", *arguments])
        assert isinstance(done.exception, fails) if fails else done.exit_code == 0, done.output
        return done

    return run


def data(folder: Path) -> list[str]:
    return ["--data", str(folder / "first" / "test.jsonl"), "--data", f"2nd={folder / 'second' / 'test.jsonl'}"]


def adapters(folder: Path) -> list[str]:
    return [str(folder / name) for name in NAMES]


def test_three_adapters_all_pairs_and_the_triple_need_one_load(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loads = []
    load = transformers.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_pretrained", lambda *a, **k: loads.append(a) or load(*a, **k)
    )
    run(*adapters(folder), "--merge", "sum", *data(folder), "-o", "out.json", "--plot", "out.png")
    assert len(loads) == 1
    found = json.loads((tmp_path / "out.json").read_text())
    values = {(row["composite"], row["domain"]): row for row in found["figures"]}
    pairs = ["sum of one + two", "sum of one + three", "sum of two + three"]
    named = ["base", *NAMES, *pairs, "sum of one + two + three"]
    assert [name for name, domain in values if domain == "first"] == named
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in (tmp_path / "out.json").read_text()
    assert str(folder) not in (tmp_path / "out.json").read_text()


def test_its_figures_equal_a_loop_written_by_hand_over_pefts_sum(folder: Path, run: Run) -> None:
    found = json.loads(run(*adapters(folder), "--merge", "sum", *data(folder), "--json").stdout)
    values = {(row["composite"], row["domain"]): row for row in found["figures"]}
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    model = peft.PeftModel.from_pretrained(base, folder / "one", adapter_name="one")
    model.load_adapter(folder / "two", "two")
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "both", combination_type="cat")
    for adapter, name in (("one", "one"), ("two", "two"), ("both", "sum of one + two")):
        model.set_adapter(adapter)
        for domain, rows in (("first", TEXTS[:2]), ("2nd", TEXTS[2:])):
            answer, text = by_hand(model.eval(), tiny_tokenizer(), rows)
            assert values[name, domain]["perplexity"] == pytest.approx(answer, rel=2e-6)
            assert values[name, domain]["text"] == pytest.approx(text, rel=2e-6)
    losses = found["losses"]["one"]["2nd"]
    assert [row[1] for row in losses] == [2, len("2 + 2 = 4\nthe answer is 4") + 1]


def test_what_is_printed_is_compared_with_what_was_named(folder: Path, run: Run) -> None:
    printed = run(*adapters(folder)[:2], *data(folder), "--against", "one", "--format", "agent").stdout.splitlines()
    header, *rows = (line.split("\t") for line in printed)
    table = {(row[0], row[1]): dict(zip(header, row, strict=True)) for row in rows}
    assert set(table) == {(name, where) for name in ("base", "one", "two") for where in ("first", "2nd", "mean")}
    two, one = (float(table[name, "first"]["perplexity"]) for name in ("two", "one"))
    assert float(table["two", "first"]["change"]) == pytest.approx(two / one - 1)
    assert table["one", "first"]["change"] == ""
    base, changed = (float(table[name, "mean"]["perplexity"]) for name in ("one", "two"))
    assert float(table["two", "mean"]["change"]) == pytest.approx(changed / base - 1)
    assert float(table["two", "mean"]["perplexity"]) == pytest.approx(
        (two + float(table["two", "2nd"]["perplexity"])) / 2
    )


def test_a_second_run_measures_nothing_again(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(*adapters(folder), *data(folder), "--resume", "rows.jsonl", "--json").stdout
    assert len(Path("rows.jsonl").read_text().splitlines()) == 16
    monkeypatch.setattr(LanguageModel, "losses", lambda *_: pytest.fail("measured again"))
    assert run(*adapters(folder), *data(folder), "--resume", "rows.jsonl", "--json").stdout == first


def test_a_file_of_the_user_is_not_replaced_unasked(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.json").write_text("mine")
    run(*data(folder), "-o", "mine.json", fails=OutputExists)
    assert Path("mine.json").read_text() == "mine"
    with monkeypatch.context() as patch:
        fill_disk(patch)
        run(*data(folder), "-o", "mine.json", "--force", fails=OSError)
    assert Path("mine.json").read_text() == "mine"
    run(*data(folder), "-o", "mine.json", "--force")
    assert json.loads(Path("mine.json").read_text())["base"] == "base"


def test_results_have_the_form_of_the_record(folder: Path) -> None:
    model = LanguageModel.load(folder / "base", dtype="float32", most_tokens=40)
    sets = [read_questions(folder / name / "test.jsonl") for name in ("first", "second")]
    found = evaluate(model, {"base": None}, sets)
    entries = results_of(found, "base")
    assert [(entry.dataset, entry.split, entry.metric) for entry in entries] == [
        (name, "test", metric) for name in ("first", "second") for metric in ("answer perplexity", "text perplexity")
    ]
    for entry in entries:
        assert entry.interval is not None and entry.interval[0] <= entry.value <= entry.interval[1]
        assert entry.rows == 2
        assert "float32" in entry.how and "rows cut to 40 tokens" in entry.how
        assert Measurement.from_dict(json.loads(json.dumps(entry.to_dict()))) == entry


def test_figures_go_into_record_and_card_of_a_composite_alone(folder: Path, run: Run) -> None:
    merge([Adapter.from_pretrained(folder / name) for name in NAMES[:2]]).save_pretrained("composite")
    weights = Path("composite/adapter_model.safetensors").read_bytes()
    found = json.loads(run("composite", *adapters(folder)[:1], *data(folder), "--record", "--json").stdout)
    value = next(row for row in found["figures"] if (row["composite"], row["domain"]) == ("composite", "first"))
    record = json.loads(Path("composite/hub_merge.json").read_text())
    kept = {(entry.get("subject", ""), entry["dataset"], entry["metric"]): entry for entry in record["measured"]}
    assert kept["", "first", "answer perplexity"]["value"] == value["perplexity"]
    assert {subject for subject, *_ in kept} == {"", "base"} and len(kept) == 8
    assert f"{value['perplexity']:.3g}" in Path("composite/README.md").read_text()
    assert "Not evaluated" not in Path("composite/README.md").read_text()
    assert Path("composite/adapter_model.safetensors").read_bytes() == weights
    assert "measured" not in (folder / "one" / "README.md").read_text()


def test_figures_are_not_kept_where_there_is_no_composite(folder: Path, run: Run) -> None:
    done = CliRunner().invoke(cli, ["eval", *adapters(folder), *data(folder), "--record"])
    assert done.exit_code == 2 and "--record writes to the folder of a composite" in done.output


@pytest.mark.parametrize(
    ("arguments", "fails", "message"),
    [
        (["--base", "nowhere.gguf"], CheckpointError, "nowhere.gguf"),
        (["--device", "abacus"], EvaluationError, "no device 'abacus'"),
        (["--prompt", "{ask}"], EvaluationError, "no field 'ask'"),
        (["--prompt", "{question"], EvaluationError, "no format"),
        (["--merge", "sum"], EvaluationError, "two or more"),
    ],
)
def test_what_cannot_be_measured_is_told(
    arguments: list[str], fails: type[HubMergeError], message: str, folder: Path, run: Run
) -> None:
    done = run(str(folder / "one"), *data(folder), *arguments, fails=fails)
    assert message in str(done.exception)


def test_data_sets_of_the_hub_need_their_library(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    done = run("--data", "openai/gsm8k:main", fails=EvaluationError)
    assert "pip install datasets" in str(done.exception)


def test_data_sets_of_the_hub_are_read_no_further_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Streamed(list[Any]):
        def take(self, count: int) -> Streamed:
            return Streamed(self[:count])

    def load_dataset(*arguments: Any, **settings: Any) -> Streamed:
        asked.append((arguments, settings))
        return Streamed({"question": str(number), "answer": "yes"} for number in range(9))

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    found = read_questions("owner/riddles:hard", split="validation", limit=3)
    assert [question.prompt for question in found.questions] == [f"Question: {n}\nAnswer: " for n in range(3)]
    assert asked == [(("owner/riddles", "hard"), {"split": "validation", "streaming": True})]


def test_tasks_need_lm_eval(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    done = run(str(folder / "one"), "--tasks", "arc_easy", fails=EvaluationError)
    assert "pip install 'hub-merge[tasks]'" in str(done.exception)


def test_tasks_are_run_on_what_the_model_wears(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for lm-eval scores the model that it is handed, so the composites have to differ."""

    def simple_evaluate(*, model: Any, tasks: list[str], limit: int, **_: Any) -> dict[str, Any]:
        with torch.no_grad():
            value = model.logits(torch.arange(9)[None]).logits.mean().item()
        results = {task: {"alias": task, "acc,none": value, "acc_stderr,none": 0.5} for task in tasks}
        results["other"] = {"acc,none": value}
        return {
            "results": results,
            "configs": {"easy": {"test_split": None, "validation_split": "val"}, "other": {"test_split": "test"}},
            "n-shot": dict.fromkeys(tasks, 0),
            "n-samples": {tasks[0]: {"effective": limit}},
        }

    harness = types.ModuleType("lm_eval")
    harness.simple_evaluate, harness.__version__ = simple_evaluate, "0.0"  # type: ignore[attr-defined]
    models = types.SimpleNamespace(HFLM=lambda pretrained, **_: types.SimpleNamespace(logits=pretrained))
    tasks = types.SimpleNamespace(TaskManager=lambda **_: types.SimpleNamespace(match_tasks=lambda names: names[:1]))
    for name, module in (("", harness), (".models.huggingface", models), (".tasks", tasks)):
        monkeypatch.setitem(sys.modules, f"lm_eval{name}", module)  # type: ignore[arg-type]
    found = json.loads(run(*adapters(folder)[:2], "--tasks", "easy", "--limit", "7", "--json").stdout)["tasks"]
    values = {name: entries[0]["value"] for name, entries in found.items()}
    assert len(set(values.values())) == 3
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    for name, model in (("base", copy.deepcopy(base)), ("two", peft.PeftModel.from_pretrained(base, folder / "two"))):
        with torch.no_grad():
            assert values[name] == pytest.approx(model(torch.arange(9)[None]).logits.mean().item(), rel=1e-4)
    assert found["two"][0] == {
        "dataset": "easy",
        "split": "val",
        "metric": "acc",
        "value": values["two"],
        "interval": [values["two"] - 0.98, values["two"] + 0.98],
        "rows": 7,
        "how": "lm-eval 0.0, 0-shot; interval: 1.96 standard errors",
    }
    assert found["two"][1]["split"] == "test"
    done = run("--tasks", "easy,unheard", fails=EvaluationError)
    assert "no task unheard" in str(done.exception)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval")
def test_lm_eval_itself_finds_the_losses_of_the_answers(folder: Path, tmp_path: Path) -> None:
    file = folder / "first" / "test.jsonl"
    (tmp_path / "tiny.yaml").write_text(TASK.format(file=file))
    model = LanguageModel.load(folder / "base", dtype="float32")
    (entry,) = run_tasks(model, {"base": None}, ["tiny"], folder=tmp_path)["base"]
    sums = []
    for question, answer in TEXTS[:2]:
        prompt = tiny_tokenizer()(f"Question: {question}\nAnswer:").input_ids
        tokens = tiny_tokenizer()(f"Question: {question}\nAnswer: {answer}").input_ids
        with torch.no_grad():
            chances = model.model(torch.tensor([tokens])).logits[0].double().log_softmax(1)
        sums.append(math.fsum(chances[place - 1, tokens[place]] for place in range(len(prompt), len(tokens))))
    assert entry["metric"] == "perplexity"
    assert entry["value"] == pytest.approx(math.exp(-sum(sums) / 2), rel=1e-4)
    assert (entry["rows"], entry["split"]) == (2, "test")
