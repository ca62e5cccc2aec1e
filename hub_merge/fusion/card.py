"""The model card of a fused model, from its record alone."""

from __future__ import annotations

import re
from typing import Any

from hub_merge.card import (
    END,
    START,
    TASKS,
    Markdown,
    cleaned,
    code_span,
    environment,
    hub_id,
    link,
    to_yaml,
    weight_files,
)
from hub_merge.fusion.record import FusionRecord
from hub_merge.recipe import SCHEMA_VERSION

__all__ = ["render_fused_card"]

COMMIT = re.compile("[0-9a-f]{40}")
PLAIN = re.compile(r"(?:\./)?[\w.-]+(?:/[\w.-]+)?(?:@[0-9a-f]{40})?(?::[\w./-]+)?", re.ASCII)
"""A reference that a shell takes as one word."""


def render_fused_card(record: FusionRecord, *, repo_id: str | None = None) -> str:
    """Return the whole README.md of a fused model: YAML front matter and body.

    Args:
        record: What was done.
        repo_id: Where it will be published, ``owner/name``.
    """
    verdict, published = record.license, hub_id(repo_id)
    context = {
        "record": record,
        "title": published.partition("/")[2] if published else None,
        "repo_id": published,
        "loader": TASKS.get(record.adapter.task_type or "", (None, "AutoModel"))[1],
        "recipe": to_yaml(cleaned(record.recipe)) if record.recipe else None,
        "adapter": _word(record.adapter.model),
        "base": _word(record.base.model),
        "base_link": _base(record),
        "weights": weight_files(record.output["files"]),
        "versions": [Markdown(f"{code_span(name)} {version}") for name, version in cleaned(record.versions).items()],
        "verdict": verdict,
    }
    body = environment().get_template("fused.md.jinja").render(context).strip()
    return f"---\n{to_yaml(_front_matter(record))}---\n\n{START}\n{body}\n{END}\n"


def _word(reference: str) -> Markdown:
    return Markdown(reference) if PLAIN.fullmatch(reference) else Markdown("REFERENCE")


def _base(record: FusionRecord) -> Markdown:
    repo_id = hub_id(record.base.repo_id)
    if repo_id is None:
        return Markdown(f"{code_span(record.base.name)} (local folder)")
    commit = record.base.commit
    return link(repo_id, commit if COMMIT.fullmatch(commit or "") else None)


def _front_matter(record: FusionRecord) -> dict[str, Any]:
    base, verdict = hub_id(record.base.repo_id), record.license
    adapters = dict.fromkeys(hub_id(source.repo_id) for source in (record.adapter, *record.parents))
    content = {
        "base_model": base,
        "base_model_relation": "finetune" if base else None,
        "library_name": "transformers",
        "pipeline_tag": TASKS.get(record.adapter.task_type or "", (None,))[0],
        "tags": ["merge", "hub-merge", *(f"merged_from:{repo_id}" for repo_id in adapters if repo_id)],
        "license": verdict.identifier,
        "license_name": verdict.name,
        "license_link": verdict.link,
        "hub_merge": {"schema_version": SCHEMA_VERSION, "license": verdict.identifier},
    }
    return {key: cleaned(value) for key, value in content.items() if value is not None}
