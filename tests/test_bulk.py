"""Checking all that the Hub lists for a base: a verdict and its reason for each, by few bytes, politely, resumably."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from hub_merge.bulk import Verdict, check_listed
from hub_merge.cli import main
from hub_merge.errors import HubUnavailable
from hub_merge.hub import Hub
from tests.helpers import peft_config, peft_tensors
from tests.hub_double import HubDouble

BASE = "acme/base"
MODULES = {f"h.{layer}.attn.c_attn": 2 for layer in range(4)}


def files(base: str | None = BASE, *, card: bool = True, **changes: Any) -> dict[str, bytes]:
    config = peft_config(base_model_name_or_path=base, task_type="CAUSAL_LM", **changes)
    made = {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": save(peft_tensors(np.random.default_rng(0), MODULES)),
    }
    stated = f"---\nbase_model: {BASE}\nlicense: mit\nlibrary_name: peft\n---\n".encode()
    return {**made, "README.md": stated} if card else made


ZOO: Mapping[str, tuple[dict[str, bytes], str, str]] = {
    "alice/sound": (files(), "fits", "rank 2 on 4 modules"),
    "alice/untagged-base": (files(card=False), "fits", "rank 2 on 4 modules"),
    "alice/dora": (files(use_dora=True), "blocked", "use_dora"),
    "alice/path": (files("/home/ann/secret/llama"), "caution", "its card names acme/base"),
    "alice/elsewhere": (files("acme/other"), "blocked", "acme/other"),
    "alice/by-name": (files("bob/base-bnb-4bit"), "caution", "quantised copy of acme/base"),
    "bob/by-card": (files("bob/four-bits"), "blocked", "bob/four-bits"),
    "bob/pickle": ({**files(), "adapter_model.safetensors": b"PK\x03\x04" + bytes(60)}, "unreadable", "safetensors"),
    "bob/no-weights": (
        {k: v for k, v in files().items() if "model" not in k},
        "unreadable",
        "adapter_model.safetensors",
    ),
}


@pytest.fixture
def zoo(hub_lfs: HubDouble) -> HubDouble:
    """A base with adapters of every kind."""
    hub_lfs.add_repo(BASE, {"config.json": b"{}"})
    for downloads, (repo_id, (content, _, _)) in enumerate(ZOO.items()):
        hub_lfs.add_repo(repo_id, content, downloads=downloads)
    return hub_lfs


def connect(hub: HubDouble, tmp_path: Path, **settings: Any) -> Hub:
    options = {"retries": 0, "timeout": 5.0, **settings}
    return Hub(token=False, endpoint=hub.endpoint, cache_dir=tmp_path / "cache", **options)


def judged(hub: Hub, report: Path | None = None, **asked: Any) -> dict[str, Verdict]:
    return {v.repo_id: v for v in check_listed(hub.search(BASE, limit=200, **asked), BASE, hub=hub, report=report)}


def test_every_listed_adapter_gets_its_verdict_and_a_reason(zoo: HubDouble, tmp_path: Path) -> None:
    client = connect(zoo, tmp_path)
    verdicts = judged(client)
    assert verdicts.keys() == ZOO.keys()
    for repo_id, (_, verdict, reason) in ZOO.items():
        assert (verdicts[repo_id].verdict, reason in verdicts[repo_id].reason) == (verdict, True), verdicts[repo_id]
        assert "secret" not in json.dumps(verdicts[repo_id].to_dict())
    assert (verdicts["alice/dora"].codes, verdicts["alice/sound"].codes) == (("dora",), ())
    sound = verdicts["alice/sound"]
    assert (sound.rank, sound.modules, sound.license, sound.trained_on) == (2, 4, "mit", BASE)
    assert sound.commit == zoo.repo("alice/sound").head.oid and 0 < sound.bytes_read <= (sound.bytes_total or 0)
    assert not (tmp_path / "cache").exists()


def test_a_copy_whose_card_names_the_base_fits_with_a_word(zoo: HubDouble, tmp_path: Path) -> None:
    card = f"---\nbase_model: {BASE}\nbase_model_relation: quantized\n---\n".encode()
    zoo.add_repo("bob/base-GPTQ", {"config.json": b"{}", "README.md": card})
    zoo.add_repo("alice/on-copy", files("bob/base-GPTQ"))
    verdict = judged(connect(zoo, tmp_path))["alice/on-copy"]
    assert (verdict.verdict, verdict.codes) == ("caution", ("base_copy",))


def test_only_config_and_header_are_read_and_what_is_counted_is_what_was_sent(zoo: HubDouble, tmp_path: Path) -> None:
    client = connect(zoo, tmp_path)
    verdicts = judged(client)
    ranges = [
        r.headers["range"].removeprefix("bytes=").split("-")
        for r in zoo.requests
        if r.status in (200, 206) and "range" in r.headers
    ]
    assert sum(v.bytes_read for v in verdicts.values()) <= sum(int(end) - int(start) + 1 for start, end in ranges)
    asked = [r for r in zoo.requests if not r.path.startswith(("/objects", "/api/resolve-cache"))]
    assert client.requests == len(asked)
    assert not any("token" in r.path for r in zoo.requests)


def test_a_run_goes_on_where_it_was_stopped_and_looks_again_at_what_changed(zoo: HubDouble, tmp_path: Path) -> None:
    report = tmp_path / "report.jsonl"
    client = connect(zoo, tmp_path)
    stopped = check_listed(client.search(BASE, limit=200), BASE, hub=client, report=report)
    first = [next(stopped).repo_id, next(stopped).repo_id]
    stopped.close()
    with report.open("ab") as file:
        file.write(b'{"repo_id": "alice/cut-o')
    rest = judged(client, report)
    assert rest.keys() == ZOO.keys() - set(first)
    assert judged(client, report) == {}
    zoo.push("alice/sound", {"README.md": b"---\nbase_model: acme/base\nlibrary_name: peft\n---\nnew"})
    assert judged(client, report).keys() == {"alice/sound"}
    lines = [line for line in report.read_text().splitlines() if not line.endswith("cut-o")]
    assert {json.loads(line)["repo_id"] for line in lines} == ZOO.keys() and len(lines) == len(ZOO) + 1


def test_the_wait_that_the_hub_asks_for_is_kept_and_nothing_is_lost(zoo: HubDouble, tmp_path: Path) -> None:
    zoo.faults.add("GET /api/models/alice/sound", status=429, headers={"Retry-After": "1"})
    started = time.monotonic()
    verdicts = judged(connect(zoo, tmp_path, retries=2))
    assert time.monotonic() - started > 1 and verdicts["alice/sound"].verdict == "fits"


def test_an_adapter_that_cannot_be_had_now_is_asked_for_again_by_the_next_run(zoo: HubDouble, tmp_path: Path) -> None:
    report = tmp_path / "report.jsonl"
    zoo.faults.add("GET /api/models/alice/sound", status=503)
    client = connect(zoo, tmp_path)
    assert judged(client, report)["alice/sound"].verdict == "unavailable"
    assert {v.repo_id: v.verdict for v in judged(client, report).values()} == {"alice/sound": "fits"}


def test_a_hub_that_fails_again_and_again_is_left_alone(zoo: HubDouble, tmp_path: Path) -> None:
    client = connect(zoo, tmp_path)
    listed = client.search(BASE, limit=200)
    zoo.faults.add("GET /api/models/", status=503, times=None)
    before = len(zoo.requests)
    with pytest.raises(HubUnavailable, match="503") as error:
        list(check_listed(listed, BASE, hub=client))
    assert "--resume" in (error.value.remedy or "")
    assert len(zoo.requests) - before < 12


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(zoo: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", zoo.endpoint)
    address = f"{zoo.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", {"standardEnvVars": ["AI_AGENT"]})
    monkeypatch.delenv("AI_AGENT", raising=False)

    def execute(*words: str) -> tuple[int, list[str], str]:
        monkeypatch.setattr(sys, "argv", ["hub-merge", "check", *words])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out.splitlines(), said.err

    return execute


def test_the_command_prints_a_line_an_adapter_in_every_mode(run: Any) -> None:
    code, lines, err = run("--base", BASE, "--format", "human")
    assert code == 0 and len(lines) == len(ZOO)
    assert "✓ alice/sound: a LoRA of rank 2 on 4 modules" in lines
    assert "9 of 9 listed adapters judged" in err and "requests" in err and "Read " in err
    _, rows, _ = run("--base", BASE, "--format", "agent", "--limit", "3")
    assert rows[0].split("\t")[:3] == ["repo_id", "verdict", "reason"] and len(rows) == 4
    assert all(row.split("\t")[2] for row in rows)
    _, documents, _ = run("--base", BASE, "--json")
    *verdicts, last = map(json.loads, documents)
    assert {verdict["repo_id"]: verdict["verdict"] for verdict in verdicts} == {k: v for k, (_, v, _) in ZOO.items()}
    summary = last["summary"]
    assert (summary["listed"], summary["judged"], summary["unreadable"]) == (9, 9, 2)
    assert summary["bytes_read"] == sum(verdict["bytes_read"] for verdict in verdicts) and summary["requests"] > 18
    _, names, err = run("--base", BASE, "-q")
    assert set(names) == {k for k, (_, v, _) in ZOO.items() if v in ("fits", "caution")} and err == ""


def test_the_command_narrows_the_list_and_resumes(run: Any, tmp_path: Path) -> None:
    _, lines, err = run("--base", BASE, "--author", "bob", "--resume", "seen.jsonl", "--format", "human")
    assert len(lines) == 3 and len((tmp_path / "seen.jsonl").read_text().splitlines()) == 3
    _, lines, err = run("--base", BASE, "--resume", "seen.jsonl", "--format", "human")
    assert len(lines) == 6 and "6 of 9 listed" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--base"),
        (["--base", BASE, "--full"], "need the names of adapters"),
        (["--base", BASE, "--allow-pickle"], "--allow-pickle need the names of adapters"),
        (["./a", "--limit", "3"], "--limit belongs to a check of what the Hub lists"),
        (["./a", "--resume", "x"], "--resume belongs to"),
    ],
)
def test_what_does_not_go_together_is_told(words: list[str], says: str, run: Any) -> None:
    code, lines, err = run(*words)
    assert code == 2 and lines == [] and says in err


# --- real adapters ----------------------------------------------------------------------------------------------------


@pytest.mark.wild
def test_every_real_config_and_adapter_gets_a_verdict_with_a_reason(
    wild: Path, hub_lfs: HubDouble, tmp_path: Path
) -> None:
    hub_lfs.add_repo("openai-community/gpt2", {"config.json": b"{}"})
    weights = save(peft_tensors(np.random.default_rng(0), MODULES))
    card = b"---\nbase_model: openai-community/gpt2\nbase_model_relation: adapter\nlibrary_name: peft\n---\n"
    repos: dict[str, dict[str, bytes]] = {}
    for number, path in enumerate(sorted((wild / "configs").glob("*.json"))):
        repos[f"wild/config-{number}"] = {
            "adapter_config.json": path.read_bytes(),
            "adapter_model.safetensors": weights,
        }
    folders = {
        path.parent
        for place in ("adapters_real", "adapters_broken")
        for path in (wild / place).rglob("adapter_config.json")
    }
    for number, folder in enumerate(sorted(folders)):
        found = [path for path in folder.iterdir() if path.is_file()]
        repos[f"wild/adapter-{number}"] = {path.name: path.read_bytes() for path in found}
    for repo_id, content in repos.items():
        hub_lfs.add_repo(repo_id, {**content, "README.md": card})
    client = connect(hub_lfs, tmp_path)
    listed = client.search("openai-community/gpt2", limit=1000)
    verdicts = list(check_listed(listed, "openai-community/gpt2", hub=client))
    assert {verdict.repo_id for verdict in verdicts} == repos.keys() and len(repos) > 240
    assert all(verdict.reason and verdict.verdict != "unavailable" for verdict in verdicts)
    assert all(verdict.codes for verdict in verdicts if verdict.verdict != "fits")
    assert {"fits", "caution", "blocked", "unreadable"} == {verdict.verdict for verdict in verdicts}
    read = sum(verdict.bytes_read for verdict in verdicts)
    assert read < 0.1 * sum(len(content) for files in repos.values() for content in files.values())
