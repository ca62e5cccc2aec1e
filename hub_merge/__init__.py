"""Find, check, score, merge, prove and publish LoRA adapters of the Hugging Face Hub, without loading a base model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hub_merge.adapter import Adapter, LoraFactors
    from hub_merge.compat import Compatibility, check
    from hub_merge.composite import Composite
    from hub_merge.errors import HubMergeError, IncompatibleAdapters
    from hub_merge.extraction import Extraction, extract
    from hub_merge.findings import Finding, Report
    from hub_merge.fusion import FusionRecord, fuse, verify
    from hub_merge.hub import Hub
    from hub_merge.methods import list_methods, merge_method
    from hub_merge.pipeline import compress, merge, run
    from hub_merge.recipe import MergeRecord, Recipe
    from hub_merge.scores import Scores, score

__all__ = [
    "Adapter",
    "Compatibility",
    "Composite",
    "Extraction",
    "Finding",
    "FusionRecord",
    "Hub",
    "HubMergeError",
    "IncompatibleAdapters",
    "LoraFactors",
    "MergeRecord",
    "Recipe",
    "Report",
    "Scores",
    "check",
    "compress",
    "extract",
    "fuse",
    "list_methods",
    "merge",
    "merge_method",
    "run",
    "score",
    "search",
    "verify",
]

_HOME = {
    "Adapter": "adapter",
    "Compatibility": "compat",
    "Composite": "composite",
    "Extraction": "extraction",
    "Finding": "findings",
    "FusionRecord": "fusion",
    "Hub": "hub",
    "HubMergeError": "errors",
    "IncompatibleAdapters": "errors",
    "LoraFactors": "adapter",
    "MergeRecord": "recipe",
    "Recipe": "recipe",
    "Report": "findings",
    "Scores": "scores",
    "check": "compat",
    "compress": "pipeline",
    "extract": "extraction",
    "fuse": "fusion",
    "list_methods": "methods",
    "merge": "pipeline",
    "merge_method": "methods",
    "run": "pipeline",
    "score": "scores",
    "search": "pipeline",
    "verify": "fusion",
}
"""Where each public name lives; imported when it is first used, so that ``import hub_merge`` costs nothing."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"hub_merge.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
