"""What the Hub reads out of a repository's own files: the model card, its tags, the two config files."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml
from starlette.responses import Response

from .http import Call, Routes, answer
from .state import Commit, State

routes = Routes()

FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(?:\r?\n|\Z)(.*)", re.DOTALL)
ARXIV_LINK = re.compile(r"(?:arxiv\.org/(?:abs|pdf)|(?:huggingface\.co|hf\.co)/papers)/(\d{4}\.\d{4,5})")
RELATIONS = ("adapter", "finetune", "merge", "quantized")
LIST_FIELDS = ("base_model", "datasets", "language", "tags")
TEXT_FIELDS = ("library_name", "pipeline_tag", "license_name", "license_link")
LICENSES = """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0
    grok2-community h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2
    llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0
    other pddl postgresql unknown unlicense wtfpl zlib
""".split()


def split_card(card: str) -> tuple[Any, str]:
    """Front matter (None when there is none; may be of any YAML type) and body. Raises ``yaml.YAMLError``."""
    match = FRONT_MATTER.match(card)
    return (yaml.safe_load(match[1]), match[2]) if match else (None, card)


def card_problems(card: str) -> tuple[list[str], list[str]]:
    """Errors, which refuse a commit, and warnings."""
    try:
        data, _ = split_card(card)
    except yaml.YAMLError as error:
        return [f"YAML metadata error: {error}"], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data, dict):
        return ["YAML metadata must be a mapping"], []
    errors = [f'"{key}" must be a string' for key in TEXT_FIELDS if not isinstance(data.get(key, ""), str)]
    for key in LIST_FIELDS:
        if not all(isinstance(item, str) for item in as_list(data.get(key))):
            errors.append(f'"{key}" must be a string or a list of strings')
    if any(item not in LICENSES for item in as_list(data.get("license"))):
        errors.append(f'"license" must be one of {LICENSES}')
    if data.get("base_model_relation", RELATIONS[0]) not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of {list(RELATIONS)}')
    if not isinstance(data.get("model-index", []), list):
        errors.append('"model-index" must be an array')
    return errors, []


def as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


@routes("POST", r"/api/validate-yaml")
def validate_yaml(call: Call) -> Response:
    errors, warnings = card_problems(str(call.json().get("content", "")))
    body = {
        "errors": [{"message": message} for message in errors],
        "warnings": [{"message": message} for message in warnings],
    }
    if not errors:
        return answer(body)
    headers = {"X-Error-Code": "BadRequest", "X-Error-Message": "Invalid metadata in README.md"}
    return answer(body, 400, headers)


def model_facts(state: State, commit: Commit) -> dict[str, Any]:
    """Fields of ``model_info`` that come from the files, which are read once."""
    if commit.oid not in state.facts:
        state.facts[commit.oid] = _facts(state, commit)
    return state.facts[commit.oid]


def _facts(state: State, commit: Commit) -> dict[str, Any]:
    card, body = _card(state, commit)
    config, adapter_config = (_json_file(state, commit, name) for name in ("config.json", "adapter_config.json"))
    library = card.get("library_name") or ("peft" if adapter_config else "transformers" if config else None)
    base_models = [str(base) for base in as_list(card.get("base_model"))]
    relation = card.get("base_model_relation") or _relation(base_models, is_adapter=bool(adapter_config))
    tags = [
        library,
        "safetensors" if any(path.endswith(".safetensors") for path in commit.files) else None,
        card.get("pipeline_tag"),
        *as_list(card.get("tags")),
        *as_list(card.get("language")),
        *(f"dataset:{dataset}" for dataset in as_list(card.get("datasets"))),
        *(f"arxiv:{paper}" for paper in ARXIV_LINK.findall(body)),
        *(f"base_model:{base}" for base in base_models),
        *(f"base_model:{relation}:{base}" for base in base_models),
        *(f"license:{name}" for name in as_list(card.get("license"))),
        "region:us",
    ]
    return {
        "tags": list(dict.fromkeys(str(tag) for tag in tags if tag)),
        "library_name": library,
        "pipeline_tag": card.get("pipeline_tag"),
        "cardData": card or None,
        "model-index": card.get("model-index"),
        "config": _config(config, adapter_config),
        "baseModels": {"relation": relation, "models": [{"_id": base, "id": base} for base in base_models]}
        if base_models
        else None,
    }


def _card(state: State, commit: Commit) -> tuple[dict[str, Any], str]:
    readme = commit.files.get("README.md")
    if readme is None:
        return {}, ""
    try:
        data, body = split_card(state.content(readme).decode(errors="replace"))
    except yaml.YAMLError:
        return {}, ""
    return (data if isinstance(data, dict) else {}), body


def _json_file(state: State, commit: Commit, path: str) -> dict[str, Any]:
    try:
        data = json.loads(state.content(commit.files[path]))
    except (KeyError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _relation(base_models: list[str], is_adapter: bool) -> str:
    if len(base_models) > 1:
        return "merge"
    return "adapter" if is_adapter else "finetune"


def _config(config: dict[str, Any], adapter_config: dict[str, Any]) -> dict[str, Any] | None:
    shown: dict[str, Any] = {key: config[key] for key in ("architectures", "model_type") if key in config}
    if adapter_config:
        shown["peft"] = {key: adapter_config.get(key) for key in ("base_model_name_or_path", "task_type")}
    return shown or None
