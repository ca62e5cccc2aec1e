"""Records of every schema there was are read for ever; a newer one is refused with the reason.

``golden/records`` holds a record of each kind and schema as a version that wrote the schema wrote it. These files are
never written again; a new schema brings its own.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hub_merge.card import render_card
from hub_merge.errors import RecipeError
from hub_merge.fusion import FusionRecord
from hub_merge.recipe import SCHEMA_VERSION, MergeRecord

RECORDS = Path(__file__).parent / "golden" / "records"
VERSIONS = range(1, SCHEMA_VERSION + 1)


def record(kind: str, version: int) -> str:
    return (RECORDS / f"{kind}-{version}.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_merge_record_of_every_schema_is_read(version: int) -> None:
    old = MergeRecord.from_json(record("merge", version))
    assert [parent.repo_id for parent in old.parents] == ["alice/math", "bob/medicine"]
    assert all(len(parent.commit or "") == 40 and parent.files for parent in old.parents)
    assert (old.recipe.merge_method, old.recipe.rank, old.recipe.options["density"]) == ("ties", 4, 0.5)
    assert [source.weight for source in old.recipe.models] == [0.7, {"self_attn": 0.5, "*": 1.0}]
    assert old.base_model == "acme/base" and old.proof["passed"] is True
    assert "alice/math" in render_card(old)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_read_from_an_old_record_is_written_as_a_new_one_that_says_the_same(version: int) -> None:
    old = MergeRecord.from_json(record("merge", version))
    assert MergeRecord.from_json(old.to_json()) == old


@pytest.mark.parametrize("version", VERSIONS)
def test_a_fusion_record_of_every_schema_is_read(version: int) -> None:
    old = FusionRecord.from_json(record("fusion", version))
    assert old.base.repo_id == "acme/base" and old.adapter.name == "m" and old.proof["passed"] is True


@pytest.mark.parametrize("kind", ["merge", "fusion"])
def test_a_newer_schema_is_refused_with_the_reason(kind: str) -> None:
    content = {**json.loads(record(kind, SCHEMA_VERSION)), "schema_version": SCHEMA_VERSION + 1}
    read = MergeRecord.from_json if kind == "merge" else FusionRecord.from_json
    with pytest.raises(RecipeError) as refusal:
        read(json.dumps(content))
    assert f"schema version {SCHEMA_VERSION + 1}" in refusal.value.problem
    assert refusal.value.remedy == "Upgrade hub-merge."
