"""What the stated name of a base model amounts to, without asking the network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub_merge.bases import Base, read_base

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CACHE = "/home/ann/.cache/huggingface/hub"


def known(model_id: str, revision: str | None = None) -> Base:
    return Base(model_id, model_id, revision)


@pytest.mark.parametrize("model_id", ["Qwen/Qwen3-0.6B", "google/flan-t5-base", "a/b", "meta-llama/Llama-3.2-1B"])
def test_a_hub_id_is_itself(model_id: str) -> None:
    assert read_base(model_id) == known(model_id)
    assert read_base(f"  {model_id}\n") == known(model_id)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("gpt2", "openai-community/gpt2"),
        ("gpt2-xl", "openai-community/gpt2-xl"),
        ("distilgpt2", "distilbert/distilgpt2"),
        ("distilbert-base-uncased", "distilbert/distilbert-base-uncased"),
        ("bert-base-cased", "google-bert/bert-base-cased"),
        ("roberta-base", "FacebookAI/roberta-base"),
        ("xlm-roberta-large", "FacebookAI/xlm-roberta-large"),
        ("t5-small", "google-t5/t5-small"),
        ("albert-base-v2", "albert/albert-base-v2"),
        ("xlnet-large-cased", "xlnet/xlnet-large-cased"),
    ],
)
def test_an_old_name_without_owner_is_the_id_it_moved_to(old: str, new: str) -> None:
    assert read_base(old) == read_base(new) == known(new)


@pytest.mark.parametrize("name", ["gpt2-mine", "my-gpt2", "gpt", "t5", "roberta-base-squad2", "gemma3-270m-it"])
def test_a_bare_name_that_only_resembles_a_moved_one_is_no_id(name: str) -> None:
    assert read_base(name) == Base(None, name)


@pytest.mark.parametrize(
    ("path", "base"),
    [
        (f"{CACHE}/models--acme--base/snapshots/{COMMIT}", known("acme/base", COMMIT)),
        (f"{CACHE}/models--acme--base/snapshots/{COMMIT}/", known("acme/base", COMMIT)),
        (f"C:\\hub\\models--acme--base\\snapshots\\{COMMIT}", known("acme/base", COMMIT)),
        (f"{CACHE}/models--acme--base.v1-x_y", known("acme/base.v1-x_y")),
        (f"{CACHE}/models--gpt2/snapshots/{COMMIT}", known("openai-community/gpt2", COMMIT)),
        (f"{CACHE}/models--bare/snapshots/{COMMIT}", Base(None, "bare", COMMIT)),
    ],
)
def test_a_path_into_the_hub_cache_gives_back_repository_and_commit(path: str, base: Base) -> None:
    assert read_base(path) == base


def test_a_repository_that_merely_has_models_in_its_name_is_itself() -> None:
    assert read_base("acme/my-models--v2") == known("acme/my-models--v2")


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/home/ann/secret/llama", "llama"),
        ("/home/ann/llama/", "llama"),
        ("./out/llama", "llama"),
        ("../llama", "llama"),
        ("~/models/llama", "llama"),
        ("C:\\Users\\ann\\llama", "llama"),
        ("D:/ann/llama", "llama"),
        ("a/b/llama", "llama"),
        ("/", "not stated"),
    ],
)
def test_of_a_path_only_the_last_part_is_told(path: str, label: str) -> None:
    assert read_base(path) == Base(None, label)


@pytest.mark.parametrize("nothing", [None, "", "  ", "\n"])
def test_nothing_stated_is_no_id(nothing: str | None) -> None:
    assert read_base(nothing) == Base(None, "not stated")


@given(st.text())
def test_any_text_is_read_to_an_owner_and_a_name_or_to_a_label_without_separators(text: str) -> None:
    base = read_base(text)
    assert base.label
    if base.model_id is None:
        assert "/" not in base.label and "\\" not in base.label
    else:
        assert base.model_id.count("/") == 1 and "\\" not in base.model_id and base.label == base.model_id


@pytest.mark.wild
def test_the_bases_of_real_configs_are_read_as_their_hub_ids(wild: Path) -> None:
    """Every stated ``owner/name`` stays; no label keeps a folder."""
    stated = set()
    for path in sorted((wild / "configs").glob("*.json")):
        try:
            config = json.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError:
            continue
        name = config.get("base_model_name_or_path") if isinstance(config, dict) else None
        if isinstance(name, str):
            stated.add(name)
    bases = {name: read_base(name) for name in stated}
    ids = [name for name in stated if name.count("/") == 1 and name[0] not in "./~" and "\\" not in name]
    assert len(ids) > 40 and all(bases[name].model_id == name for name in ids)
    others = [base.label for name, base in bases.items() if name not in ids and base.model_id is None]
    assert others and not any("/" in label or "\\" in label for label in others)
