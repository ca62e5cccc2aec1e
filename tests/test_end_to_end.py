"""The whole way, from a search to a proof, by the real command line in its own processes against the Hub double."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from tests.hub_double import HubDouble

SHAPE, RANK, LAYERS = (2304, 768), 16, 12
"""GPT-2's attention: large enough that a header is a small part of the file."""
BASE = "openai-community/gpt2"
MATH, MEDICINE, RESULT = "alice/math-lora", "bob/gpt2-medicine", "alice/gpt2-math-medicine"
CARD, CONFIG, WEIGHTS, RECORD = "README.md", "adapter_config.json", "adapter_model.safetensors", "hub_merge.json"
PUBLISHED = {CARD, CONFIG, WEIGHTS, RECORD, "recipe.yaml"}
MIT = "---\nlicense: mit\n---\n"
MODULE = "transformer.h.3.attn.c_attn"

Tensors = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


def adapter_files(
    seed: int, *, base: str, alpha: int, card: str = "", shape: tuple[int, int] = SHAPE
) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    tensors: Tensors = {}
    for layer in range(LAYERS):
        prefix = f"base_model.model.transformer.h.{layer}.attn.c_attn"
        tensors[f"{prefix}.lora_A.weight"] = rng.standard_normal((RANK, shape[1]), np.float32)
        tensors[f"{prefix}.lora_B.weight"] = rng.standard_normal((shape[0], RANK), np.float32)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": RANK,
        "lora_alpha": alpha,
        "target_modules": ["c_attn"],
        "fan_in_fan_out": True,
    }
    files = {CONFIG: json.dumps(config).encode(), WEIGHTS: save(tensors)}
    return {**files, "README.md": card.encode()} if card else files


def delta(tensors: Mapping[str, Any], module: str, scaling: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    A, B = (tensors[f"base_model.model.{module}.lora_{factor}.weight"].astype(np.float64) for factor in "AB")
    return np.asarray(scaling * B @ A)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def environment(hub: HubDouble, home: Path, user: str | None) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "PYTHONPATH") if name in os.environ}
    return {**kept, **hub.environment(home, user)}


