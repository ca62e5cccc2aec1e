"""Merge methods: one file each, registered by a decorator, found by scanning this folder and an entry-point group.

A method is a typed pure function of one module's factors::

    @merge_method("mine", paper="2409.16167", formula="…")
    def mine(parts, weights, *, rank=None, density: Annotated[float, Bounds(0, 1)] = 0.5, rng) -> LoraFactors:
        \"\"\"Return …\"\"\"

Keyword-only parameters apart from ``rank`` and ``rng`` are its options: their annotation gives kind, choices and range,
their default the value used. Another package adds methods by naming such a function's module in the entry-point group
``hub_merge.methods``; ``examples/method-package`` is one. A package that fails is left out with a warning;
none is imported for the sake of a method of this folder.
"""

from hub_merge.methods.registry import Bounds, Method, Option, get_method, list_methods, merge_method

__all__ = ["Bounds", "Method", "Option", "get_method", "list_methods", "merge_method"]
