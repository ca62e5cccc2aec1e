"""The commands of the zoo against the Hub double, from building to sharing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from huggingface_hub import constants

from hub_merge.cli.app import cli
from hub_merge.errors import MergeError
from hub_merge.zoo.index import Index
from hub_merge.zoo.job import script
from tests.hub_double import HubDouble
from tests.zoos import BASE, adapter_files, fill, gpt2_factors


@pytest.fixture
def hub(hub_lfs: HubDouble, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HubDouble:
    monkeypatch.setattr(constants, "ENDPOINT", hub_lfs.endpoint)
    template = hub_lfs.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_TOKEN", hub_lfs.token("alice"))
    monkeypatch.setattr(sys, "argv", ["hub-merge"])
    monkeypatch.chdir(tmp_path)
    return hub_lfs


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli, list(arguments), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


def answer(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


@pytest.fixture
def filled(hub: HubDouble) -> HubDouble:
    pytest.importorskip("pyarrow")
    fill(hub, 10, layers=1)
    hub.add_repo(BASE, {"config.json": b'{"model_type": "gpt2"}'})
    answer("zoo", "build", BASE, "--workers", "1")
    return hub


def test_build_stats_and_update(filled: HubDouble) -> None:
    stats = answer("zoo", "stats")
    assert (stats["adapters"], stats["usable"], stats["copies"]) == (10, 10, 1)
    assert stats["bases"] == {BASE: 10}
    assert stats["bytes"] / stats["adapters"] < 12_000  # few rows share the footer of a file
    filled.add_repo("new/one", adapter_files(gpt2_factors(77, layers=1)))
    assert answer("zoo", "update", "--workers", "1")["indexed"] == 1
    assert "adapters" in run("zoo", "stats", "--format", "human")


def test_near_far_and_complement_answer_from_the_index_or_exactly(filled: HubDouble) -> None:
    found = answer("zoo", "near", "author/run-0-step-0", "--limit", "3")
    assert (found[0]["key"], found[0]["relation"]) == ("copier/run-0-again", "same file")
    assert found[0]["cosine"] == pytest.approx(1, abs=1e-9)
    assert found[1]["cosine"] == pytest.approx(found[1]["estimate"], abs=0.05)
    filled.requests.clear()
    found = answer("zoo", "near", "author/run-0-step-0", "--no-exact")
    assert not filled.requests
    assert found[0]["cosine"] is None
    assert answer("zoo", "far", "maths/apart-0-6", "--limit", "1")[0]["key"] == "maths/apart-0-7"
    partners = answer("zoo", "complement", "maths/apart-0-6", "--limit", "2")
    assert partners[0]["key"] == "maths/apart-0-7"
    assert 0 < partners[0]["value"] <= 1
    assert "maths/apart-0-7" in run("zoo", "complement", "maths/apart-0-6", "--format", "human", "--no-truncate")


def test_a_local_adapter_can_be_asked_about_and_added(filled: HubDouble, tmp_path: Path) -> None:
    local_adapter(tmp_path / "mine", (0, 3, 8))
    assert answer("zoo", "near", "./mine", "--limit", "1")[0]["key"] == "someone/alone-0-8"
    assert answer("zoo", "add", "./mine", "author/run-0-step-1", "--workers", "1")["indexed"] == 1
    assert len(Index(Path("zoo")).known()) == 11


def test_answers_about_local_adapters_name_commands_that_can_be_run(hub: HubDouble, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for seed, name in enumerate(("my math", "medicine")):
        local_adapter(tmp_path / name, seed)
    run("zoo", "add", "./my math", "./medicine", "--workers", "1")
    said = told("zoo", "complement", "./my math")
    assert "Hint: hub-merge check './my math' PATH/TO/medicine" in said
    assert "exact comparison, which local adapters lack: the index keeps no path of them" in said
    assert "Hint: hub-merge score ./medicine 'PATH/TO/my math'" in told("zoo", "near", "./medicine")
    assert "which --no-exact leaves out" in told("zoo", "near", "./medicine", "--no-exact")
    (key,) = (key for key in Index(Path("zoo")).known() if key.startswith("./medicine#"))
    said = told("zoo", "near", key)
    assert "this adapter is known from the index alone" in said
    assert "Hint: hub-merge score PATH/TO/medicine 'PATH/TO/my math'" in said


def test_a_set_of_local_adapters_is_proposed_with_the_command_that_merges_it(hub: HubDouble, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for seed, name in enumerate(("math", "medicine")):
        local_adapter(tmp_path / name, seed)
    run("zoo", "add", "./math", "./medicine", "--workers", "1")
    assert "Hint: hub-merge merge PATH/TO/math PATH/TO/medicine -o merged" in told(
        "zoo", "compose", "--skills", "math,medicine"
    )
    result = CliRunner().invoke(cli, ["zoo", "compose", "--skills", "math,medicine", "-o", "my set", "--json"])
    assert [chosen["skill"] for chosen in json.loads(result.stdout)["adapters"]] == ["math", "medicine"]
    assert isinstance(result.exception, MergeError)
    assert result.exception.remedy == "hub-merge merge PATH/TO/math PATH/TO/medicine -o 'my set'"
    assert not Path("my set").exists()


def test_a_question_without_an_answer_is_told_why(hub: HubDouble, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    local_adapter(tmp_path / "mine", 1)
    local_adapter(tmp_path / "closed", 2, license="cc-by-nc-nd-4.0")
    local_adapter(tmp_path / "foreign", 3, base="acme/else")
    Index.create(Path("zoo"))
    assert "holds no adapter that can be compared" in told("zoo", "near", "./mine")
    run("zoo", "add", "./foreign", "--workers", "1")
    assert f"holds no adapter of {BASE}" in told("zoo", "near", "./mine")
    assert "holds no other trained adapter of acme/else" in told("zoo", "far", "./foreign")
    run("zoo", "add", "./closed", "--workers", "1")
    assert "--any-license shows them" in told("zoo", "complement", "./mine")


def told(*arguments: str) -> str:
    """Return what people read on stderr."""
    result = CliRunner().invoke(cli, [*arguments, "--format", "human"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stderr


def local_adapter(folder: Path, seed: Any, **settings: Any) -> Path:
    folder.mkdir()
    for name, content in adapter_files(gpt2_factors(seed, layers=1), **settings).items():
        (folder / name).write_bytes(content)
    return folder


def test_a_local_adapter_that_cannot_be_used_is_told_and_the_others_are_added(hub: HubDouble, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    local_adapter(tmp_path / "good", 1)
    (local_adapter(tmp_path / "bad", 2) / "adapter_model.safetensors").write_bytes(b"no weights")
    result = CliRunner().invoke(cli, ["zoo", "add", "./bad", "./good", "--workers", "1", "--json"])
    built = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (built["listed"], built["indexed"], built["unusable"]) == (2, 1, 1)
    assert built["left_out"][0].startswith("./bad: ")
    assert "Warning: ./bad: " in result.stderr
    assert [key.partition("#")[0] for key in Index(Path("zoo")).known()] == ["./good"]


@pytest.mark.parametrize("named", [["./bad"], ["nobody/nothing"], ["./bad", "mine/missing"]], ids=" ".join)
def test_adding_nothing_ends_with_1_and_leaves_no_empty_index(hub: HubDouble, tmp_path: Path, named: list[str]) -> None:
    pytest.importorskip("pyarrow")
    (local_adapter(tmp_path / "bad", 2) / "adapter_model.safetensors").write_bytes(b"no weights")
    (tmp_path / "mine").mkdir()
    if "nobody/nothing" in named:
        hub.faults.add("GET /api/models/nobody", status=503, times=None)
    assert CliRunner().invoke(cli, ["zoo", "add", *named, "--workers", "1"]).exit_code == 1
    assert not Path("zoo").exists()


def test_an_index_that_was_there_stays_where_nothing_is_added(hub: HubDouble) -> None:
    pytest.importorskip("pyarrow")
    Index.create(Path("zoo"))
    assert "nothing" in run("zoo", "add", "./nowhere", "--workers", "1", "--format", "human", code=1).casefold()
    assert Index(Path("zoo")).known() == {}


def test_families_and_their_map(filled: HubDouble) -> None:
    (family,) = answer("zoo", "families", "--plot", "map.png")
    assert (family["size"], family["files"], family["deltas"]) == (6, 5, 5)
    assert Path("map.png").read_bytes().startswith(b"\x89PNG")


def test_compose_proposes_checks_and_merges(filled: HubDouble) -> None:
    proposal = answer("zoo", "compose", "--skills", "maths,author", "-o", "merged")
    assert [chosen["skill"] for chosen in proposal["adapters"]] == ["maths", "author"]
    assert proposal["compatible"] is True
    exact = proposal["scores"]["pairs"][0]["global_cosine"]
    assert proposal["pairs"][0]["estimate"] == pytest.approx(exact, abs=0.05)
    assert Path("merged/adapter_model.safetensors").is_file()
    assert "interference" in run("zoo", "compose", "--skills", "maths,author", "--no-exact", "--format", "human")


def test_an_index_is_shared_asked_where_it_is_and_extended_by_pull_request(filled: HubDouble) -> None:
    pushed = CliRunner().invoke(cli, ["zoo", "push", "alice/gpt2-zoo", "--json"], catch_exceptions=False)
    assert json.loads(pushed.stdout)["created"] is True
    assert " verify " not in pushed.stderr
    assert answer("zoo", "push", "alice/gpt2-zoo")["changed"] is False
    card = filled.file("alice/gpt2-zoo", "README.md", repo_type="dataset").decode()
    assert f"| {BASE} | 10 |" in card
    found = answer("zoo", "near", "author/run-0-step-0", "--index", "alice/gpt2-zoo", "--no-exact")
    assert found[0]["key"] == "copier/run-0-again"
    run("zoo", "pull", "alice/gpt2-zoo", "--index", "other")
    filled.add_repo("new/one", adapter_files(gpt2_factors(77, layers=1)))
    assert answer("zoo", "update", "--index", "other", "--workers", "1")["indexed"] == 1
    opened = answer("zoo", "push", "alice/gpt2-zoo", "--index", "other", "--create-pr")
    assert opened["pr_url"].endswith("/datasets/alice/gpt2-zoo/discussions/1")
    before = set(filled.commits("alice/gpt2-zoo", repo_type="dataset")[0].files)
    assert answer("zoo", "push", "alice/gpt2-zoo", "--index", "other")["changed"] is True
    after = set(filled.commits("alice/gpt2-zoo", repo_type="dataset")[0].files)
    assert len(before) == len(after)
    assert before != after
    assert answer("zoo", "stats", "--index", "alice/gpt2-zoo")["adapters"] == 11


def test_a_dataset_of_something_else_is_not_written_to(filled: HubDouble) -> None:
    filled.add_repo("alice/texts", {"train.csv": b"a,b\n"}, repo_type="dataset")
    with pytest.raises(Exception, match="was not made by hub-merge"):
        run("zoo", "push", "alice/texts")
    with pytest.raises(Exception, match="no index"):
        run("zoo", "stats", "--index", "alice/texts")


def test_a_job_is_a_script_that_runs(hub: HubDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    fill(hub, 2, layers=1)
    text = run("zoo", "build", BASE, "--job", "--to", "alice/zoo", "--limit", "2")
    assert text.startswith('# /// script\n# requires-python = ">=3.11"\n# dependencies = ["hub-merge[zoo]"]\n# ///\n')
    commands: list[list[str]] = []
    monkeypatch.setattr("subprocess.run", lambda command, check: commands.append(command[3:]))
    exec(compile(text, "build_zoo.py", "exec"), {})
    for command in commands:
        run(*command, *(["--workers", "1"] if command[1] == "build" else []))
    assert answer("zoo", "stats", "--index", "alice/zoo")["adapters"] == 2
    assert sys.executable not in text


def test_a_job_is_submitted_with_the_token_as_its_secret(hub: HubDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: dict[str, Any] = {}

    class Job:
        id, url = "job-1", "https://example.org/jobs/alice/job-1"

    def run_uv_job(self: Any, path: str, **settings: Any) -> Job:
        submitted.update(settings, text=Path(path).read_text(encoding="utf-8"))
        return Job()

    monkeypatch.setattr("huggingface_hub.HfApi.run_uv_job", run_uv_job)
    told = answer("zoo", "build", BASE, "--job", "--to", "alice/zoo", "--submit", "--flavor", "cpu-basic")
    assert told == {"url": Job.url, "id": Job.id}
    assert submitted["secrets"] == {"HF_TOKEN": hub.token("alice")}
    assert submitted["flavor"] == "cpu-basic"
    assert submitted["text"] == script(BASE, "alice/zoo", flavor="cpu-basic")
    assert hub.token("alice") not in submitted["text"]


def test_names_that_are_none_of_the_hub_get_into_no_script() -> None:
    with pytest.raises(Exception, match="no name of the Hub"):
        script('a/b"; import os', "alice/zoo")


def test_options_of_jobs_belong_to_jobs(hub: HubDouble) -> None:
    result = CliRunner().invoke(cli, ["zoo", "build", BASE, "--to", "alice/zoo"])
    assert result.exit_code == 2
    assert "--to belongs to --job" in result.output


# --- search -----------------------------------------------------------------------------------------------------------


def test_search_takes_rank_language_downloads_and_pages(hub: HubDouble) -> None:
    fill(hub, 10, layers=1)
    everything = [row["id"] for row in answer("search", BASE)]
    pages = [answer("search", BASE, "--limit", "4", "--page", str(page)) for page in (1, 2, 3)]
    assert [row["id"] for page in pages for row in page] == everything
    assert len(answer("search", BASE, "--min-downloads", "7")) == 3
    assert answer("search", BASE, "--language", "fr") == []
    assert [row["fits"] for row in answer("search", BASE, "--max-rank", "3", "--limit", "2")] == [False, False]
    assert [row["rank"] for row in answer("search", BASE, "--max-rank", "4", "--limit", "2")] == [4, 4]


def test_search_finds_adapters_of_former_names_and_of_copies_if_asked(hub: HubDouble) -> None:
    old = adapter_files(gpt2_factors(1, layers=1), base="gpt2")
    hub.add_repo("me/old", old)
    hub.add_repo(
        "bits/gpt2-bnb-4bit", {"README.md": f"---\nbase_model: {BASE}\nbase_model_relation: quantized\n---\n".encode()}
    )
    hub.add_repo("me/small", adapter_files(gpt2_factors(2, layers=1), base="bits/gpt2-bnb-4bit"))
    assert [row["id"] for row in answer("search", BASE)] == ["me/old"]
    assert {row["id"] for row in answer("search", BASE, "--quantized")} == {"me/old", "me/small"}


def test_search_lists_what_fits_an_adapter_at_hand(hub: HubDouble) -> None:
    fill(hub, 3, layers=1)
    hub.add_repo(BASE, {"config.json": b'{"model_type": "gpt2"}'})
    hub.add_repo("me/odd", {**adapter_files(gpt2_factors(2, layers=1)), "adapter_model.safetensors": b"no"})
    rows = answer("search", "--compatible-with", "author/run-0-step-0")
    assert {row["id"]: row["fits"] for row in rows}["me/odd"] is False
    assert {row["id"]: row["fits"] for row in rows}["author/run-0-step-1"] is True
    assert "do not fit" not in run("search", "--compatible-with", "author/run-0-step-0", "--format", "human")
