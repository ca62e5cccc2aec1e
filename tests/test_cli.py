"""The command line: what it prints where, how it ends, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from hub_merge.cli import main
from hub_merge.cli.app import cli
from hub_merge.cli.output import COMMANDS, Output, printable
from hub_merge.cli.show.publication import hint_push
from hub_merge.licenses import Licensed, united
from hub_merge.methods import list_methods
from tests.helpers import peft_config, peft_tensors, write_adapter
from tests.hub_double import HubDouble

ROOT = Path(__file__).parents[1]
SKILL = ROOT / "skills" / "hub-merge" / "SKILL.md"
MODULES = {"h.0.attn.c_attn": 2, "h.1.attn.c_attn": 2}
SECRET = "hf_abcdefghijklmnopqrstuvwx"


def leaves(group: click.Group, start: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield every command by its words, those of groups in groups too."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, f"{start}{name} ")
        else:
            yield f"{start}{name}", command


LEAVES = dict(leaves(cli))


@dataclass
class Done:
    """How a run of the command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> object:
        return json.loads(self.out)

    def lines(self, start: str) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith(start)]


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the command line in this process, in a folder of its own, as nobody in particular and without network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", {"standardEnvVars": ["AI_AGENT"]})
    for name in ("AI_AGENT", "HF_DEBUG", "HF_TOKEN", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")

    def execute(*words: object, program: str = "hub-merge") -> Done:
        monkeypatch.setattr(sys, "argv", [program, *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return Done(int(end.value.code or 0), said.out, said.err)

    return execute


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    """A folder with adapters ``math`` and ``medicine``, and ``foreign`` of another base, task and shape."""
    for seed, name in enumerate(("math", "medicine", "foreign")):
        config = peft_config(base_model_name_or_path="acme/base", task_type="CAUSAL_LM")
        tensors = peft_tensors(np.random.default_rng(seed), MODULES)
        if name == "foreign":
            config |= {"base_model_name_or_path": "acme/else", "task_type": "SEQ_CLS"}
            tensors = {key: np.ascontiguousarray(np.repeat(value, 2, 1)) for key, value in tensors.items()}
            tensors = {key: value[:, :9] if "lora_A" in key else value[:, :2] for key, value in tensors.items()}
        write_adapter(tmp_path / name, {key: np.ascontiguousarray(value) for key, value in tensors.items()}, config)
    return tmp_path


def test_heads_are_kept_and_changed_bases_and_dora_made_plain_from_the_command_line(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = peft_tensors(rng, MODULES)
    common = {"base_model_name_or_path": "acme/base", "task_type": "CAUSAL_LM"}
    head = {"base_model.model.score.weight": np.ones((2, 3), np.float32)}
    write_adapter(tmp_path / "head", {**tensors, **head}, peft_config(**common))
    write_adapter(tmp_path / "pissa", tensors, peft_config(**common, init_lora_weights="pissa"))
    write_adapter(tmp_path / "start", peft_tensors(rng, MODULES), peft_config(**common))
    magnitudes = {f"base_model.model.{name}.lora_magnitude_vector": np.full(6, 3, np.float32) for name in MODULES}
    write_adapter(tmp_path / "dora", {**tensors, **magnitudes}, peft_config(**common, use_dora=True))
    (tmp_path / "weights").mkdir()
    base = {f"{name}.weight": rng.standard_normal((6, 5)).astype(np.float32) for name in MODULES}
    save_file(base, tmp_path / "weights" / "model.safetensors")

    assert run("merge", "./head", "./pissa", "./dora", "-o", "out").code == 1
    initial = ["--initial", "pissa=./start"]
    materialize = ["--materialize", "--base-weights", "./weights", "--materialize-rank", "5"]
    done = run(
        *("merge", "./head", "./pissa", "./dora", "-o", "out", "--extras", "keep:head"),
        *initial,
        *materialize,
        "--json",
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["extras"] == "keep:head: 1 written, 0 left out"
    assert "[materialized] dora: its DoRA deltas were formed with ./weights and factorised again at rank 5" in done.err
    assert "[converted] pissa: the product that it started from, ./start, was taken away" in done.err
    local = ["./head", "./pissa", "./start", "./dora", "./weights"]
    assert run("verify", "out", *local).code == 0
    assert run("merge", "out/recipe.yaml", *local, "-o", "again").code == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "again" / "adapter_model.safetensors"
    ).read_bytes()


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    """A folder with classifiers ``one`` and ``two``, each with a head, and ``plain`` without."""
    for seed, name in enumerate(("one", "two", "plain")):
        tensors = peft_tensors(np.random.default_rng(seed), MODULES)
        if name != "plain":
            tensors["base_model.model.score.weight"] = np.full((2, 3), seed, np.float32)
        config = peft_config(base_model_name_or_path="acme/base", task_type="SEQ_CLS")
        write_adapter(tmp_path / name, tensors, config)
    return tmp_path


@pytest.mark.parametrize("policy", ["keep:one", "average", "drop"])
def test_a_decision_about_heads_is_taken_by_check_and_advise_as_by_merge(run: Run, heads: Path, policy: str) -> None:
    pair = ("./one", "./two")
    refused = run("check", *pair, "--json")
    assert refused.code == 1
    assert {found["code"] for found in refused.json["findings"] if found["severity"] == "problem"} == {  # type: ignore[index]
        "trained_weights"
    }
    asked = ("--extras", policy)
    checked = run("check", *pair, *asked, "--json")
    assert (checked.code, checked.json["compatible"]) == (0, True)  # type: ignore[index]
    told = {found["adapter"]: found["seen"] for found in checked.json["findings"]}  # type: ignore[index]
    assert all("as you asked" in told[name] for name in ("one", "two"))
    advised = run("advise", *pair, *asked, "--json")
    assert advised.code == 0
    command = shlex.split(advised.json["command"])  # type: ignore[index,call-overload]
    assert run(*command[1:], "-q") == Done(0, "composite\n", "")
    assert json.loads((heads / "composite" / "hub_merge.json").read_text())["recipe"]["extras"] == policy


def test_advice_leaves_heads_aside_and_says_that_a_merge_does_not(run: Run, heads: Path) -> None:
    advised = run("advise", "./one", "./two", "--json")
    assert advised.code == 0, advised.err
    first, *_ = advised.json["caveats"]  # type: ignore[index,misc]
    assert first == (
        "They do not fit together as they are (trained_weights): no merge before that is settled with "
        "--extras keep:NAME, --extras average or --extras drop."
    )
    decided = run("advise", "./one", "./two", "--extras", "drop", "--json")
    same = ("method", "rank", "weights", "reasons", "energy_at_rank")
    assert [advised.json[name] for name in same] == [decided.json[name] for name in same]  # type: ignore[index,call-overload]
    assert not any("do not fit" in caveat for caveat in decided.json["caveats"])  # type: ignore[index]


@pytest.mark.parametrize("command", ["check", "advise"])
@pytest.mark.parametrize(
    ("policy", "told"),
    [("keep", "It is refuse, keep:NAME (of an adapter), average or drop."), ("keep:plain", "Those that do: one.")],
)
def test_a_decision_that_cannot_be_taken_is_told(run: Run, heads: Path, command: str, policy: str, told: str) -> None:
    done = run(command, "./one", "./plain", "--extras", policy)
    assert done.code == 1 and told in done.err


def test_a_decision_needs_adapters_to_be_about(run: Run) -> None:
    done = run("check", "--base", "acme/base", "--extras", "drop")
    assert done.code == 2 and "--extras needs the names of adapters" in done.err


@pytest.mark.parametrize("command", ["compress", "convert"])
def test_one_adapter_is_decided_about_and_made_plain_by_the_options_of_merge(
    run: Run, heads: Path, command: str
) -> None:
    assert "Overrule: --extras keep:NAME" in run(command, "./one", "-o", "out").err
    assert run(command, "./one", "--extras", "keep:one", "-o", "kept").code == 0
    score = load_file(heads / "kept" / "adapter_model.safetensors")["base_model.model.score.weight"]
    assert np.array_equal(score, np.zeros((2, 3)))

    common = {"base_model_name_or_path": "acme/base", "task_type": "SEQ_CLS"}
    factors = peft_tensors(np.random.default_rng(7), MODULES)
    magnitudes = {f"base_model.model.{name}.lora_magnitude_vector": np.full(6, 3, np.float32) for name in MODULES}
    write_adapter(heads / "dora", {**factors, **magnitudes}, peft_config(**common, use_dora=True))
    write_adapter(heads / "pissa", factors, peft_config(**common, init_lora_weights="pissa"))
    (heads / "weights").mkdir()
    base = {f"{name}.weight": np.eye(6, 5, dtype=np.float32) for name in MODULES}
    save_file(base, heads / "weights" / "model.safetensors")
    assert "Overrule: --materialize." in run(command, "./dora", "-o", "out").err
    assert run(command, "./dora", "--materialize", "--base-weights", "./weights", "-o", "from_dora").code == 0
    assert "Overrule: --initial ADAPTER=REFERENCE." in run(command, "./pissa", "-o", "out").err
    assert run(command, "./pissa", "--initial", "pissa=./plain", "-o", "from_pissa").code == 0
    assert run("check", "./from_dora", "./from_pissa", "./plain").code == 0


# --- output modes -----------------------------------------------------------------------------------------------------


def test_json_is_one_compact_document_alone_on_stdout_with_hints_on_stderr(run: Run, adapters: Path) -> None:
    done = run("merge", "./math", "./medicine", "-o", "out", "--json")
    assert done.code == 0
    assert done.out.count("\n") == 1
    assert done.out == json.dumps(done.json, separators=(",", ":")) + "\n"
    (hint,) = done.lines("Hint: ")
    assert hint.startswith("Hint: before it can be published: No licence is known for acme/base, math and medicine")


def test_quiet_prints_the_main_value_and_no_hint(run: Run, adapters: Path) -> None:
    assert run("merge", "./math", "./medicine", "-o", "out", "-q") == Done(0, "out\n", "")
    assert run("verify", "./out", "./math", "./medicine", "-q") == Done(0, "reproduced\n", "")
    assert run("methods", "--quiet").out.split() == [method.name for method in list_methods()]
    cosine = run("score", "./math", "./medicine", "-q").out
    assert 0 <= float(cosine) <= 1


def test_agent_output_is_tab_separated_with_plain_keys_and_full_precision(run: Run, adapters: Path) -> None:
    header, row = (
        line.split("\t") for line in run("score", "./math", "./medicine", "--format", "agent").out.splitlines()
    )
    values = dict(zip(header, row, strict=True))
    exact = json.loads(run("score", "./math", "./medicine", "--json").out)["pairs"][0]
    assert values["pair"] == "math + medicine"
    assert float(values["rms_cosine"]) == exact["rms_cosine"]
    assert "output=out\n" in run("merge", "./math", "./medicine", "-o", "out", "--format", "agent").out


def test_auto_is_agent_for_a_coding_agent_and_human_for_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("methods").out.startswith("NAME ")
    monkeypatch.setenv("AI_AGENT", "somebody")
    assert run("methods").out.startswith("name\tsummary\t")
    assert run("methods", "--format", "human").out.startswith("NAME ")


@pytest.mark.parametrize("modes", [["--json", "-q"], ["--format", "human", "--json"], ["--format", "agent", "--quiet"]])
def test_output_modes_exclude_each_other(run: Run, modes: list[str]) -> None:
    done = run("methods", *modes)
    assert (done.code, done.out) == (2, "")
    assert done.lines("Error: ") == ["Error: --format, --json and --quiet exclude each other."]


def test_every_command_that_prints_results_takes_the_same_output_options() -> None:
    wanted = {"--format", "--json", "--quiet", "-q", "--no-truncate"}
    for name, command in LEAVES.items():
        options = {option for param in command.params for option in param.opts}
        assert (wanted & options) == (set() if name in ("card", "ui") else wanted), name
        assert ("--token" in options) == (name not in ("card", "ui", "methods")), name


# --- tables -----------------------------------------------------------------------------------------------------------

ROWS = [
    {"name": "a" * 60, "long_text": "b" * 60, "count": 7},
    {"name": "short", "long_text": None, "count": 1234567},
]


@pytest.fixture
def human(monkeypatch: pytest.MonkeyPatch) -> Output:
    monkeypatch.setenv("COLUMNS", "60")
    return Output("human")


def test_a_table_is_padded_with_loud_headers_and_numbers_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"name": "one", "rms cosine": 0.12345}, {"name": "twenty", "rms cosine": 2.0}]
    Output("human").table(rows, ["name", "rms cosine"])
    assert capsys.readouterr().out == "NAME    RMS_COSINE\none          0.123\ntwenty           2\n"


def test_a_table_is_cut_to_the_terminal_but_never_its_numbers(
    human: Output, capsys: pytest.CaptureFixture[str]
) -> None:
    human.table(ROWS, ["name", "long_text", "count"])
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert [len(line) for line in lines] == [60, 60, 60]
    assert lines[1].count("…") == 2
    assert lines[2].endswith(" 1234567")
    assert said.err == "Hint: add --no-truncate or --json to see the values in full\n"


@pytest.mark.parametrize(
    ("number", "shown"), [(1234.5, "1,234"), (1e30, "1e+30"), (-2e9, "-2e+09"), (0.12345, "0.123")]
)
def test_numbers_are_short(capsys: pytest.CaptureFixture[str], number: float, shown: str) -> None:
    Output("human").table([{"n": number}], ["n"])
    assert capsys.readouterr().out.splitlines()[1].strip() == shown


def test_no_truncate_shows_cells_in_full(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    Output("human", truncate=False).table(ROWS, ["name", "long_text", "count"])
    said = capsys.readouterr()
    assert "a" * 60 in said.out
    assert "b" * 60 in said.out
    assert said.err == ""


@pytest.mark.parametrize(("is_terminal", "cut"), [(True, True), (False, False)], ids=["terminal", "pipe"])
def test_a_table_is_cut_for_a_terminal_and_whole_for_a_pipe_or_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, is_terminal: bool, cut: bool
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    Output("human").table(ROWS, ["name", "long_text", "count"])
    said = capsys.readouterr()
    assert ("a" * 60 in said.out and "b" * 60 in said.out) is not cut
    assert ("--no-truncate" in said.err) is cut


def test_a_line_of_numbers_too_wide_for_the_terminal_is_cut_as_a_whole(
    human: Output, capsys: pytest.CaptureFixture[str]
) -> None:
    human.table([{f"number_{i}": 1.5 for i in range(9)}], [f"number_{i}" for i in range(9)])
    assert [len(line) for line in capsys.readouterr().out.splitlines()] == [60, 60]


def test_characters_that_steer_a_terminal_are_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "a\x1b[31mb\rc\nd\u202ee\u2028f\ud800g"
    for mode in ("human", "agent", "quiet"):
        Output(mode).table([{"id": hostile}], ["id"])  # type: ignore[arg-type]
        assert capsys.readouterr().out.splitlines()[-1] == "a�[31mb�c�d�e�f�g"
    Output("json").table([{"id": hostile}], ["id"])
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out) == [{"id": hostile}]
    assert printable("a\nb\x07", keep="\n") == "a\nb�"


def test_numbers_that_json_lacks_become_null(capsys: pytest.CaptureFixture[str]) -> None:
    Output("json").document({"max": float("inf"), "all": [float("nan"), 1.5], "pair": (None, -float("inf"))})
    assert capsys.readouterr().out == '{"max":null,"all":[null,1.5],"pair":[null,null]}\n'


# --- how it ends ------------------------------------------------------------------------------------------------------

USAGE = {
    "no command word that exists": (["serch"], "There is no command 'serch'. Did you mean search?"),
    "no command word that is near": (["zzz"], "Commands: search, inspect, check,"),
    "an option with a typo": (["methods", "--jsn"], "--json"),
    "an option before the command": (["--json", "methods"], "write it after one of search,"),
    "no adapters to merge": (["merge", "-o", "out"], "Missing argument 'ADAPTER... | RECIPE.yaml [FOLDER]...'."),
    "no adapters to check": (["check"], "Missing argument 'ADAPTER...'."),
    "an option of methods": (
        ["merge", "./math", "--method", "ties", "--density", "0.5", "-o", "out"],
        "ties: write --option density=0.5",
    ),
    "an option of one method": (
        ["merge", "./math", "--starts=3", "-o", "out"],
        "starts is an option of the method lego: write --option starts=3",
    ),
    "an option of methods alone": (["merge", "./math", "-o", "out", "--density"], "write --option density=VALUE"),
    "an option that no method has": (["merge", "./math", "-o", "out", "--dtyp", "x"], "Did you mean '--dtype'?"),
    "an option of methods elsewhere": (["score", "./math", "--density", "1"], "No such option '--density'"),
    "no output": (["merge", "./math"], "Missing option '-o' / '--output'."),
    "one adapter twice": (["merge", "./math", "./math", "-o", "out"], "./math is named twice: name it once, with a"),
    "weights that are no numbers": (["merge", "./math", "--weights", "1;2", "-o", "out"], "'1;2' is not numbers"),
    "a weight that is not a number": (["merge", "./math", "--weights", "nan", "-o", "out"], "'nan' is not numbers"),
    "an infinite weight": (["score", "./math", "--weights", "inf"], "'inf' is not numbers"),
    "no weight between commas": (["merge", "./math", "./medicine", "--weights", "1,", "-o", "out"], "'1,' is not numb"),
    "too few weights": (["merge", "./math", "./medicine", "--weights", "1", "-o", "o"], "1 given for 2 adapters"),
    "too many weights to score": (["score", "./math", "--weights", "1,2"], "2 given for 1 adapters"),
    "an option of the method without a value": (["merge", "./math", "--option", "x", "-o", "o"], "not NAME=VALUE"),
    "a rank of nothing": (["merge", "./math", "--rank", "0", "-o", "out"], "0 is not in the range x>=1"),
    "a rank in words": (["merge", "./math", "--rank", "most", "-o", "o"], "'most' is neither a whole number nor auto."),
    "an energy without auto": (["merge", "./math", "--energy", "0.9", "-o", "out"], "add --rank auto, or leave out"),
    "an energy beside a number": (
        ["compress", "./math", "--rank", "1", "--energy", "0.9", "-o", "o"],
        "add --rank auto",
    ),
    "an energy of nothing": (["compress", "./math", "--energy", "0", "-o", "out"], "0.0 is not in the range 0<x<=1"),
    "an energy above all": (["compress", "./math", "--energy", "1.1", "-o", "out"], "1.1 is not in the range 0<x<=1"),
    "a profile that does not exist": (["compress", "./math", "--profile", "vllm", "-o", "o"], "'vllm' is not one of"),
    "two adapters to compress": (["compress", "./math", "./medicine", "-o", "o"], "unexpected extra argument"),
    "a rank beside a recipe": (
        ["merge", "r.yaml", "--rank", "auto", "--profile", "peft", "-o", "o"],
        "leave out --rank,",
    ),
    "a dtype that cannot be written": (["merge", "./math", "--dtype", "int8", "-o", "out"], "'int8' is not one of"),
    "base weights for nothing": (["merge", "./math", "--base-weights", "./b", "-o", "o"], "say how to --materialize"),
    "an initial adapter of nobody": (["merge", "./math", "--initial", "a=./b", "-o", "o"], "'a=./b' is not ADAPTER="),
    "an initial adapter without a name": (
        ["merge", "./math", "--initial", "math", "-o", "o"],
        "'math' is not ADAPTER=",
    ),
    "no recipe": (["merge", "none.yaml", "-o", "out"], "There is no recipe none.yaml."),
    "a recipe behind adapters": (["merge", "./math", "r.yaml", "-o", "out"], "Name one recipe, first"),
    "a recipe with options": (
        ["merge", "r.yaml", "--weights", "1", "--option", "a=b", "--seed", "0", "-o", "out"],
        "leave out --weights, --option, --seed, or edit the recipe",
    ),
    "no folder for figures": (
        ["eval", "./math", "--data", "a.jsonl", "-o", "none/f.json"],
        "There is no folder 'none'.",
    ),
    "no folder for a picture": (["score", "./math", "./code", "--plot", "none/p.png"], "There is no folder 'none'."),
    "no folder for verdicts": (["check", "--base", "a/b", "--resume", "none/v.jsonl"], "There is no folder 'none'."),
    "no folder to push": (["push", "./none", "me/x"], "Directory './none' does not exist."),
    "no folder to make a card of": (["card", "./none"], "Directory './none' does not exist."),
}


@pytest.mark.parametrize("case", USAGE)
def test_a_wrong_command_line_ends_with_2_and_says_what_would_be_right(run: Run, adapters: Path, case: str) -> None:
    (adapters / "r.yaml").write_text("models: [./math]\n", encoding="utf-8")
    words, message = USAGE[case]
    done = run(*words)
    assert (done.code, done.out) == (2, "")
    assert message in " ".join(done.err.split())
    assert len(done.lines("Error: ")) == 1
    assert done.err.startswith("Usage: hub-merge")
    assert not (adapters / "out").exists()


REFUSALS = {
    "a folder that is not there": (["check", "./none"], "./none: There is no such folder or file.", "Check the path"),
    "a folder without an adapter": (["inspect", "."], "holds no adapter_config.json", "foreign, link, math, medicine"),
    "no reference at all": (["inspect", "gpt2"], "'gpt2' is not a repository of the Hub.", "Write owner/name"),
    "a folder beside the one that was meant": (
        ["inspect", "medicine/checkpont-7"],
        "There is no folder or file medicine/checkpont-7 here. Taken for a repository of the Hub: medicine/checkpont-7 "
        "is not in the cache",
        "Did you mean medicine/checkpoint-7?",
    ),
    "a folder that is not there among others": (
        ["check", "math", "medicine/none"],
        "There is no folder or file medicine/none here. Taken for",
        "Try: Name a folder that is in medicine/ (checkpoint-7).",
    ),
    "a path that no repository can have": (
        ["inspect", "full/inner/void"],
        "There is no folder or file full/inner/void here.",
        "Name a folder that is in full/inner/ (one).",
    ),
    "a repository that is nowhere": (
        ["inspect", "someone/none"],
        "is not in the cache, or not all of it, and the network is switched off. Nor is there a folder or file "
        "of that name here.",
        "Unset HF_HUB_OFFLINE",
    ),
    "a folder's name with a typo": (
        ["inspect", "medecine"],
        "Nor is there a folder or file",
        "Did you mean ./medicine?",
    ),
    "an unknown method": (["merge", "./math", "--method", "legoo", "-o", "o"], "no merge method", "Did you mean lego?"),
    "a method that is explained": (["methods", "summ"], "There is no merge method 'summ'.", "Did you mean sum?"),
    "an unknown option": (
        ["merge", "./none", "--method", "lego", "--option", "start=1", "-o", "o"],
        "lego has no option start",
        "starts",
    ),
    "a wrong value": (
        ["merge", "./none", "--method", "lego", "--option", "starts=0", "-o", "o"],
        "starts is '0'",
        "int from 1 to 1000",
    ),
    "an output that is there": (["merge", "./math", "-o", "medicine"], "medicine exists already.", "--force"),
    "an output that is no composite": (
        ["merge", "./math", "-o", "full", "--force"],
        "holds no composite",
        "another folder",
    ),
    "an output that is a source": (
        ["merge", "./math", "./medicine", "-o", "math", "--force"],
        "math holds no composite of hub-merge",
        "another folder",
    ),
    "an output that links to a source": (
        ["merge", "./math", "./medicine", "-o", "link", "--force"],
        "link holds no composite of hub-merge",
        "another folder",
    ),
    "numbers that do not fit the dtype": (
        ["merge", "./math", "--weights", "1e30", "--dtype", "float16", "-o", "o"],
        "would hold NaN or infinity in float16",
        "float32 or bfloat16",
    ),
    "an output below a file": (["merge", "./math", "-o", "file/out"], "file/out: Not a directory.", "Check the path"),
    "a recipe that is no YAML": (["merge", "bad.yaml", "-o", "o"], "bad.yaml: The recipe is not valid YAML", "Mend"),
    "a recipe with a typo": (
        ["merge", "typo.yaml", "-o", "o"],
        "typo.yaml: The recipe has unknown fields: seeds.",
        "seed",
    ),
    "a recipe whose adapter is elsewhere": (
        ["merge", "full/local.yaml", "-o", "o"],
        "full/math: There is no such folder or file.",
        "hub-merge merge RECIPE.yaml PATH/TO/math -o FOLDER",
    ),
    "a recipe whose adapters are elsewhere": (
        ["merge", "full/both.yaml", "-o", "o"],
        "full/math: There is no such folder or file.",
        "hub-merge merge RECIPE.yaml PATH/TO/math 'PATH/TO/my law' -o FOLDER",
    ),
    "an adapter in place of a full model": (
        ["extract", "./math", "./medicine", "--rank", "2", "-o", "o"],
        "math has no config.json, so it is no full model.",
        "Name a full model in its place.",
    ),
    "a folder that no recipe asks for": (
        ["merge", "full/local.yaml", "./medicine", "-o", "o"],
        "The recipe has no local adapter called medicine.",
        "Its local adapters: math.",
    ),
    "a recipe that is no text": (["merge", "binary.yaml", "-o", "o"], "binary.yaml: it is not text in UTF-8.", "UTF-8"),
    "a composite without a record": (["verify", "./math"], "math has no hub_merge.json", "Name what merge, compress"),
    "a card without a record": (["card", "./math"], "math has no hub_merge.json", "Name what merge, compress"),
    "a push without a record": (["push", "./math", "me/x"], "math has no hub_merge.json", "Name what merge, compress"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_ends_with_1_and_says_what_to_do(run: Run, adapters: Path, case: str) -> None:
    (adapters / "full").mkdir()
    (adapters / "full" / "thesis.txt").write_text("precious", encoding="utf-8")
    (adapters / "full" / "local.yaml").write_text("models: [./math]\n", encoding="utf-8")
    (adapters / "full" / "inner" / "one").mkdir(parents=True)
    (adapters / "full" / "both.yaml").write_text("models: [./math, ./my law]\n", encoding="utf-8")
    (adapters / "file").write_text("", encoding="utf-8")
    (adapters / "link").symlink_to(adapters / "math")
    (adapters / "medicine" / "checkpoint-7").mkdir()
    (adapters / "bad.yaml").write_text("models: [a\n", encoding="utf-8")
    (adapters / "typo.yaml").write_text("models: [./math]\nseeds: 3\n", encoding="utf-8")
    (adapters / "binary.yaml").write_bytes(b"\xff\xfe\x00\x9f")
    before = sorted(adapters.rglob("*"))
    words, problem, remedy = REFUSALS[case]
    done = run(*words)
    assert (done.code, done.out) == (1, "")
    assert len(done.lines("Error: ")) == len(done.lines("Try: ")) == 1
    assert problem in " ".join(done.err.split())
    assert remedy in done.lines("Try: ")[0]
    assert "Traceback" not in done.err
    assert sorted(adapters.rglob("*")) == before
    assert not (adapters / "math" / "hub_merge.json").exists()


def test_force_replaces_a_composite_and_keeps_the_words_around_its_card(run: Run, adapters: Path) -> None:
    assert run("merge", "./math", "-o", "out", "-q").code == 0
    card = adapters / "out" / "README.md"
    card.write_text(f"{card.read_text(encoding='utf-8')}\nMy words.\n", encoding="utf-8")
    assert run("merge", "./math", "./medicine", "-o", "out", "--force", "-q").code == 0
    text = card.read_text(encoding="utf-8")
    assert text.endswith("\nMy words.\n") and "medicine" in text


def test_a_home_in_the_output_is_followed_where_the_shell_did_not(
    run: Run, adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(adapters / "home"))
    assert run("merge", "./math", "--output=~/out", "-q").code == 0
    assert (adapters / "home" / "out" / "hub_merge.json").is_file()
    assert not (adapters / "~").exists()


def test_adapters_that_do_not_fit_are_refused_with_every_problem_on_a_line(run: Run, adapters: Path) -> None:
    done = run("merge", "./math", "./foreign", "-o", "out")
    codes = re.findall(r"^  - \[(\w+)\]", done.err, re.MULTILINE)
    assert (done.code, done.out) == (1, "")
    assert sorted(codes) == ["base_differs", "shape_differs", "task_differs"]
    assert "Error: These adapters cannot be merged as asked: 3 problems.\n  - [" in done.err
    checked = run("check", "./math", "./foreign", "--json")
    assert checked.code == 1
    assert {found["code"] for found in checked.json["findings"] if found["severity"] == "problem"} == set(codes)  # type: ignore[index]
    told = run("check", "./math", "./foreign")
    assert told.code == 1
    assert told.out.count("✗ [") == 3
    assert told.out.endswith("✗ No merge as it is: 3 problems.\n")


def test_what_is_advised_can_be_run_as_it_stands(run: Run, adapters: Path) -> None:
    advised = run("advise", "./math", "./medicine", "--max-rank", "2", "--json")
    assert advised.code == 0
    command = advised.json["command"]  # type: ignore[index,call-overload]
    assert advised.lines("Hint: ") == [f"Hint: {command}"]
    assert run(*shlex.split(command)[1:], "-q") == Done(0, "composite\n", "")
    assert "2508.11985" in run("advise", "./math", "./medicine").out
    assert run("advise", "./math", "-q").out == "svd\n"
    assert run("advise", "./math", "./foreign").code == 1


def test_what_a_server_would_not_load_is_refused_with_what_fits(run: Run, adapters: Path) -> None:
    (adapters / "recipe.yaml").write_text("models: [./math, ./medicine]\n", encoding="utf-8")
    for words in (("merge", "./math", "./medicine"), ("merge", "recipe.yaml"), ("compress", "./math", "--rank", "2")):
        rank, fits = (2, 1) if "compress" in words else (4, 2)
        refused = run(*words, "--max-rank", fits, "-o", "out")
        assert refused.code == 1 and f"has rank {rank}; --max-rank allows {fits}" in refused.err
        assert f"--rank {fits}" in refused.err and not (adapters / "out").exists()
        assert run(*words, "--max-rank", rank, "-o", f"out-{len(words)}{words[0]}").code == 0
    assert run("merge", "./math", "./medicine", "--method", "svd", "--max-rank", 2, "-o", "out").code == 0


def test_a_single_adapter_may_be_merged_and_scored(run: Run, adapters: Path) -> None:
    assert run("merge", "./math", "-o", "out", "--json").json["modules"] == 2  # type: ignore[index]
    scored = run("score", "./math", "--json")
    assert (scored.code, scored.json["pairs"], scored.json["rms_cosine"]) == (0, [], None)  # type: ignore[index]
    assert run("score", "./math").out.startswith("Each adapter")


def test_scores_of_what_cannot_be_compared_say_so(run: Run, adapters: Path) -> None:
    elsewhere = peft_tensors(np.random.default_rng(7), {"h.5.mlp.c_fc": 2})
    write_adapter(adapters / "elsewhere", elsewhere, peft_config(base_model_name_or_path="acme/other"))
    done = run("score", "./math", "./medicine", "./elsewhere")
    told = [line for line in done.out.splitlines() if line.startswith("! ")]
    assert told == [
        f"! {name} and elsewhere change no module in common: there is nothing to compare."
        for name in ("math", "medicine")
    ]
    (warning,) = done.lines("Warning: ")
    assert warning.startswith("Warning: [base_differs] the adapters state different bases (math: acme/base; ")
    assert warning.endswith("Only deltas of one model can be compared.")
    assert run("score", "./math", "./medicine").lines("Warning: ") == []


def dense_squares(folder: Path) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """Return the squared singular values of each module's dense delta, scaling 2."""
    tensors = load_file(folder / "adapter_model.safetensors")
    return {
        module: np.linalg.svd(2.0 * B.astype(float) @ A.astype(float), compute_uv=False) ** 2
        for module in MODULES
        for A, B in [[tensors[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB"]]
    }


def test_compressing_tells_rank_size_and_energy_before_and_after(run: Run, adapters: Path) -> None:
    squares = dense_squares(adapters / "math")
    energy = sum(values[0] for values in squares.values()) / sum(values.sum() for values in squares.values())
    done = run("compress", "./math", "--energy", f"{energy - 1e-4}", "-o", "small", "--json")
    assert len(done.lines("Hint: before it can be published: ")) == len(done.lines("Hint: ")) == 1
    said: dict[str, Any] = done.json  # type: ignore[assignment]
    weights = "adapter_model.safetensors"
    assert (said["rank_before"], said["rank"], said["ranks"]) == (2, 1, None)
    assert said["bytes_before"] == (adapters / "math" / weights).stat().st_size
    assert said["bytes"] == (adapters / "small" / weights).stat().st_size < said["bytes_before"]
    assert said["energy_kept"] == pytest.approx(energy, rel=1e-5)
    assert said["distance"] == pytest.approx(np.sqrt(1 - energy), rel=1e-4)
    tails = {module: values[1:].sum() for module, values in squares.items()}
    assert [loss["module"] for loss in said["proof"]["losses"]] == sorted(tails, key=lambda module: -tails[module])
    told = run("compress", "./math", "--rank", "1", "-o", "again").out
    assert "rank:        2 → 1\n" in told and f"energy kept: {energy:.2%}\n" in told
    assert re.search(rf"^{max(tails, key=lambda module: tails[module])} +1 ", told, re.MULTILINE)
    assert run("verify", "small", "./math", "--json").json["proof"]["losses"] == said["proof"]["losses"]  # type: ignore[index]


def test_compressing_to_a_rank_for_each_module_tells_them(run: Run, adapters: Path) -> None:
    squares = dense_squares(adapters / "math")
    second = max(squares, key=lambda module: squares[module][1])
    share = 1 - min(values[1] for values in squares.values()) / sum(values.sum() for values in squares.values())
    done = run("compress", "./math", "--energy", f"{share - 1e-6}", "--profile", "peft", "-o", "small", "--json")
    assert done.json["ranks"] == {"1": 1, "2": 1}  # type: ignore[index]
    config = json.loads((adapters / "small" / "adapter_config.json").read_text())
    ranks = {module: config["rank_pattern"].get(module, config["r"]) for module in MODULES}
    assert ranks == {module: 2 if module == second else 1 for module in MODULES}
    assert (
        "rank:        2 → 1 to 2, by module\n"
        in run("card", "small").out
        + run("compress", "./math", "--rank", "auto", "--energy", f"{share - 1e-6}", "--profile", "peft", "-o", "b").out
    )
    merged = run("merge", "./math", "./medicine", "--profile", "peft", "--rank", "1", "-o", "c", "--format", "agent")
    assert "ranks=2 x 1\n" in merged.out


@pytest.mark.parametrize(
    "words", [["merge", "./math", "./medicine"], ["compress", "./math", "--rank", "1"], ["convert", "./math"]]
)
def test_what_writes_an_adapter_warns_with_the_sentences_of_the_check(
    run: Run, adapters: Path, words: list[str]
) -> None:
    asked = ["--base", "acme/copy", "--allow", "nonsense"]
    checked = run("check", *[word for word in words if word.startswith("./")], *asked).out
    sentences = [line.removeprefix("! ") for line in checked.splitlines() if line.startswith("! [")]
    assert "the user asserts acme/copy" in sentences[0] and "math: acme/base" in sentences[0]
    assert sentences[1] == "[allow_unused] there is no finding nonsense to allow. Leave it out."
    assert run(*words, *asked, "-o", "out").lines("Warning: ") == [f"Warning: {line}" for line in sentences]


def test_the_rank_of_the_exact_sum_is_told_where_the_result_has_it(run: Run, tmp_path: Path) -> None:
    for seed, name in enumerate(("math", "medicine")):
        tensors = peft_tensors(np.random.default_rng(seed), {"h.0.attn.c_attn": 9})
        write_adapter(tmp_path / name, tensors, peft_config(r=9, base_model_name_or_path="acme/base"))
    (warning,) = run("merge", "./math", "./medicine", "-o", "exact").lines("Warning: ")
    assert "the exact sum has rank 18; expected at most 16 for many servers. Use --method svd or --rank 16" in warning
    assert run("merge", "./math", "./medicine", "--rank", "4", "-o", "small").lines("Warning: ") == []


def test_what_cannot_be_published_is_hinted_at_with_what_is_missing(
    run: Run, adapters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("math", "medicine"):
        (adapters / name / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    (hint,) = run("merge", "./math", "./medicine", "-o", "my out").lines("Hint: ")
    command = "hub-merge push 'my out' OWNER/NAME --private"
    assert hint == f"Hint: the licence of acme/base is not known; {command} asks the Hub for it"
    adapter = Licensed("math", "mit")
    for base, hint in [
        ("mit", "hub-merge push out OWNER/NAME --private"),
        ("llama3.2", "hub-merge push out OWNER/Llama-NAME --private"),
        (None, "before it can be published: No licence is known for acme/base, and without one"),
        ("cc-by-nd-4.0", "before it can be published: cc-by-nd-4.0 holds for acme/base, and a composite is adapted"),
    ]:
        hint_push(Output("human"), Path("out"), united(Licensed("acme/base", base), [adapter]))
        assert capsys.readouterr().err.startswith(f"Hint: {hint}")


def test_a_compression_that_saves_nothing_says_what_would(run: Run, adapters: Path) -> None:
    done = run("compress", "./math", "--energy", "1", "-o", "same", "-q")
    assert done == Done(0, "same\n", "")
    told = run("compress", "./math", "--energy", "1", "-o", "same", "--force")
    assert "the file is no smaller" in told.err and "rank:        2 → 2\n" in told.out


def test_an_output_whose_parents_are_missing_is_created_with_them(run: Run, adapters: Path) -> None:
    assert run("merge", "./math", "./medicine", "-o", "a/b/c", "-q").out == f"{Path('a/b/c')}\n"
    assert (adapters / "a/b/c/hub_merge.json").is_file()


def test_a_recipe_finds_the_adapters_beside_it_and_gives_the_same_bytes(run: Run, adapters: Path) -> None:
    assert run("merge", "./math", "./medicine", "--weights", "1,-0.5", "-o", "out", "--json").code == 0
    (adapters / "recipes").mkdir()
    for name in ("math", "medicine"):
        (adapters / name).rename(adapters / "recipes" / name)
    recipe = (adapters / "out" / "recipe.yaml").read_bytes()
    (adapters / "recipes" / "r.yaml").write_bytes(recipe)
    assert run("merge", "recipes/r.yaml", "-o", "again", "--json").code == 0
    weights = "adapter_model.safetensors"
    assert (adapters / "again" / weights).read_bytes() == (adapters / "out" / weights).read_bytes()
    assert [entry["parameters"]["weight"] for entry in yaml.safe_load(recipe)["models"]] == [1.0, -0.5]


def test_a_tampered_composite_fails_its_proof_with_1(run: Run, adapters: Path) -> None:
    run("merge", "./math", "./medicine", "-o", "out", "-q")
    (adapters / "out" / "adapter_config.json").write_text("{}", encoding="utf-8")
    done = run("verify", "./out", "./math", "./medicine", "--json")
    assert done.code == 1
    assert len(done.lines("Error: ")) == 1
    assert "./out" in done.lines("Error: ")[0]


def test_parents_that_are_gone_are_told_with_one_command_that_names_them_all(run: Run, adapters: Path) -> None:
    (adapters / "medicine").rename(adapters / "数学 ü")
    write_adapter(adapters / "law", peft_tensors(np.random.default_rng(9), MODULES), peft_config())
    assert run("merge", "./math", "./数学 ü", "./law", "--base", "acme/base", "-o", "my out").code == 0
    done = run("verify", "my out", "./law")
    assert (done.code, done.out.count("none of those given holds its files")) == (1, 2)
    (hint,) = done.lines("Hint: ")
    assert hint == "Hint: hub-merge verify 'my out' ./law PATH/TO/math 'PATH/TO/数学 ü'"
    assert run(*shlex.split(hint.replace("PATH/TO", "."))[2:]).code == 0
    (hint,) = run("verify", "my out", "--json").lines("Hint: ")
    assert hint == "Hint: hub-merge verify 'my out' PATH/TO/math 'PATH/TO/数学 ü' PATH/TO/law"
    assert run("verify", "my out", "-q") == Done(1, "parents gone\n", "")


def test_the_card_is_printed_alone_or_written(run: Run, adapters: Path) -> None:
    run("merge", "./math", "./medicine", "-o", "out", "-q")
    readme = adapters / "out" / "README.md"
    assert run("card", "out") == Done(0, readme.read_text(encoding="utf-8"), "")
    written = run("card", "out", "--repo-id", "me/composite", "--write")
    assert (written.code, written.out, written.err) == (0, "", f"Wrote {Path('out/README.md')}\n")
    assert "me/composite" in readme.read_text(encoding="utf-8")


# --- bugs, secrets, signals -------------------------------------------------------------------------------------------


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError(f"no luck with {SECRET} and \x1b]0;evil")

    monkeypatch.setattr("hub_merge.methods.list_methods", fail)


def test_a_bug_is_told_with_the_way_to_its_traceback(run: Run, broken: None) -> None:
    done = run("methods", "--json")
    assert (done.code, done.out) == (1, "")
    assert done.lines("Error: ") == ["Error: Unexpected RuntimeError: no luck with hf_*** and �]0;evil"]
    assert "HF_DEBUG=1" in done.lines("Try: ")[0]
    assert "Traceback" not in done.err


def test_debugging_shows_the_traceback_without_secrets(run: Run, broken: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DEBUG", "1")
    done = run("methods")
    assert done.code == 1
    assert "Traceback (most recent call last)" in done.err
    assert "in print_methods" not in done.err.splitlines()[0]
    assert len(done.lines("Error: ")) == 1
    assert SECRET not in done.err


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", SECRET],
        ["search", "some/base", SECRET],
        ["methods", SECRET],
        ["inspect", "./none", "--token", "my private words", "my private words"],
        ["inspect", "my private words", "--token=my private words"],
    ],
)
def test_a_token_is_never_shown(run: Run, words: list[str]) -> None:
    done = run(*words)
    assert done.code in (1, 2)
    assert SECRET not in done.out + done.err
    assert "my private words" not in done.err
    assert "hf_***" in done.err


def test_a_token_of_the_environment_is_never_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "an unusual token")
    done = run("inspect", "an unusual token")
    assert done.code == 1
    assert "hf_***" in done.err
    assert "an unusual token" not in done.err


def python(*words: str, env: dict[str, str] | None = None, **settings: object) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **settings}
    return subprocess.Popen([sys.executable, *words], env={**os.environ, **(env or {})}, **pipes)  # type: ignore[call-overload,no-any-return]


@pytest.mark.skipif(os.name == "nt", reason="signals are sent as on POSIX")
def test_interrupting_ends_with_130(tmp_path: Path) -> None:
    with HubDouble(xet=False) as hub:
        hub.faults.add("GET /api/models", delay=20, times=None)
        process = python(
            *("-m", "hub_merge", "inspect", "a/b", "--json"),
            env=hub.environment(tmp_path),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
        )
        deadline = time.monotonic() + 20
        while not any(request.path == "/api/models/a/b" for request in hub.requests):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "Interrupted."
    assert "Traceback" not in err


@pytest.mark.skipif(os.name == "nt", reason="pipes break as on POSIX")
def test_a_reader_that_leaves_early_is_no_error_worth_a_word() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = python("-m", "hub_merge", "methods", "--json", stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert "Error" not in err


def test_output_that_the_terminal_cannot_show_does_not_fail() -> None:
    process = python("-m", "hub_merge", "methods", "sum", "--format", "human", env={"PYTHONIOENCODING": "ascii"})
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert "https://arxiv.org/abs/2508.11985" in out


COLOUR_SCRIPT = (
    "import sys; sys.argv = ['hub-merge', 'methods', '--format', 'human']; {tty}; import hub_merge.cli as c; c.main()"
)
FAKE_TTY = "import click.utils, click._compat as k; k.isatty = lambda stream: True"


@pytest.mark.parametrize(("no_color", "escapes"), [("", True), ("1", False)])
def test_no_color_is_honoured(no_color: str, escapes: bool) -> None:
    env = {"NO_COLOR": no_color, "TERM": "xterm"}
    process = python("-c", COLOUR_SCRIPT.format(tty=FAKE_TTY), env=env)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert ("\x1b[" in out) is escapes


def test_progress_is_drawn_for_people_at_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for mode in ("human", "agent", "json", "quiet"):
        Output(mode).progress()("pull", 1, 2)  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for mode in ("agent", "json", "quiet"):
        Output(mode).progress()("pull", 1, 2)  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""
    Output("human").progress()("pull", 1, 2)
    assert capsys.readouterr().err == f"  pull {'█' * 12}{'░' * 12} 1/2\r"


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("name", [*cli.commands, *(name for name in LEAVES if " " in name)])
def test_the_help_of_every_command_has_examples_that_parse(run: Run, name: str, flag: str) -> None:
    done = run(*name.split(), flag)
    assert (done.code, done.err) == (0, "")
    examples = re.findall(r"^  \$ hub-merge (.*)$", done.out, re.MULTILINE)
    assert examples
    for example in examples:
        assert_parses(example)


def test_the_help_shows_the_commands_in_the_order_of_the_work_uncut(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = run("--help")
    listed = re.findall(r"^  (\w+) +[A-Z].*\.$", done.out, re.MULTILINE)
    assert listed == list(cli.commands) == list(COMMANDS)
    assert "..." not in done.out.partition("Commands:")[2].partition("Examples:")[0]
    assert run().code == 2


def test_every_option_and_argument_is_explained() -> None:
    for name, command in LEAVES.items():
        assert command.help
        for param in command.params:
            if isinstance(param, click.Option):
                assert param.help, f"{name} {param.name}"
                assert param.help.rstrip("]").endswith(".") or "[default" in param.help, f"{name} {param.name}"


@pytest.mark.parametrize(
    ("program", "shown"),
    [
        ("/somewhere/bin/hf-merge", "hf merge"),
        ("hf-merge.exe", "hf merge"),
        ("/somewhere/bin/hub-merge", "hub-merge"),
        ("/package/hub_merge/__main__.py", "python -m hub_merge"),
    ],
)
def test_the_program_is_called_as_the_user_called_it(run: Run, adapters: Path, program: str, shown: str) -> None:
    assert run("--help", program=program).out.startswith(f"Usage: {shown} [OPTIONS]")
    assert f"$ {shown} methods lego" in run("methods", "--help", program=program).out
    hint = run("check", "./math", "./medicine", "--json", program=program).lines("Hint: ")
    assert hint == [f"Hint: {shown} score ./math ./medicine"]
    refused = run("merge", "./math", "--method", "sum", "--option", "a=1", "-o", "x", program=program)
    assert refused.lines("Try: ") == [f"Try: Its options: none; see {shown} methods sum."]


def test_help_needs_neither_numpy_nor_torch_nor_the_hubs_library() -> None:
    script = (
        "import sys; sys.argv = ['hub-merge', '--help']\n"
        "from hub_merge.cli import main\n"
        "try: main()\n"
        "except SystemExit: print('LOADED', *sys.modules)\n"
    )
    out, _ = python("-c", script).communicate(timeout=30)
    loaded = set(out.rpartition("LOADED")[2].split())
    assert {"click", "hub_merge.cli.app"} <= loaded
    heavy = {"numpy", "torch", "huggingface_hub", "safetensors", "yaml", "httpx2", "jinja2", "matplotlib", "peft"}
    assert not heavy & loaded


def test_the_version_is_that_of_the_package() -> None:
    out, err = python("-m", "hub_merge", "--version").communicate(timeout=30)
    assert (out, err) == (f"python -m hub_merge {version('hub-merge')}\n", "")


def test_the_package_runs_as_a_module() -> None:
    process = python("-m", "hub_merge", "methods", "--json")
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert [entry["name"] for entry in json.loads(out)] == [method.name for method in list_methods()]


# --- methods ----------------------------------------------------------------------------------------------------------


def test_methods_as_json_are_objects_with_name_summary_options_and_paper(run: Run) -> None:
    listed = run("methods", "--json").json
    assert isinstance(listed, list)
    for entry in listed:
        assert {"name", "summary", "options", "paper"} <= entry.keys()
        assert entry["summary"].endswith(".")
        assert all({"name", "takes", "default"} <= option.keys() for option in entry["options"])
    assert [entry["paper"] for entry in listed if entry["name"] == "sum"] == ["2508.11985"]


def test_every_method_is_explained_to_people_and_programs(run: Run) -> None:
    listed = run("methods", "--json").json
    assert isinstance(listed, list)
    for entry in listed:
        assert run("methods", entry["name"]).out.startswith(f"{entry['name']}\n  formula: ")
        assert run("methods", entry["name"], "--json").json == entry


# --- the skill --------------------------------------------------------------------------------------------------------


def assert_parses(command: str) -> None:
    """Assert that click takes the words of ``command``, without running it."""
    name, *words = shlex.split(command.partition(" > ")[0])
    found: Any = cli.commands[name]
    while isinstance(found, click.Group):
        name, *words = words
        found = found.commands[name]
    context = click.Context(found, info_name=name, resilient_parsing=True, **cli.context_settings)
    _, rest, _ = found.make_parser(context).parse_args(list(words))
    assert rest == [], command


def skill_commands() -> list[str]:
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", SKILL.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("command", skill_commands())
def test_every_command_of_the_skill_exists_with_its_options(command: str) -> None:
    program, _, words = command.partition(" ")
    assert program == "hub-merge"
    assert_parses(words)


def test_the_skill_has_a_name_a_description_and_every_command() -> None:
    front = yaml.safe_load(SKILL.read_text(encoding="utf-8").split("---")[1])
    assert front["name"] == SKILL.parent.name
    assert 40 < len(front["description"]) <= 1024
    assert {command.split()[1] for command in skill_commands()} == set(cli.commands)  # of a group, one is enough
