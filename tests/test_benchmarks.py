"""The benchmark times what it says, on the same work for both sides, and reports what it timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import parts
from benchmarks.__main__ import PICTURE, REPORT, RESULTS, write_report
from benchmarks.adapters import GPT2, LLAMA_8B, Shape
from benchmarks.claims import CLAIMS
from benchmarks.parts import INTERPRETER, PARTS, Workshop
from benchmarks.processes import OUTPUT, Command, Cost, interleaved
from benchmarks.report import Measured, read, render
from benchmarks.stopwatch import stopwatch
from hub_merge.adapter import Adapter
from tests.helpers import relative_error

pytest.importorskip("peft")


def small(shape: Shape) -> Shape:
    """Return the same kind of adapter in small: an eighth of the layers, of 1/64 of the width."""
    return replace(
        shape,
        layers=max(1, shape.layers // 8),
        config={
            name: size // 64 if name in ("hidden_size", "intermediate_size", "n_embd", "vocab_size") else size
            for name, size in shape.config.items()
        },
        targets={name: (height // 64, width // 64) for name, (height, width) in shape.targets.items()},
        rank=2,
    )


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """A workshop of small adapters that times every process once."""
    return Workshop(tmp_path, 1, small)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, workshop: Workshop) -> dict[str, Measured]:
    """Every part as if each process had cost the same, but for the interpreter's memory."""

    def pretend(commands: Mapping[str, Command], runs: int) -> dict[str, Cost]:
        return {name: Cost(2.0, 3.0, 0.5, 0.75, 10.0 if name == INTERPRETER else 40.0, 60.0) for name in commands}

    monkeypatch.setattr(parts, "interleaved", pretend)
    return {name: Measured(1, "a machine", part(workshop)) for name, part in PARTS.items()}


WORK = """import time
held = b"x" * {size}
time.sleep(0.4)
print("some words")
print('{{"work_cpu": 7, "work_wall": 8}}')
"""


def script(megabytes: int) -> Command:
    """Return a process that fills memory, waits, and tells what its work took."""
    return Command((sys.executable, "-c", WORK.format(size=megabytes * 10**6)))


def test_processes_are_timed_and_watched() -> None:
    costs = interleaved({"little": script(1), "much": script(31)}, 1)
    assert costs["much"].cpu < 0.4 < costs["much"].wall
    assert (costs["much"].work_cpu, costs["much"].work_wall) == (7, 8)
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not tell what memory a process has")
    assert costs["much"].private - costs["little"].private == pytest.approx(30, abs=2)
    assert costs["much"].resident > costs["much"].private


def test_a_process_that_fails_is_no_measurement() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        interleaved({"broken": Command((sys.executable, "-c", "raise SystemExit(3)"))}, 1)


def test_a_process_keeps_to_its_cores(tmp_path: Path) -> None:
    code = "import os, sys; open(sys.argv[1], 'a').write(f'{len(os.sched_getaffinity(0))} ')"
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("the system cannot hold a process to a core")
    interleaved({"one": Command((sys.executable, "-c", code, str(tmp_path / "seen")))}, 0)
    assert (tmp_path / "seen").read_text() == "1 "


def test_the_stopwatch_tells_waiting_from_work() -> None:
    with stopwatch() as took:
        time.sleep(0.05)
    assert took["work_cpu"] < 0.05 <= took["work_wall"]


def test_one_layer_is_extrapolated_by_its_work_alone() -> None:
    cost = Cost(5.0, 6.0, 2.0, 2.5, 10.0, 20.0).extrapolated(16)
    assert cost == Cost(5.0 + 15 * 2.0, 6.0 + 15 * 2.5, 32.0, 40.0, 10.0, 20.0)


@pytest.mark.parametrize("shape", [GPT2, LLAMA_8B])
def test_both_sides_do_the_same_work(shape: Shape, tmp_path: Path) -> None:
    three = Workshop(tmp_path, 1, small).adapters(shape)
    for name, command in (("ours", three.ours("sum")), ("peft", three.peft("cat"))):
        arguments = [str(tmp_path / name) if part == OUTPUT else part for part in command.arguments]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout).keys() == {"work_cpu", "work_wall"}
    ours, peft = Adapter.from_pretrained(tmp_path / "ours"), Adapter.from_pretrained(tmp_path / "peft" / "merged")
    assert ours.modules.keys() == peft.modules.keys()
    assert len(ours.modules) == three.shape.modules
    for module in ours.modules:
        assert relative_error(ours.factors(module).delta(), peft.factors(module).delta()) < 0.01  # bfloat16


def test_jobs_beside_merging_run(workshop: Workshop) -> None:
    three = workshop.adapters(LLAMA_8B)
    jobs = {"copy": three.ours("copy"), "score": three.ours("score", spectra=True), "command": three.command("sum")}
    costs = interleaved(jobs, 0)
    assert costs["command"].work_cpu is None
    assert 0 < costs["copy"].work_cpu < costs["score"].work_cpu < costs["score"].cpu


def test_every_claim_finds_its_rows(timed: dict[str, Measured]) -> None:
    held = {claim.text: claim.holds(timed[claim.part].rows) for claim in CLAIMS}
    assert not held["`svd` on two cores against one"]  # equal costs are 1 times, more than 0.6
    assert held["`svd` against `sum`"]
    unknown = {name: replace(cost, private=None) for name, cost in timed["llama-8b"].rows.items()}
    memory = [claim for claim in CLAIMS if claim.unit == " MB"]
    assert memory
    assert {claim.holds(unknown) for claim in memory} == {None}


def test_the_report_says_what_was_measured(timed: dict[str, Measured]) -> None:
    assert "| gpt2 | `sum`: times cheaper than PEFT's cat | ≥ 10× | 1× CPU, 1× wall | **no** |" in render(
        timed, PICTURE
    )
    rows = {**timed["gpt2"].rows, "merge sum": Cost(0.125, 0.25, 0.01, 0.02, 30.0, 50.0)}
    report = render({"gpt2": replace(timed["gpt2"], rows=rows)}, PICTURE)
    assert "≥ 10× | 16× CPU, 12× wall | yes |" in report
    assert "| merge sum | 0.125 | 0.250 | 0.010 | 0.020 | 30 | 50 |" in report
    assert "| `cat` | `sum` | 2.00 | 0.125 | 16.0 |" in report
    assert "| gpt2 | `hub-merge merge` by `sum` beside PEFT's cat | 1.00× CPU, 1.00× wall |" in report
    assert "llama-8b" not in report


def test_parts_can_be_measured_one_at_a_time(timed: dict[str, Measured], tmp_path: Path) -> None:
    for name in ("scaling", "gpt2"):
        timed[name].write(tmp_path / f"{name}.json")
        write_report(tmp_path)
    parts_read = read(tmp_path)
    assert parts_read == {name: timed[name] for name in ("gpt2", "scaling")}
    assert (tmp_path / REPORT).read_text(encoding="utf-8") == render(parts_read, PICTURE)
    assert (tmp_path / PICTURE).stat().st_size < 100_000


def test_the_report_in_the_repository_is_that_of_its_figures() -> None:
    assert (RESULTS / REPORT).read_text(encoding="utf-8") == render(read(RESULTS), PICTURE)
    assert (RESULTS / PICTURE).stat().st_size < 100_000
