"""A new card in the place of one that others may have written in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hub_merge.card.markdown import to_yaml
from hub_merge.frontmatter import split_front_matter

__all__ = ["END", "START", "published_card", "update_card"]

START, END = "<!-- hub-merge:start -->", "<!-- hub-merge:end -->"
GENERATED = re.compile(rf"^{START}[ \t]*$.*?^{END}[ \t]*$", re.DOTALL | re.MULTILINE)
MARKER = re.compile(rf"^(?:{START}|{END})[ \t]*\n?", re.MULTILINE)
LICENSE_KEYS = ("license", "license_name", "license_link")
GENERATED_TAGS = ("base_model:", "hub-merge:", "merged_from:")


def update_card(existing: str, new: str) -> str:
    """Return ``existing`` with the generated part and our metadata taken from ``new``.

    Text outside the markers, further metadata and further tags stay as their author wrote them. A card without markers
    keeps its body, and the generated part follows it.

    Args:
        existing: The card that is there, with or without our markers.
        new: A card from ``render_card``.

    Raises:
        HubMergeError: The metadata of ``existing`` is not a YAML mapping.
    """
    old_data, old_body = split_front_matter(existing)
    new_data, new_body = split_front_matter(new)
    generated = new_body.strip()
    if GENERATED.search(old_body):
        body = GENERATED.sub(lambda _: generated, old_body, count=1).strip("\n")
    else:
        body = f"{MARKER.sub('', old_body).rstrip()}\n\n{generated}".strip("\n")
    return f"---\n{to_yaml(_updated(old_data, new_data))}---\n\n{body}\n"


def published_card(published: str, local: str) -> str:
    """Return the card that takes the place of ``published``, which its readers may have edited on the Hub.

    Metadata is united as ``update_card`` does. Text outside the markers is that of ``local`` if it has any, for it was
    written last and here, else that of ``published``.

    Raises:
        HubMergeError: The metadata of one of them is not a YAML mapping.
    """
    _, body = split_front_matter(local)
    if not GENERATED.sub("", body, count=1).strip():
        return update_card(published, local)
    data = _updated(split_front_matter(published)[0], split_front_matter(local)[0])
    return f"---\n{to_yaml(data)}---\n\n{body.strip()}\n"


def _updated(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    record = old.get("hub_merge")
    stated_by_us = record.get("license") if isinstance(record, Mapping) else None
    dropped = LICENSE_KEYS if "license" in new or stated_by_us == old.get("license") else ()
    kept = {key: value for key, value in old.items() if key not in (*new, *dropped)}
    united = {"tags": _united_tags(old.get("tags"), new.get("tags", []))}
    if "model-index" in new:
        united["model-index"] = _united_results(old.get("model-index"), new["model-index"])
    return {**new, **united, **kept}


def _united_results(old: Any, new: list[dict[str, Any]]) -> list[Any]:
    """Return the results of both; ours take the place of others that give the same metrics on the same data."""
    ours = _figures(new)
    theirs = [
        result for result in _results(old) if not all(figure in ours for figure in _figures([{"results": [result]}]))
    ]
    return [{**new[0], "results": [*new[0]["results"], *theirs]}]


def _results(index: Any) -> list[Mapping[str, Any]]:
    """Return the results in a ``model-index``, whoever wrote it."""
    entries = [entry.get("results") for entry in index if isinstance(entry, Mapping)] if isinstance(index, list) else []
    listed = [result for results in entries if isinstance(results, list) for result in results]
    return [result for result in listed if isinstance(result, Mapping)]


def _figures(index: Any) -> list[tuple[Any, Any]]:
    """Return data and kind of each figure in a ``model-index``."""
    metrics = [(result.get("dataset"), result.get("metrics")) for result in _results(index)]
    return [
        (dataset, metric.get("type") if isinstance(metric, Mapping) else metric)
        for dataset, each in metrics
        for metric in (each if isinstance(each, list) else [])
    ]


def _united_tags(old: Any, new: Sequence[str]) -> list[Any]:
    tags = old if isinstance(old, list) else [old] if old else []
    return [*new, *(tag for tag in tags if tag not in new and not str(tag).startswith(GENERATED_TAGS))]
