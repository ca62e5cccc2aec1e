"""The one spine: sources, check, score, merge, proof, record, card, push. API, command line and Space all use it.

Only here do findings become exceptions, in ``require_compatible``. Each step is a file, which imports only earlier
ones: progress, opening, merging, references, documents, saving, recipes, verifying, publishing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hub_merge.pipeline.documents import add_measurements, card_of
    from hub_merge.pipeline.merging import compress, merge, require_compatible
    from hub_merge.pipeline.opening import checked, followers
    from hub_merge.pipeline.publishing import is_open, push, push_folder, require_lawful
    from hub_merge.pipeline.recipes import merge_to_folder, run
    from hub_merge.pipeline.references import (
        advise_on_references,
        check_references,
        inspect_reference,
        require_comparable,
        score_references,
        search,
    )
    from hub_merge.pipeline.saving import save
    from hub_merge.pipeline.verifying import verify

__all__ = [
    "add_measurements",
    "advise_on_references",
    "card_of",
    "check_references",
    "checked",
    "compress",
    "followers",
    "inspect_reference",
    "is_open",
    "merge",
    "merge_to_folder",
    "push",
    "push_folder",
    "require_comparable",
    "require_compatible",
    "require_lawful",
    "run",
    "save",
    "score_references",
    "search",
    "verify",
]

_HOME = {
    "add_measurements": "documents",
    "advise_on_references": "references",
    "card_of": "documents",
    "check_references": "references",
    "checked": "opening",
    "compress": "merging",
    "followers": "opening",
    "inspect_reference": "references",
    "is_open": "publishing",
    "merge": "merging",
    "merge_to_folder": "recipes",
    "push": "publishing",
    "push_folder": "publishing",
    "require_comparable": "references",
    "require_compatible": "merging",
    "require_lawful": "publishing",
    "run": "recipes",
    "save": "saving",
    "score_references": "references",
    "search": "references",
    "verify": "verifying",
}
"""Where each step lives; imported when it is first used: a merge of adapters at hand needs neither client nor card."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"hub_merge.pipeline.{_HOME[name]}"), name)
