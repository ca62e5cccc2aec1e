"""The whole card, and the list of licences beside it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from hub_merge.card.facts import (
    TASKS,
    agreed_task,
    components_of,
    described,
    exact_words,
    format_of,
    library_of,
    losses_of,
    matrix_of,
    method_name,
    method_of,
    most_alike,
    options_of,
    owed_lines,
    rank_words,
    task_type,
    version_of,
    weight_files,
)
from hub_merge.card.front_matter import front_matter
from hub_merge.card.markdown import BLANK, Markdown, cleaned, code_span, escape, fenced, hub_id, link, to_yaml
from hub_merge.card.updating import END, START
from hub_merge.card.words import counted, listed, number, percent, source, weight_words
from hub_merge.layout import DIFFUSERS_FILE, KOHYA_FILE
from hub_merge.licenses import LicenseVerdict, verdict_of
from hub_merge.recipe import MergeRecord
from hub_merge.scores import started_alike

if TYPE_CHECKING:
    import jinja2

__all__ = ["environment", "render_card", "render_licenses"]

VLLM_RANKS = (8, 16, 32, 64, 128, 256)
"""Values of ``--max-lora-rank`` to choose from."""


def render_card(record: MergeRecord, *, repo_id: str | None = None, picture: str | None = None) -> str:
    """Return the whole README.md of a composite: YAML front matter and body.

    Args:
        record: What was done.
        repo_id: Where the composite will be published, ``owner/name``; the card then says how to load it from there.
        picture: Name of the picture of the scores, a file beside the card.
    """
    template = environment().get_template("card.md.jinja")
    published = hub_id(repo_id)
    body = template.render(_context(record, published, picture)).strip()
    metadata = front_matter(record, published.rpartition("/")[2] if published else "composite")
    return f"---\n{to_yaml(metadata)}---\n\n{START}\n{body}\n{END}\n"


def render_licenses(verdict: LicenseVerdict) -> str:
    """Return the file that lists every source with its licence, for what no single licence covers."""
    body = environment().get_template("licenses.md.jinja").render(_terms(verdict)).strip()
    return f"# Licences\n\n{body}\n"


@cache
def environment() -> jinja2.Environment:
    """Return the templates, which escape every value that is not Markdown already."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hub_merge"),
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markdown) else escape(value),
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "code": code_span,
        "counted": counted,
        "fenced": fenced,
        "listed": listed,
        "number": number,
        "percent": percent,
        "source": source,
        "weight": weight_words,
    }
    return environment


def _context(record: MergeRecord, repo_id: Markdown | None, picture: str | None) -> dict[str, Any]:
    base, pairs = hub_id(record.base_model), record.scores["pairs"]
    return {
        "record": record,
        "title": repo_id.partition("/")[2] or repo_id if repo_id else None,
        "repo_id": repo_id,
        "picture": Markdown(quote(picture)) if picture else None,
        "base": link(base, record.base_commit) if base else None,
        "measured": record.measured,
        "method_name": method_name(record),
        "method": described(method_of(record)),
        "options": options_of(record),
        "exact": exact_words(record),
        "ranks": rank_words(record),
        "losses": losses_of(record),
        "matrix": matrix_of(record.scores),
        "pairs": most_alike(pairs),
        "shared_starts": [
            Markdown(f"{code_span(pair['first'])} with {code_span(pair['second'])}")
            for pair in most_alike(pairs)
            if started_alike(pair["a_rows"], pair["a_rows_chance"])
        ],
        "usage": _usage(record, repo_id),
        "version": version_of(record),
        "versions": [Markdown(f"{code_span(name)} {escape(value)}") for name, value in record.versions.items()],
        "local": [parent for parent in record.parents if parent.repo_id is None],
        "recipe": to_yaml(cleaned(record.recipe.to_dict())),
        "weights": weight_files(record.output["files"]),
        **_terms(verdict_of(record)),
    }


def _usage(record: MergeRecord, repo_id: Markdown | None) -> dict[str, Any]:
    base, rank = hub_id(record.base_model), record.output["rank"]
    names = [str(file["name"]) for file in weight_files(record.output["files"])]
    return {
        "library": library_of(record),
        "format": format_of(record),
        "component": next(iter(components_of(record)), None),
        "file": next((name for name in names if name in (KOHYA_FILE, DIFFUSERS_FILE)), None),
        "base": base or Markdown("BASE_MODEL"),
        "repo_id": repo_id or Markdown("path/to/this/adapter"),
        "loader": TASKS.get(task_type(record) or "", (None, "AutoModel"))[1],
        "is_generator": agreed_task(record) == "CAUSAL_LM",
        "max_lora_rank": next((allowed for allowed in VLLM_RANKS if allowed >= rank), None),
    }


def _terms(verdict: LicenseVerdict) -> dict[str, Any]:
    return {"verdict": verdict, "owed": owed_lines(verdict), "blank": Markdown(BLANK)}
