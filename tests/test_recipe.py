"""Recipes and records: what is written is read back the same, and what cannot be understood is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hub_merge.errors import RecipeError
from hub_merge.frontmatter import LicenseDetails
from hub_merge.recipe import SCHEMA_VERSION, Conversion, MergeRecord, Parent, Recipe, Source
from hub_merge.weights import checked_weight, weight_for

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
WEIGHTS = st.one_of(NUMBERS, st.dictionaries(TEXT, NUMBERS, min_size=1, max_size=3))
OPTIONS = st.dictionaries(
    TEXT.filter(lambda name: name not in ("rank", "energy")),
    st.one_of(st.integers(), NUMBERS, TEXT, st.booleans()),
    max_size=3,
)
CONVERSIONS = st.one_of(
    st.none(),
    st.builds(Conversion, initial=TEXT),
    st.builds(Conversion, base_weights=TEXT, rank=st.none() | st.integers(1, 99)),
)
RECIPES = st.builds(
    Recipe,
    merge_method=TEXT,
    models=st.lists(st.builds(Source, TEXT, WEIGHTS, CONVERSIONS), min_size=1, max_size=3).map(tuple),
    base_model=st.none() | TEXT,
    rank=st.none() | st.integers(1, 512) | st.just("auto"),
    energy=st.none() | st.floats(0, 1, exclude_min=True),
    profile=st.sampled_from(["portable", "peft"]),
    options=OPTIONS,
    dtype=st.none() | TEXT,
    seed=st.integers(0, 2**63),
    allow=st.lists(TEXT, max_size=2).map(tuple),
    extras=st.sampled_from(["refuse", "average", "drop", "keep:math"]),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=5,
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=3)
DETAILS = st.builds(
    LicenseDetails,
    found_in=st.none() | TEXT,
    name=st.none() | TEXT,
    link=st.none() | TEXT,
    texts=st.lists(st.tuples(TEXT, st.none() | TEXT), max_size=2).map(tuple),
)
PARENTS = st.builds(
    Parent,
    name=TEXT,
    model=TEXT,
    repo_id=st.none() | TEXT,
    commit=st.none() | TEXT,
    subfolder=TEXT,
    files=st.lists(st.fixed_dictionaries({"name": TEXT, "sha256": TEXT, "size": st.integers(0, 9)}), max_size=2).map(
        tuple
    ),
    base_model=st.none() | TEXT,
    license=st.none() | TEXT,
    gated=st.booleans(),
    private=st.booleans(),
    weight=WEIGHTS,
    rank=st.integers(0, 512),
    scalings=st.tuples(NUMBERS, NUMBERS),
    modules=st.integers(0, 999),
    task_type=st.none() | TEXT,
    license_details=DETAILS,
    converted=st.none() | OBJECTS,
)
RECORDS = st.builds(
    MergeRecord,
    recipe=RECIPES,
    parents=st.lists(PARENTS, max_size=2).map(tuple),
    base_model=st.none() | TEXT,
    base_license=st.none() | TEXT,
    output=OBJECTS.map(lambda output: {**output, "files": []}),
    findings=st.lists(OBJECTS, max_size=2).map(tuple),
    scores=OBJECTS,
    proof=OBJECTS,
    versions=st.dictionaries(TEXT, TEXT, max_size=2),
    base_license_details=DETAILS,
)


def recipe(**changes: Any) -> dict[str, Any]:
    return {"merge_method": "sum", "models": [{"model": "o/a"}], **changes}


def weighted(weight: Any) -> dict[str, Any]:
    return recipe(models=[{"model": "o/a", "parameters": {"weight": weight}}])


# --- round trips ------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(RECIPES)
def test_a_recipe_survives_yaml(asked: Recipe) -> None:
    back = Recipe.from_yaml(asked.to_yaml())
    assert back == asked
    assert [list(s.weight) for s in back.models if isinstance(s.weight, Mapping)] == [
        list(s.weight) for s in asked.models if isinstance(s.weight, Mapping)
    ]  # the order of filters decides which one counts


@settings(max_examples=80, deadline=None)
@given(RECORDS)
def test_a_record_survives_json_and_the_same_record_gives_the_same_bytes(record: MergeRecord) -> None:
    text = record.to_json()
    assert MergeRecord.from_json(text) == MergeRecord.from_json(text.encode()) == record
    assert MergeRecord.from_json(text).to_json() == text


def test_a_recipe_in_the_fields_of_mergekit_is_understood() -> None:
    got = Recipe.from_yaml(
        """
        merge_method: lego
        base_model: owner/base
        models:
          - model: someone/math-lora@1f0c
            parameters: {weight: 1e-3}
          - model: ./medicine
            parameters:
              weight:
                - {filter: self_attn.v_proj, value: 0.5}
                - {value: 2}
          - someone/plain
        parameters: {rank: 8, clustering: kmeans}
        dtype: float32
        seed: 7
        allow: [base_copy]
        """
    )
    assert got == Recipe(
        merge_method="lego",
        models=(
            Source("someone/math-lora@1f0c", 0.001),
            Source("./medicine", {"self_attn.v_proj": 0.5, "*": 2.0}),
            Source("someone/plain", 1.0),
        ),
        base_model="owner/base",
        rank=8,
        options={"clustering": "kmeans"},
        dtype="float32",
        seed=7,
        allow=("base_copy",),
    )


def test_a_rank_by_energy_and_a_profile_stand_where_a_reader_looks_for_them() -> None:
    asked = Recipe("sum", (Source("o/a"),), rank="auto", energy=0.95, profile="peft")
    content = yaml.safe_load(asked.to_yaml())
    assert content["parameters"] == {"rank": "auto", "energy": 0.95} and content["profile"] == "peft"
    assert Recipe.from_dict(content) == asked
    assert "profile" not in Recipe("sum", (Source("o/a"),), rank="auto").to_dict()
    assert Recipe.from_dict(recipe(parameters={"rank": "auto", "energy": 1})).energy == 1.0


def test_what_is_not_said_takes_its_default_and_is_not_written() -> None:
    asked = Recipe.from_dict({"models": ["o/a"]})
    assert asked == Recipe(merge_method="sum", models=(Source("o/a", 1.0),))
    assert (asked.rank, asked.dtype, asked.base_model, asked.seed, asked.allow) == (None, None, None, 0, ())
    assert yaml.safe_load(asked.to_yaml()) == {
        "merge_method": "sum",
        "models": [{"model": "o/a", "parameters": {"weight": 1.0}}],
        "seed": 0,
    }
    empty = Recipe.from_dict(recipe(parameters=None, allow=None, base_model=None, dtype=None))
    assert empty == Recipe(merge_method="sum", models=(Source("o/a", 1.0),))


# --- weights by module ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "module", "wanted"),
    [
        (0.5, "any.module", 0.5),
        (-2, "any.module", -2.0),
        ({"v_proj": 0.5, "*": 2.0}, "h.0.v_proj", 0.5),
        ({"v_proj": 0.5, "*": 2.0}, "h.0.q_proj", 2.0),
        ({"v_proj": 0.5, "": 2.0}, "h.0.q_proj", 2.0),
        ({"v_proj": 0.5}, "h.0.q_proj", 1.0),
        ({"*": 2.0, "v_proj": 0.5}, "h.0.v_proj", 2.0),
        ({"attn": 0.25, "v_proj": 0.5}, "h.0.attn.v_proj", 0.25),
        ({"v_proj": 0.5, "attn": 0.25}, "h.0.attn.v_proj", 0.5),
        ({"h.1.": 3.0}, "h.1.attn", 3.0),
        ({"h.1.": 3.0}, "h.11.attn", 1.0),
        ({}, "h.0", 1.0),
    ],
)
def test_the_first_filter_found_in_the_name_gives_the_weight(weight: Any, module: str, wanted: float) -> None:
    assert weight_for(weight, module) == wanted
    assert weight_for(checked_weight(weight, "it"), module) == wanted


def test_of_two_rules_with_one_filter_the_first_counts() -> None:
    rules = [{"filter": "v", "value": 1}, {"value": 3}, {"filter": "v", "value": 2}, {"filter": None, "value": 4}]
    assert Recipe.from_dict(weighted(rules)).models[0].weight == {"v": 1.0, "*": 3.0}
    assert Recipe.from_dict(weighted({"v": 1, "*": 3})).models[0].weight == {"v": 1.0, "*": 3.0}


# --- refusals ---------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Any, str]] = {
    "nothing": (None, "not a mapping"),
    "a list": (["o/a"], "not a mapping"),
    "text": ("sum", "not a mapping"),
    "a misspelt field": (recipe(methd="sum"), "unknown fields: methd"),
    "a field that is a number": (recipe(**{}) | {3: 4}, "unknown fields: 3"),
    "no models": ({"merge_method": "sum"}, "lists no models"),
    "an empty list of models": (recipe(models=[]), "lists no models"),
    "models as text": (recipe(models="o/a"), "models"),
    "models as a mapping": (recipe(models={"o/a": 1.0}), "models"),
    "a model that is a number": (recipe(models=[3]), "3 does not name a model"),
    "a model without a name": (recipe(models=[{"parameters": {"weight": 1}}]), "does not name a model"),
    "a misspelt field of a model": (recipe(models=[{"model": "o/a", "paramaters": {}}]), "paramaters"),
    "a weight beside the parameters": (
        recipe(models=[{"model": "o/a", "weight": 0.5}]),
        "o/a has unknown fields: weight",
    ),
    "a misspelt parameter": (recipe(models=[{"model": "o/a", "parameters": {"wieght": 0.5}}]), "wieght"),
    "a parameter that does not exist": (recipe(models=[{"model": "o/a", "parameters": {"density": 0.5}}]), "density"),
    "parameters of a model as a list": (recipe(models=[{"model": "o/a", "parameters": [1]}]), "parameters"),
    "a weight that is text": (weighted("much"), "The weight of o/a is 'much'"),
    "a weight that is null": (weighted(None), "The weight of o/a is None"),
    "a weight that is true": (weighted(True), "The weight of o/a is True"),
    "a weight that is nan": (weighted(float("nan")), "The weight of o/a is nan"),
    "a weight that is nan as text": (weighted("nan"), "The weight of o/a is nan"),
    "a weight that is infinite": (weighted(float("-inf")), "The weight of o/a is -inf"),
    "a list of numbers as weight": (weighted([1.0, 2.0]), "weight"),
    "a rule without a value": (weighted([{"filter": "v_proj"}]), "The weight of o/a is None"),
    "a rule with a misspelt field": (weighted([{"fliter": "v_proj", "value": 1}]), "fliter"),
    "a filter with text": (weighted({"v_proj": "big"}), "The weight of o/a is 'big'"),
    "a method that is null": (recipe(merge_method=None), "merge_method"),
    "a method that is a number": (recipe(merge_method=3), "merge_method"),
    "a method that is empty": (recipe(merge_method=""), "merge_method"),
    "a base that is a number": (recipe(base_model=3), "base_model"),
    "a dtype that is a number": (recipe(dtype=32), "dtype"),
    "parameters as a list": (recipe(parameters=[8]), "parameters"),
    "a rank that is text": (recipe(parameters={"rank": "8"}), "'rank' is '8'"),
    "a rank that is no whole number": (recipe(parameters={"rank": 8.5}), "'rank' is 8.5"),
    "a rank that is true": (recipe(parameters={"rank": True}), "'rank' is True"),
    "a rank in another word": (recipe(parameters={"rank": "automatic"}), "'rank' is 'automatic'"),
    "an energy that is text": (recipe(parameters={"rank": "auto", "energy": "most"}), "'energy' is 'most'"),
    "an energy that is true": (recipe(parameters={"rank": "auto", "energy": True}), "'energy' is True"),
    "an energy of nothing": (recipe(parameters={"rank": "auto", "energy": 0}), "'energy' is 0"),
    "an energy above all": (recipe(parameters={"rank": "auto", "energy": 1.01}), "'energy' is 1.01"),
    "an energy that is nan": (recipe(parameters={"rank": "auto", "energy": float("nan")}), "'energy' is nan"),
    "a profile that does not exist": (recipe(profile="vllm"), "'profile' is 'vllm'"),
    "a profile that is null": (recipe(profile=None), "'profile' is None"),
    "rank zero": (recipe(parameters={"rank": 0}), "'rank' is 0"),
    "a negative rank": (recipe(parameters={"rank": -1}), "'rank' is -1"),
    "a seed that is text": (recipe(seed="x"), "'seed' is 'x'"),
    "a seed that is null": (recipe(seed=None), "'seed' is None"),
    "a negative seed": (recipe(seed=-1), "'seed' is -1"),
    "allow as text": (recipe(allow="base_copy"), "'allow' is 'base_copy'"),
    "allow as a number": (recipe(allow=3), "'allow' is 3"),
    "allow with a number in it": (recipe(allow=[3]), "'allow' is 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_understood_is_refused_with_the_field_and_a_remedy(case: str) -> None:
    content, reason = REFUSED[case]
    with pytest.raises(RecipeError) as refusal:
        Recipe.from_dict(content)
    assert reason in refusal.value.problem
    assert refusal.value.remedy


@pytest.mark.parametrize(
    "text",
    ["models: [", "\t- x", "a: b: c", "!!python/object:os.system x", "x: 2024-99-99", "&a [*b]", "[" * 2000, "\x00"],
)
def test_text_that_is_no_yaml_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"not valid YAML|not a mapping"):
        Recipe.from_yaml(text)


def test_yaml_that_would_take_all_time_or_memory_is_refused_at_once() -> None:
    rows = [
        "a: &a [x, x]",
        *(f"{one}: &{one} [*{other}, *{other}]" for other, one in pairwise("abcdefghijklmnopqrstuvw")),
    ]
    with pytest.raises(RecipeError, match="more than 16 aliases"):
        Recipe.from_yaml("\n".join([*rows, "merge_method: *w", "models: [x]"]))
    with pytest.raises(RecipeError, match="nested deeper than 100"):
        Recipe.from_yaml("models: " + "[" * 2000)
    shared = (
        "merge_method: sum\nmodels:\n- {model: a, parameters: &half {weight: 0.5}}\n- {model: b, parameters: *half}\n"
    )
    assert [source.weight for source in Recipe.from_yaml(shared).models] == [0.5, 0.5]


# --- records ----------------------------------------------------------------------------------------------------------


FILE = {"name": "x", "sha256": "0" * 64, "size": 1}


def record() -> dict[str, Any]:
    parent = Parent(
        name="a",
        model="o/a@1",
        repo_id="o/a",
        commit="1",
        subfolder="",
        files=(FILE,),
        base_model="b",
        license=None,
        gated=False,
        private=False,
        weight={"v": 0.5},
        rank=4,
        scalings=(1.0, 2.0),
        modules=3,
        task_type=None,
    )
    asked = Recipe(merge_method="sum", models=(Source("o/a@1", {"v": 0.5}),))
    text = MergeRecord(asked, (parent,), "b", None, {"rank": 4, "files": [FILE]}, (), {}, {}, {"numpy": "2"}).to_json()
    content: dict[str, Any] = json.loads(text)
    return content


def test_a_record_of_a_newer_version_is_refused_with_the_way_out() -> None:
    content = record()
    assert content["schema_version"] == SCHEMA_VERSION
    assert MergeRecord.from_json(json.dumps(content)).parents[0].weight == {"v": 0.5}
    for version in (SCHEMA_VERSION + 1, 99, "1", None, 1.5):
        with pytest.raises(RecipeError, match="schema version") as refusal:
            MergeRecord.from_json(json.dumps({**content, "schema_version": version}))
        assert refusal.value.remedy == "Upgrade hub-merge."


def test_a_record_from_before_licences_were_located_is_read() -> None:
    content = record()
    del content["base_license_details"]
    for parent in content["parents"]:
        del parent["license_details"]
    read = MergeRecord.from_json(json.dumps(content))
    assert read.base_license_details.found_in is None
    assert [parent.license_details.found_in for parent in read.parents] == [None] * len(content["parents"])


@pytest.mark.parametrize("field", sorted(record().keys() - {"base_license_details", "base_commit"}))
def test_a_record_that_lacks_a_field_is_refused(field: str) -> None:
    content = record()
    del content[field]
    with pytest.raises(RecipeError, match=f"not a merge record.*{field}|not a mapping"):
        MergeRecord.from_json(json.dumps(content))


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe\xff", b"[" * 100_000, b'{"schema_version": 1, "recipe": {}}']
)
def test_text_that_is_no_record_is_refused(text: bytes) -> None:
    with pytest.raises(RecipeError):
        MergeRecord.from_json(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("parents", 3),
        ("parents", [3]),
        ("parents", [{}]),
        ("parents", [{"name": "a", "files": None}]),
        ("parents", [{"name": "a", "files": [{"name": "x"}]}]),
        ("output", {"rank": 4}),
        ("output", {"files": [{"name": 3, "sha256": None}]}),
        ("recipe", []),
        ("findings", 3),
    ],
)
def test_a_record_with_a_field_of_the_wrong_kind_is_refused(field: str, value: Any) -> None:
    with pytest.raises(RecipeError):
        MergeRecord.from_json(json.dumps({**record(), field: value}))


def test_a_record_never_holds_a_number_that_json_does_not_have() -> None:
    bad = MergeRecord(Recipe("sum", (Source("o/a"),)), (), None, None, {}, (), {"x": float("nan")}, {}, {})
    with pytest.raises(ValueError, match="JSON compliant"):
        bad.to_json()
