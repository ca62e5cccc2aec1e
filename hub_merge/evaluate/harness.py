"""Standard tasks by EleutherAI's lm-eval, on a model that wears one adapter after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hub_merge.errors import EvaluationError
from hub_merge.evaluate.language_model import LanguageModel
from hub_merge.evaluate.wearing import Wearable

__all__ = ["run_tasks"]

NORMAL = 1.96
"""Standard errors on both sides of a value that make a 95 % interval."""


def run_tasks(
    model: LanguageModel,
    composites: Mapping[str, Wearable],
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    folder: Path | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Return what lm-eval finds for each composite, in the form of ``results_of``.

    Args:
        model: The base, loaded once.
        composites: By name: adapters, composites, or ``None`` for the plain base.
        tasks: Names of tasks of lm-eval.
        limit: Rows a task, ``None`` for all.
        folder: Folder with tasks of your own, in lm-eval's YAML.

    Raises:
        EvaluationError: lm-eval is not installed, or it cannot run these tasks.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise EvaluationError("Standard tasks need lm-eval.", remedy="pip install 'hub-merge[tasks]'") from error
    manager = TaskManager(include_path=None if folder is None else str(folder))
    if unknown := sorted(set(tasks) - set(manager.match_tasks(list(tasks)))):
        raise EvaluationError(
            f"lm-eval has no task {', '.join(unknown)}.",
            remedy="List them: lm-eval ls tasks (older: lm_eval --tasks list)",
        )
    subject = HFLM(pretrained=model.model, tokenizer=model.tokenizer, max_length=model.most_tokens)
    found = {}
    for name, wearable in composites.items():
        with model.wearing(wearable):
            done = lm_eval.simple_evaluate(model=subject, tasks=list(tasks), limit=limit, task_manager=manager)
        found[name] = list(_entries(done, getattr(lm_eval, "__version__", "")))
    return found


def _entries(done: Mapping[str, Any], version: str) -> Iterator[dict[str, Any]]:
    """Yield one entry a task and metric; standard errors become intervals."""
    for task, values in done["results"].items():
        asked = done.get("configs", {}).get(task, {})
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if metric.endswith("_stderr") or not kind or isinstance(value, str):
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            spread = NORMAL * error if isinstance(error, (int, float)) else None
            shots = done.get("n-shot", {}).get(task)
            yield {
                "dataset": task,
                "split": asked.get("test_split") or asked.get("validation_split") or "",
                "metric": metric if kind == "none" else f"{metric} ({kind})",
                "value": float(value),
                "interval": None if spread is None else [value - spread, value + spread],
                "rows": done.get("n-samples", {}).get(task, {}).get("effective"),
                "how": f"lm-eval {version}, {shots}-shot; interval: 1.96 standard errors",
            }
