"""The metadata of a card: what the Hub reads of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hub_merge.card.facts import PACKAGE, TASKS, agreed_task, library_of, method_name, options_of, weight_files
from hub_merge.card.markdown import cleaned, hub_id
from hub_merge.card.results import model_index
from hub_merge.licenses import LicenseVerdict, verdict_of
from hub_merge.recipe import SCHEMA_VERSION, MergeRecord, Parent

__all__ = ["front_matter"]


def front_matter(record: MergeRecord, name: str) -> dict[str, Any]:
    """Return the metadata; ``name`` is what the model is called where results are listed."""
    base, verdict = hub_id(record.base_model), verdict_of(record)
    task = TASKS.get(agreed_task(record) or "")
    content = {
        "base_model": base,
        "base_model_relation": "adapter" if base else None,
        "library_name": library_of(record),
        "pipeline_tag": task[0] if task else None,
        "tags": _tags(record, base, is_transformers=task is not None),
        "license": verdict.identifier,
        "license_name": verdict.name,
        "license_link": verdict.link,
        "model-index": model_index(record, name, task[0] if task else None),
        "hub_merge": _machine_readable(record, verdict),
    }
    return {key: cleaned(value) for key, value in content.items() if value is not None}


def _tags(record: MergeRecord, base: str | None, *, is_transformers: bool) -> list[str]:
    repo_ids = dict.fromkeys(hub_id(parent.repo_id) for parent in record.parents)
    return [
        *([f"base_model:adapter:{base}"] if base else []),
        "lora",
        *(["transformers"] if is_transformers else []),
        "merge",
        "hub-merge",
        f"hub-merge:{method_name(record)}",
        *(f"merged_from:{repo_id}" for repo_id in repo_ids if repo_id),
    ]


def _machine_readable(record: MergeRecord, verdict: LicenseVerdict) -> dict[str, Any]:
    recipe, output = record.recipe, record.output
    rms_cosine = record.scores["rms_cosine"]
    content = {
        "schema_version": SCHEMA_VERSION,
        "version": record.versions.get(PACKAGE),
        "method": {
            "name": method_name(record),
            "rank": recipe.rank,
            "energy": recipe.energy,
            "options": dict(options_of(record)),
            "seed": recipe.seed,
        },
        "base": {"repo_id": hub_id(record.base_model), "revision": record.base_commit} if record.base_model else None,
        "parents": [_machine_readable_parent(parent) for parent in record.parents],
        "output": {"rank": output["rank"], "dtype": output["dtype"], "sha256": _digests(output["files"])},
        "license": verdict.identifier,
        "rms_cosine": None if rms_cosine is None else float(f"{rms_cosine:.4g}"),
    }
    return {key: _without_none(value) for key, value in content.items() if value is not None}


def _machine_readable_parent(parent: Parent) -> dict[str, Any]:
    return {
        **({"repo_id": parent.repo_id} if parent.repo_id else {"name": parent.name}),
        "revision": parent.commit,
        "subfolder": parent.subfolder or None,
        "sha256": _digests(parent.files),
        "rank": parent.rank,
        "weight": dict(parent.weight) if isinstance(parent.weight, Mapping) else parent.weight,
        "license": parent.license,
    }


def _digests(files: Iterable[Mapping[str, Any]]) -> str | list[str] | None:
    """Return the sha256 of the weights: one text, or a list where they are in several files."""
    digests = [str(file["sha256"]) for file in weight_files(files)]
    return digests if len(digests) > 1 else next(iter(digests), None)


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(entry) for key, entry in value.items() if entry is not None}
    return [_without_none(entry) for entry in value] if isinstance(value, list) else value