def run(hub: HubDouble, home: Path, *words: object, user: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``hub-merge`` in a process of its own, with its own home."""
    command = [sys.executable, "-m", "hub_merge", *map(str, words)]
    home.mkdir(exist_ok=True)
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(hub, home, user), cwd=home, check=False, timeout=120
    )


def run_json(hub: HubDouble, home: Path, *words: object, user: str | None = None) -> Any:
    done = run(hub, home, *words, "--json", user=user)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def bytes_asked(requests: list[Any]) -> int:
    """Bytes of weights that the answered ranges of a request log come to."""
    ranges = [re.fullmatch(r"bytes=(\d+)-(\d+)", r.headers.get("range", "")) for r in requests if r.status == 206]
    assert all(ranges)
    return sum(int(found[2]) - int(found[1]) + 1 for found in ranges if found)


# --- the journey ------------------------------------------------------------------------------------------------------


@dataclass
class Journey:
    """What each command of the way said, and what the Hub saw meanwhile."""

    hub: HubDouble
    home: Path
    put: Mapping[str, Mapping[str, bytes]]
    commits: Mapping[str, str]
    said: dict[str, Any] = field(default_factory=dict)
    requests: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.home / "composite"

    @property
    def record(self) -> Any:
        return json.loads((self.folder / RECORD).read_text(encoding="utf-8"))

    def do(self, name: str, *words: object, user: str | None = "alice") -> None:
        before = len(self.hub.requests)
        self.said[name] = run_json(self.hub, self.home, *words, user=user)
        self.requests[name] = self.hub.requests[before:]


@pytest.fixture(scope="module", params=["lfs", "xet"])
def journey(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journey]:
    """Search, inspect, check, score, merge and push twice, once through git LFS and once through Xet."""
    with HubDouble(xet=request.param == "xet") as hub:
        hub.add_repo(BASE, {"config.json": b'{"model_type": "gpt2"}', "README.md": MIT.encode()})
        hub.renames["gpt2"] = BASE
        card = f"---\nbase_model: {BASE}\nlicense: apache-2.0\nlibrary_name: peft\n---\n# Math\n"
        put = {
            MATH: adapter_files(1, base="gpt2", alpha=32, card=card),
            MEDICINE: adapter_files(2, base=BASE, alpha=16, card=MIT),
        }
        commits = {repo_id: hub.add_repo(repo_id, files) for repo_id, files in put.items()}
        way = Journey(hub, tmp_path_factory.mktemp("journey"), put, commits)
        way.do("search", "search", "gpt2", user=None)
        way.do("inspect", "inspect", MATH, user=None)
        way.do("check", "check", MATH, MEDICINE, user=None)
        way.do("score", "score", MATH, MEDICINE)
        way.do("merge", "merge", MATH, MEDICINE, "--weights", "1,0.5", "-o", "composite")
        hub.push(MATH, {WEIGHTS: adapter_files(7, base="gpt2", alpha=32)[WEIGHTS]}, title="Train again")
        way.do("push", "push", "composite", RESULT)
        way.do("push again", "push", "composite", RESULT)
        yield way
        assert not hub.leaked_tokens, "a token went to the origin where files are stored"
        assert not hub.crashes, "\n".join(hub.crashes)


def test_search_finds_the_tagged_and_the_untagged_adapter_under_the_bases_old_name(journey: Journey) -> None:
    found = {row["id"]: row for row in journey.said["search"]}
    assert found.keys() == {MATH, MEDICINE}
    assert (found[MATH]["found_by"], found[MEDICINE]["found_by"]) == ("tag", "config")
    assert found[MATH]["commit"] == journey.commits[MATH]
    assert (found[MATH]["license"], found[MATH]["task"]) == ("apache-2.0", "CAUSAL_LM")


def test_inspect_tells_shapes_and_rank_of_what_it_did_not_download(journey: Journey) -> None:
    said = journey.said["inspect"]
    assert said["groups"] == [f"{LAYERS} x c_attn 2304x768"]
    assert (said["rank"], said["scaling"], said["dtype"]) == (16, 2.0, "float32")
    assert said["parameters"] == LAYERS * RANK * (2304 + 768)
    assert said["bytes"] == len(journey.put[MATH][CONFIG]) + len(journey.put[MATH][WEIGHTS])
    assert said["commit"] == journey.commits[MATH]


def test_check_follows_the_renamed_base_and_reads_a_small_part_of_the_weights(journey: Journey) -> None:
    assert journey.said["check"]["compatible"] is True
    assert journey.said["check"]["base_model"] == BASE
    stored = sum(len(files[WEIGHTS]) for files in journey.put.values())
    assert 0 < bytes_asked(journey.requests["check"]) < stored / 20


def test_the_score_is_the_cosine_of_the_dense_deltas(journey: Journey, tmp_path: Path) -> None:
    tensors = []
    for repo_id in (MATH, MEDICINE):
        (tmp_path / "weights").write_bytes(journey.put[repo_id][WEIGHTS])
        tensors.append(load_file(tmp_path / "weights"))
    cosines = []
    for layer in range(LAYERS):
        x, y = (delta(entry, f"transformer.h.{layer}.attn.c_attn", 1.0) for entry in tensors)
        cosines.append(np.vdot(x, y) / np.linalg.norm(x) / np.linalg.norm(y))
    assert journey.said["score"]["rms_cosine"] == pytest.approx(np.sqrt(np.mean(np.square(cosines))), rel=1e-5)


def test_the_record_pins_each_parent_by_commit_and_hash(journey: Journey) -> None:
    parents = {parent["repo_id"]: parent for parent in journey.record["parents"]}
    assert parents.keys() == {MATH, MEDICINE}
    for repo_id, parent in parents.items():
        assert parent["commit"] == journey.commits[repo_id]
        assert parent["model"] == f"{repo_id}@{journey.commits[repo_id]}"
        hashes = {entry["name"]: entry["sha256"] for entry in parent["files"]}
        assert hashes == {name: sha256(journey.put[repo_id][name]) for name in (CONFIG, WEIGHTS)}


def test_the_written_delta_is_the_weighted_sum_of_the_parents(journey: Journey, tmp_path: Path) -> None:
    expected = np.zeros(SHAPE)
    for repo_id, factor in ((MATH, 1.0 * 32 / 16), (MEDICINE, 0.5 * 16 / 16)):
        (tmp_path / "weights").write_bytes(journey.put[repo_id][WEIGHTS])
        expected += delta(load_file(tmp_path / "weights"), MODULE, factor)
    config = json.loads((journey.folder / CONFIG).read_text(encoding="utf-8"))
    written = delta(load_file(journey.folder / WEIGHTS), MODULE, config["lora_alpha"] / config["r"])
    assert np.linalg.norm(written - expected) < 1e-6 * np.linalg.norm(expected)


def test_no_file_of_the_composite_tells_of_this_machine_or_its_token(journey: Journey) -> None:
    for name in PUBLISHED - {WEIGHTS}:
        text = (journey.folder / name).read_text(encoding="utf-8")
        assert str(journey.home) not in text
        assert journey.hub.token("alice") not in text


def test_a_push_makes_one_commit_that_equals_the_folder_byte_for_byte(journey: Journey) -> None:
    said, commits = journey.said["push"], journey.hub.commits(RESULT)
    assert (said["created"], said["changed"], said["repo_id"]) == (True, True, RESULT)
    assert commits[1].title == "initial commit"
    assert said["commit"] == commits[0].oid
    assert set(commits[0].files) == PUBLISHED | {".gitattributes"}
    for name in PUBLISHED - {CARD}:
        assert journey.hub.file(RESULT, name, said["commit"]) == (journey.folder / name).read_bytes()


def test_the_published_card_is_that_of_the_folder_but_names_the_repository(journey: Journey) -> None:
    published = journey.hub.file(RESULT, CARD, journey.said["push"]["commit"]).decode()
    local = (journey.folder / CARD).read_text(encoding="utf-8")
    assert RESULT not in local and "path/to/this/adapter" not in published
    assert published.count(f'"{RESULT}"') == 1
    unnamed = set(local.splitlines()) - set(published.splitlines())
    assert len(unnamed) == 5  # the title, the line that loads it, and those that serve it, by vLLM, llama.cpp and MLX


def test_an_identical_push_makes_no_commit(journey: Journey) -> None:
    said = journey.said["push again"]
    assert (said["created"], said["changed"]) == (False, False)
    assert {entry["action"] for entry in said["files"]} == {"unchanged"}
    assert said["commit"] == journey.said["push"]["commit"]
    assert not [r for r in journey.requests["push again"] if "/commit/" in r.path]


def test_what_was_written_into_the_card_on_the_hub_survives_the_next_push(journey: Journey) -> None:
    with_notes = (
        journey.hub.file(RESULT, CARD).decode().replace("library_name: peft", "library_name: peft\nlanguage: en")
    )
    journey.hub.push(RESULT, {CARD: f"{with_notes}\n## My notes\n".encode()}, title="Write notes")
    said = run_json(journey.hub, journey.home, "push", "composite", RESULT, user="alice")
    now = journey.hub.file(RESULT, CARD).decode()
    assert now.endswith("<!-- hub-merge:end -->\n\n## My notes\n") and "\nlanguage: en\n" in now
    again = run_json(journey.hub, journey.home, "push", "composite", RESULT, user="alice")
    assert (again["changed"], again["commit"]) == (False, said["commit"])


def test_the_composite_can_be_pulled_back_by_the_hubs_own_command_line(journey: Journey, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "huggingface_hub.cli.hf",
        "download",
        RESULT,
        "--local-dir",
        str(tmp_path / "back"),
    ]
    env = environment(journey.hub, tmp_path, None)
    revision = ["--revision", journey.said["push"]["commit"]]
    subprocess.run([*command, *revision], env=env, check=True, capture_output=True, timeout=120)
    for name in PUBLISHED - {CARD}:
        assert (tmp_path / "back" / name).read_bytes() == (journey.folder / name).read_bytes()


def test_verify_takes_the_pinned_parents_although_main_has_moved_on(journey: Journey, tmp_path: Path) -> None:
    assert journey.hub.repo(MATH).head.oid != journey.commits[MATH]
    commit = journey.said["push"]["commit"]
    result = run_json(journey.hub, tmp_path / "home", "verify", f"{RESULT}@{commit}")
    assert (result["verdict"], result["passed"], result["exact"]) == ("reproduced", True, True)
    proof = result["proof"]
    assert proof["modules"] == LAYERS
    assert all(check["passed"] for check in proof["checks"])


def test_verify_names_the_file_that_was_changed_after_publishing(journey: Journey, tmp_path: Path) -> None:
    content = bytearray(journey.hub.file(RESULT, WEIGHTS, journey.said["push"]["commit"]))
    content[-1] ^= 1
    journey.hub.push(RESULT, {WEIGHTS: bytes(content)}, title="Improve")
    done = run(journey.hub, tmp_path / "home", "verify", RESULT, "--json")
    assert done.returncode == 1
    result = json.loads(done.stdout)
    assert result["verdict"] == "differs" and result["missing"] == []
    assert {(found["source"], found["file"]) for found in result["differences"]} == {("", WEIGHTS)}
    named = [found["tensors"] for found in result["differences"] if found["tensors"]]
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    last = max(header.keys() - {"__metadata__"}, key=lambda name: header[name]["data_offsets"][1])
    assert named == [[last]]


# --- who may see it ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubDouble, Path]]:
    """A Hub with small adapters, open, gated and private, and alice's merges of each with an open one."""
    home = tmp_path_factory.mktemp("shop")
    with HubDouble(xet=False) as hub:
        hub.add_repo(BASE, {"README.md": MIT.encode()})
        hub.add_repo("bob/open", adapter_files(1, base=BASE, alpha=16, shape=(12, 8), card=MIT))
        hub.add_repo("acme/other", adapter_files(2, base=BASE, alpha=16, shape=(12, 8), card=MIT))
        hub.add_repo("bob/gated", adapter_files(3, base=BASE, alpha=16, shape=(12, 8), card=MIT), gated="manual")
        hub.add_repo("alice/secret", adapter_files(4, base=BASE, alpha=16, shape=(12, 8), card=MIT), private=True)
        hub.grant("bob/gated", "alice")
        for parent in ("acme/other", "bob/gated", "alice/secret"):
            folder = parent.partition("/")[2]
            run_json(hub, home, "merge", "bob/open", parent, "-o", folder, user="alice")
        yield hub, home
        assert not hub.leaked_tokens
        assert not hub.crashes, "\n".join(hub.crashes)


@pytest.mark.parametrize(
    ("folder", "words", "private"),
    [
        ("other", [], False),
        ("gated", [], True),
        ("secret", [], True),
        ("secret", ["--no-private"], False),
        ("other", ["--private"], True),
    ],
)
def test_a_new_repository_is_private_where_a_parent_is_guarded_unless_said_otherwise(
    shop: tuple[HubDouble, Path], folder: str, words: list[str], private: bool
) -> None:
    hub, home = shop
    name = f"alice/{folder}-{'-'.join(word.strip('-') for word in words) or 'plain'}"
    said = run_json(hub, home, "push", folder, name, *words, user="alice")
    assert said["created"] is True
    assert hub.repo(name).private is private


def test_a_pull_request_leaves_the_branch_of_its_owner_alone(shop: tuple[HubDouble, Path]) -> None:
    hub, home = shop
    before = hub.repo("bob/open").head.oid
    said = run_json(hub, home, "push", "other", "bob/open", "--create-pr", user="alice")
    assert hub.repo("bob/open").head.oid == before
    assert said["url"] == said["pr_url"] == f"{hub.endpoint}/bob/open/discussions/1"
    proposed = hub.commits("bob/open", "refs/pr/1")[0]
    assert (proposed.author, proposed.parent) == ("alice", before)
    assert hub.file("bob/open", WEIGHTS, "refs/pr/1") == (home / "other" / WEIGHTS).read_bytes()


def test_a_dry_run_tells_what_it_would_do_and_writes_nothing(shop: tuple[HubDouble, Path]) -> None:
    hub, home = shop
    before = len(hub.requests)
    said = run_json(hub, home, "push", "other", "alice/dry", "--dry-run", user="alice")
    assert {request.method for request in hub.requests[before:]} <= {"GET", "HEAD"}
    assert (said["dry_run"], said["created"], said["changed"]) == (True, True, True)
    assert {entry["file"]: entry["action"] for entry in said["files"]} == dict.fromkeys(PUBLISHED, "add")
    with pytest.raises(KeyError):
        hub.repo("alice/dry")


FAILURES = {
    "an unknown repository": (["check", "bob/absent", "bob/open"], "bob", "no model bob/absent", "Check the spelling"),
    "an unknown revision": (["inspect", "bob/open@v9"], "bob", "no such revision", "/bob/open/commits/main"),
    "a gated repository": (["merge", "bob/gated", "-o", "x"], None, "bob/gated", "Request access at"),
    "a private repository": (["check", "alice/secret"], "bob", "it is private", "Check the spelling"),
    "a push without login": (["push", "other", "alice/new"], None, "A token is needed", "hf auth login"),
    "a push with a token that only reads": (["push", "other", "reader/new"], "reader", "may only read", "role 'write'"),
    "a push to a foreign namespace": (["push", "other", "bob/new"], "alice", "no right to write", "alice/new"),
    "a push into a foreign kind of repository": (["push", "other", BASE], "alice", "no right to write", "alice/gpt2"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_what_the_hub_refuses_is_told_in_one_error_with_a_way_out(
    shop: tuple[HubDouble, Path], tmp_path: Path, case: str
) -> None:
    hub, home = shop
    words, user, problem, remedy = FAILURES[case]
    command = [str(home / word) if word == "other" else word for word in words]
    done = run(hub, tmp_path, *command, "--json", user=user)
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    remedies = [line for line in done.stderr.splitlines() if line.startswith("Try: ")]
    assert (done.returncode, done.stdout, len(errors), len(remedies)) == (1, "", 1, 1), done.stderr
    assert problem in errors[0]
    assert remedy in remedies[0]
    assert "Traceback" not in done.stderr


def test_a_hub_that_is_down_is_told_by_its_address(shop: tuple[HubDouble, Path], tmp_path: Path) -> None:
    hub, _ = shop
    env = {**environment(hub, tmp_path, None), "HF_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "hub_merge", "inspect", "bob/open", "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Error: http://127.0.0.1:9 could not be reached about bob/open" in done.stderr
    assert "Try: Check the connection" in done.stderr


# --- from Python ------------------------------------------------------------------------------------------------------

SCRIPT = """
import json
from pathlib import Path
import hub_merge
from hub_merge.errors import PublishError

adapters = [hub_merge.Adapter.from_pretrained(name) for name in ("bob/open", "acme/silent")]
composite = hub_merge.merge(adapters, "sum", weights=[1.0, -0.5])
composite.save_pretrained("from-python")
try:
    composite.push_to_hub("alice/from-python")
except PublishError as refused:
    assert "accept_unknown_license=True" in str(refused)
published = composite.push_to_hub("alice/from-python", private=True, accept_unknown_license=True)
verdict = hub_merge.verify(published.repo_id).verdict
again = hub_merge.run(hub_merge.Recipe.from_yaml(Path("from-python/recipe.yaml").read_text()))
print(json.dumps([published.repo_id, published.commit, published.created, verdict, again.rank]))
"""


def test_python_merges_and_publishes_what_the_command_line_verifies(
    shop: tuple[HubDouble, Path], tmp_path: Path
) -> None:
    hub, _ = shop
    hub.add_repo("acme/silent", adapter_files(5, base=BASE, alpha=16, shape=(12, 8)))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment(hub, tmp_path, "alice"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        "alice/from-python",
        hub.repo("alice/from-python").head.oid,
        True,
        *("reproduced", 2 * RANK),
    ]
    assert hub.repo("alice/from-python").private is True
    assert hub.file("alice/from-python", WEIGHTS) == (tmp_path / "from-python" / WEIGHTS).read_bytes()
    assert run_json(hub, tmp_path, "verify", "alice/from-python", user="alice")["verdict"] == "reproduced"
