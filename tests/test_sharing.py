"""What a push lets through and takes along: licences of real folders and repositories, against the Hub double."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from hub_merge.adapter import Adapter
from hub_merge.errors import PublishError
from hub_merge.hub import Hub
from hub_merge.pipeline import merge, merge_to_folder, push_folder
from hub_merge.provenance import read_record
from hub_merge.publish import Published
from hub_merge.recipe import Recipe, Source
from tests.helpers import peft_config, peft_tensors, write_adapter
from tests.hub_double import HubDouble
from tests.test_end_to_end import run, run_json
from tests.test_licenses import GEMMA, LLAMA_3_1, LLAMA_LINE, MIT

BASE = "meta-llama/Llama-3.1-8B"
NAME = "alice/Llama-3.1-math"


def card(license: str | None) -> str:
    return f"---\nlicense: {license}\n---\n" if license else "# No licence\n"


def adapter(folder: Path, license: str | None, seed: int = 1, **files: str) -> Path:
    """Write a small adapter with a card and further files."""
    tensors = peft_tensors(np.random.default_rng(seed), {"h.0.c_attn": 2})
    write_adapter(folder, tensors, peft_config(base_model_name_or_path=BASE))
    (folder / "README.md").write_text(card(license), encoding="utf-8")
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def put(hub: HubDouble, repo_id: str, folder: Path) -> str:
    return hub.add_repo(repo_id, {path.name: path.read_bytes() for path in folder.iterdir()})


def put_base(hub: HubDouble, license: str | None = "llama3.1", **asked: Any) -> None:
    files = {"README.md": card(license), "LICENSE": LLAMA_3_1, "USE_POLICY.md": "Be kind.\n", "config.json": "{}"}
    hub.add_repo(BASE, {name: text.encode() for name, text in files.items()}, **asked)


def connect(hub: HubDouble, user: str = "alice") -> Hub:
    return Hub(token=hub.token(user), endpoint=hub.endpoint, cache_dir=hub.folder / "cache", timeout=5, retries=0)


def merged(hub: HubDouble, tmp_path: Path, *models: str | Path) -> Path:
    """Merge references through the whole spine."""
    recipe = Recipe("sum", tuple(Source(str(model)) for model in models))
    merge_to_folder(recipe, tmp_path / "out", hub=connect(hub))
    return tmp_path / "out"


def merged_here(tmp_path: Path, *folders: Path) -> Path:
    """Merge folders without a Hub."""
    merge([Adapter.from_pretrained(folder) for folder in folders]).save_pretrained(tmp_path / "out")
    return tmp_path / "out"


def push(hub: HubDouble, folder: Path, repo_id: str = NAME, **asked: Any) -> Published:
    return push_folder(folder, repo_id, hub=connect(hub), **asked)


def texts(hub: HubDouble, repo_id: str = NAME) -> dict[str, str]:
    """Return the published files but for weights and config."""
    names = hub.commits(repo_id)[0].files
    return {name: hub.file(repo_id, name).decode() for name in names if not name.startswith((".git", "adapter_"))}


# --- what is taken along ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repo_id", ["alice/Llama-math", "Alice/Llama-math", "Llama-math"])
def test_a_composite_is_not_pushed_over_its_own_parent(hub_lfs: HubDouble, tmp_path: Path, repo_id: str) -> None:
    put_base(hub_lfs, "mit")
    put(hub_lfs, "alice/Llama-math", adapter(tmp_path / "math", "mit"))
    folder = merged(hub_lfs, tmp_path, "alice/Llama-math")
    with pytest.raises(PublishError, match=r"Llama-math is one of the repositories .* made from.*--create-pr"):
        push(hub_lfs, folder, repo_id, force=True)


def test_texts_and_notice_of_base_and_parents_are_carried(hub_lfs: HubDouble, tmp_path: Path) -> None:
    put_base(hub_lfs)
    put(hub_lfs, "bob/math", adapter(tmp_path / "math", "mit", LICENSE=MIT, NOTICE="By Bob."))
    folder = merged(hub_lfs, tmp_path, "bob/math", adapter(tmp_path / "law", "llama3.1", 2))
    push(hub_lfs, folder)

    found = texts(hub_lfs)
    assert {name for name in found if name.startswith("LICENSES")} == {
        *("LICENSES/base/LICENSE", "LICENSES/base/USE_POLICY.md", "LICENSES/math/LICENSE", "LICENSES/math/NOTICE")
    }
    assert (found["LICENSES/base/LICENSE"], found["LICENSES/math/LICENSE"]) == (LLAMA_3_1, MIT)
    assert found["NOTICE"].startswith(f"{LLAMA_LINE}\n\n")
    assert ModelCard(found["README.md"]).data.license == "llama3.1"
    assert "**Built with Llama**" in found["README.md"]
    record = read_record(folder)
    assert record.base_license_details.found_in == "card"
    assert record.base_license_details.texts == (("LICENSE", "llama3.1"), ("USE_POLICY.md", None))
    assert record.parents[0].license_details.texts == (("LICENSE", "mit"), ("NOTICE", None))


def test_the_prescribed_line_is_that_of_the_text_where_there_is_one(hub_lfs: HubDouble, tmp_path: Path) -> None:
    line = LLAMA_LINE.replace("All Rights", "Most Rights")
    folder = adapter(tmp_path / "math", "llama3.1", LICENSE=LLAMA_3_1.replace(LLAMA_LINE, line))
    out = merged_here(tmp_path, folder)
    assert (out / "NOTICE").read_text(encoding="utf-8").startswith(line)


def test_a_gated_base_gives_its_licence_but_not_its_texts(hub_lfs: HubDouble, tmp_path: Path) -> None:
    put_base(hub_lfs, gated="manual")
    put(hub_lfs, "bob/math", adapter(tmp_path / "math", "mit"))
    push(hub_lfs, merged(hub_lfs, tmp_path, "bob/math"))

    found = texts(hub_lfs)
    assert ModelCard(found["README.md"]).data.license == "llama3.1"
    assert found["NOTICE"].startswith(LLAMA_LINE)
    assert not any(name.startswith("LICENSES/") for name in found)


def test_the_base_of_a_local_merge_is_looked_up_when_it_is_pushed(hub_lfs: HubDouble, tmp_path: Path) -> None:
    put_base(hub_lfs)
    out = merged_here(tmp_path, adapter(tmp_path / "math", "mit"))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert read_record(out).base_license is None
    push(hub_lfs, out)

    found = texts(hub_lfs)
    assert json.loads(found["hub_merge.json"])["base_license"] == "llama3.1"
    assert ModelCard(found["README.md"]).data.license == "llama3.1"
    assert found["LICENSES/base/LICENSE"] == LLAMA_3_1 and found["NOTICE"].startswith(LLAMA_LINE)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not push(hub_lfs, out).changed


def test_licences_side_by_side_are_listed(hub_lfs: HubDouble, tmp_path: Path) -> None:
    put_base(hub_lfs)
    put(hub_lfs, "bob/math", adapter(tmp_path / "math", "cc-by-nc-4.0"))
    push(hub_lfs, merged(hub_lfs, tmp_path, "bob/math"))

    found = texts(hub_lfs)
    data = ModelCard(found["README.md"]).data
    assert (data.license, data.license_name, data.license_link) == ("other", "composite", "LICENSES.md")
    assert "| bob/math | cc-by-nc-4.0 | card | cc-by-nc-4.0 |" in found["LICENSES.md"]
    assert f"| {BASE} | llama3.1 | card | llama3.1 |" in found["LICENSES.md"]


def test_a_composite_without_such_duties_carries_nothing_more(tmp_path: Path) -> None:
    out = merged_here(tmp_path, adapter(tmp_path / "math", "mit"))
    assert not {"NOTICE", "LICENSES.md", "LICENSES"} & {path.name for path in out.iterdir()}


def test_a_merge_may_replace_licence_texts_and_sources_of_odd_names_stay_apart(tmp_path: Path) -> None:
    folders = [adapter(tmp_path / name, "mit", 1, LICENSE=f"{name}") for name in ("base", "a b", "A-b")]
    merge([Adapter.from_pretrained(folder) for folder in folders]).save_pretrained(tmp_path / "out")
    merge([Adapter.from_pretrained(folder) for folder in folders]).save_pretrained(tmp_path / "out", force=True)
    carried = {path.parent.name: path.read_text() for path in (tmp_path / "out" / "LICENSES").rglob("LICENSE")}
    assert carried == {"base-2": "base", "a-b": "a b", "A-b-2": "A-b"}


def test_only_licence_texts_that_the_record_names_are_published(hub_lfs: HubDouble, tmp_path: Path) -> None:
    put_base(hub_lfs)
    out = merged_here(tmp_path, adapter(tmp_path / "math", "llama3.1", LICENSE=LLAMA_3_1))
    (out / "LICENSES" / "secret").write_text("mine")
    push(hub_lfs, out)
    assert "LICENSES/secret" not in texts(hub_lfs) and "LICENSES/math/LICENSE" in texts(hub_lfs)


# --- by the command line ----------------------------------------------------------------------------------------------


def test_the_command_line_refuses_with_the_clause_and_pushes_where_it_is_told_to(
    hub_lfs: HubDouble, tmp_path: Path
) -> None:
    put_base(hub_lfs)
    out = merged_here(tmp_path, adapter(tmp_path / "math", None))
    refused = run(hub_lfs, tmp_path, "push", out, "alice/math", user="alice")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "[license_unknown] No licence is known for math" in refused.stderr
    assert "[name_prefix] The name 'math' does not begin with “Llama”" in refused.stderr
    assert "Try: " in refused.stderr

    accept = "--accept-unknown-license"
    asked = (accept, "--branch", "rank-2", "--tag", "v1", "--collection", "Merges")
    said = run_json(hub_lfs, tmp_path, "push", out, NAME, *asked, user="alice")
    assert (said["branch"], said["tag"], said["created"]) == ("rank-2", "v1", True)
    assert said["collection"].startswith("alice/merges-")
    api = hub_lfs.api("alice")
    assert {ref.name: ref.target_commit for ref in api.list_repo_refs(NAME).tags} == {"v1": said["commit"]}
    assert hub_lfs.commits(NAME, "rank-2")[0].oid == said["commit"]


def test_a_merge_and_a_look_tell_the_licence(hub_lfs: HubDouble, tmp_path: Path) -> None:
    put_base(hub_lfs)
    put(hub_lfs, "bob/math", adapter(tmp_path / "math", "gemma"))
    said = run_json(hub_lfs, tmp_path, "merge", "bob/math", "-o", "composite", user="alice")
    assert said["license"] == "other, named “Llama…”; not to be shared as it is (terms_clash)"
    seen = run_json(hub_lfs, tmp_path, "inspect", "bob/math", user="alice")
    assert (seen["license"], seen["license_found_in"]) == ("gemma", "card")


# --- what is refused --------------------------------------------------------------------------------------------------


def assert_refused(hub: HubDouble, folder: Path, code: str, *words: str, repo_id: str = NAME, **asked: Any) -> None:
    """The push is refused before anything is written, in words; the folder stays as it is."""
    hub.requests.clear()
    with pytest.raises(PublishError) as error:
        push(hub, folder, repo_id, **asked)
    assert f"[{code}]" in error.value.problem
    assert all(word in error.value.problem for word in (*words, "no legal advice"))
    assert error.value.remedy
    assert {request.method for request in hub.requests} <= {"GET", "HEAD"}
    assert (folder / "adapter_model.safetensors").is_file()


def test_llama_with_gemma_is_merged_here_but_not_pushed(hub_lfs: HubDouble, tmp_path: Path) -> None:
    put_base(hub_lfs)
    put(hub_lfs, "bob/math", adapter(tmp_path / "math", "gemma", LICENSE=GEMMA))
    out = merged(hub_lfs, tmp_path, "bob/math")
    for asked in ({}, {"accept_unknown_license": True}, {"private": True}, {"dry_run": True}, {"force": True}):
        assert_refused(hub_lfs, out, "terms_clash", "gemma s. 3.1", "llama3.1 s. 1.b.i", "bob/math", **asked)


def test_a_parent_without_derivatives_is_not_pushed(hub_lfs: HubDouble, tmp_path: Path) -> None:
    put_base(hub_lfs, "apache-2.0")
    out = merged(hub_lfs, tmp_path, adapter(tmp_path / "math", "cc-by-nd-4.0"), adapter(tmp_path / "law", "mit", 2))
    assert_refused(hub_lfs, out, "no_derivatives", "s. 2(a)(1)(B)", "Merge without math", accept_unknown_license=True)


def test_an_unknown_licence_needs_the_flag(hub_lfs: HubDouble, tmp_path: Path) -> None:
    put_base(hub_lfs)
    out = merged_here(tmp_path, adapter(tmp_path / "math", None), adapter(tmp_path / "law", "other", 2))
    assert_refused(hub_lfs, out, "license_unknown", "math", "[license_unread] law", "--accept-unknown-license")
    push(hub_lfs, out, accept_unknown_license=True)
    assert ModelCard(texts(hub_lfs)["README.md"]).data.license is None
    assert "no licence can be stated" in texts(hub_lfs)["README.md"]


def test_the_name_has_to_begin_as_the_licence_says(hub_lfs: HubDouble, tmp_path: Path) -> None:
    put_base(hub_lfs)
    out = merged_here(tmp_path, adapter(tmp_path / "math", "mit"))
    assert_refused(hub_lfs, out, "name_prefix", "Publish as alice/Llama-math.", repo_id="alice/math")
    assert_refused(hub_lfs, out, "name_prefix", "Publish as Llama-math.", repo_id="math")


def test_a_base_that_nobody_can_see_is_unknown(hub_lfs: HubDouble, tmp_path: Path) -> None:
    out = merged_here(tmp_path, adapter(tmp_path / "math", "mit"))
    assert_refused(hub_lfs, out, "license_unknown", BASE)
