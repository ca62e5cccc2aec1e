"""What was measured, as the Hub reads it: the model index of the card, and files for registered benchmarks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from hub_merge.card.markdown import cleaned, hub_id
from hub_merge.measurements import Measurement
from hub_merge.recipe import MergeRecord

__all__ = ["RESULTS_FOLDER", "benchmark_files", "model_index"]

RESULTS_FOLDER = ".eval_results"
"""Where the Hub looks for results of registered benchmarks."""


def model_index(record: MergeRecord, name: str, task: str | None) -> list[dict[str, Any]] | None:
    """Return the card's ``model-index``: the composite's own figures, by data set; ``None`` where none was measured.

    Args:
        record: What was done, and measured.
        name: What the model is called.
        task: The Hub's name of what the composite does.
    """
    own = [entry for entry in record.measured if not entry.subject]
    if not own:
        return None
    results = [
        {"task": {"type": task or "other"}, "dataset": dict(place), "metrics": [_metric(entry) for entry in entries]}
        for place, entries in groupby(sorted(own, key=_place), key=_place)
    ]
    return [{"name": name, "results": results}]


def _place(entry: Measurement) -> tuple[tuple[str, str], ...]:
    """Return the fields of a data set that are known, in an order that can be sorted."""
    fields = {"config": entry.config, "name": entry.dataset, "revision": entry.revision, "split": entry.split}
    return (*((name, value) for name, value in fields.items() if value), ("type", entry.dataset))


def _metric(entry: Measurement) -> dict[str, Any]:
    return {"type": entry.metric, "value": entry.value, "name": entry.how}


def benchmark_files(record: MergeRecord) -> Mapping[str, str]:
    """Return the files of results on registered benchmarks by name, one a data set.

    They are written for those measurements of the composite that name a benchmark and the data set's id on the Hub.
    """
    own = [entry for entry in record.measured if entry.benchmark and not entry.subject and hub_id(entry.dataset)]
    return {
        f"{RESULTS_FOLDER}/{re.sub(r'[^A-Za-z0-9._-]+', '-', dataset)}.yaml": _to_yaml(entries)
        for dataset, entries in groupby(sorted(own, key=lambda entry: entry.dataset), key=lambda entry: entry.dataset)
    }


def _to_yaml(entries: Iterable[Measurement]) -> str:
    """Return results on one benchmark as the Hub reads them."""
    import yaml

    content = [
        {
            "dataset": {
                "id": entry.dataset,
                "task_id": entry.benchmark,
                **({"revision": entry.revision} if entry.revision else {}),
            },
            "value": entry.value,
            "notes": entry.how,
        }
        for entry in entries
    ]
    text: str = yaml.safe_dump(cleaned(content), sort_keys=False, allow_unicode=True)
    return text
