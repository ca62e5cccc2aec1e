"""Bytes and JSON of any kind: every reader returns or refuses in the package's own words, and never breaks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub_merge.formats.peft.config import HARMLESS_FIELDS, VARIANT_FIELDS
from tests.attacks.files import config_of
from tests.attacks.targets import SEEDS, TARGETS

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**400, 1e308, "c_attn", ".*", "a/b", "/home/ann", "LORA", "\u202e", "\x00"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(sorted({*HARMLESS_FIELDS, *VARIANT_FIELDS}))


def test_every_target_has_a_seed() -> None:
    assert SEEDS.keys() == TARGETS.keys()


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=150)
@given(data=st.data())
def test_changed_bytes_are_read_or_refused(name: str, data: st.DataObject) -> None:
    content = bytearray(SEEDS[name])
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    TARGETS[name](bytes(content))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60)
@given(content=st.binary(max_size=64))
def test_bytes_of_any_kind_are_read_or_refused(name: str, content: bytes) -> None:
    TARGETS[name](content)


@settings(max_examples=800, suppress_health_check=[HealthCheck.too_slow])
@given(changes=st.dictionaries(FIELDS, JSON, max_size=4))
def test_any_value_in_any_field_of_a_config_is_judged_or_refused(changes: dict[str, Any]) -> None:
    TARGETS["config"](config_of(**changes))


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(content=st.dictionaries(st.sampled_from(["x.lora_A.weight", "x.lora_B.weight", "__metadata__", "y"]), JSON))
def test_any_json_in_a_header_is_judged_or_refused(content: dict[str, Any]) -> None:
    TARGETS["header_text"](json.dumps(content).encode())


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(content=JSON, key=st.sampled_from(["added_tokens_decoder", "weight_map", "models", "schema_version", "parents"]))
def test_any_json_in_the_other_files_is_read_or_refused(content: Any, key: str) -> None:
    for name in ("index", "added_tokens", "tokenizer_config", "recipe", "record"):
        TARGETS[name](json.dumps({key: content}).encode())
        TARGETS[name](json.dumps(content).encode())
