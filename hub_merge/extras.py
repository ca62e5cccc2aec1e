"""What becomes of tensors that are no delta: trained heads and other whole modules, biases, token rows.

A sum has no meaning for them, so nothing is done until the user decides: ``refuse`` (the default), ``keep:NAME`` (all
of one adapter), ``average`` (the plain mean, where all that have them agree in names and shapes) or ``drop``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hub_merge.adapter import Adapter, ExtraSpec, Tensor
from hub_merge.errors import RecipeError
from hub_merge.findings import REFUSE, Finding, Report
from hub_merge.formats.peft import EXTRAS_FLAG
from hub_merge.formats.tensors import FLOATS, dtype_named, widest
from hub_merge.weights import Weight

__all__ = ["NO_EXTRAS", "Extras", "checked_policy", "decide"]

KEEP, AVERAGE, DROP = "keep:", "average", "drop"


@dataclass(frozen=True, slots=True)
class Extras:
    """What was decided.

    Attributes:
        policy: ``refuse``, ``keep:NAME``, ``average`` or ``drop``.
        specs: The extras of the composite.
        sources: The adapters that they come from.
        dropped: Names of those left out, by adapter.
    """

    policy: str = REFUSE
    specs: Mapping[str, ExtraSpec] = field(default_factory=dict)
    sources: tuple[Adapter, ...] = ()
    dropped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def load(self, name: str) -> Tensor:
        """Return one extra: that of the only source bit for bit, else the float64 mean rounded to its dtype."""
        tensors = [source.load_extra(name) for source in self.sources]
        if len(tensors) == 1:
            return tensors[0]
        mean = sum(tensor.astype(np.float64) for tensor in tensors) / len(tensors)
        return np.asarray(mean).astype(dtype_named(self.specs[name].dtype))

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as plain data."""
        return {
            "policy": self.policy,
            "sources": [source.name for source in self.sources],
            "written": [{"name": spec.name, "kind": spec.kind, "dtype": spec.dtype} for spec in self.specs.values()],
            "dropped": [{"adapter": adapter, "names": list(names)} for adapter, names in self.dropped.items()],
        }


NO_EXTRAS = Extras()
"""Of a composite whose parents have none."""


def checked_policy(policy: str) -> str:
    """Return ``policy`` if there is one of that name.

    Raises:
        RecipeError: There is none.
    """
    if policy in (REFUSE, AVERAGE, DROP) or (policy.startswith(KEEP) and policy != KEEP):
        return policy
    raise RecipeError(f"extras is {policy!r}.", remedy="It is refuse, keep:NAME (of an adapter), average or drop.")


def decide(
    policy: str, adapters: Sequence[Adapter], weights: Sequence[Weight], report: Report
) -> tuple[Extras, Report]:
    """Return what becomes of the extras of ``adapters``, and the report with what it settles and what it cannot.

    Args:
        policy: See ``Extras``.
        adapters: The adapters of a merge, with different names.
        weights: One weight an adapter. An adapter of weight zero has no part in an average; other weights do not count.
        report: Findings about them.

    Raises:
        RecipeError: The policy keeps the extras of an adapter that has none, or that is not there.
    """
    owners = [adapter for adapter in adapters if adapter.extras]
    if checked_policy(policy) == REFUSE or not owners:
        return Extras(policy), report
    merged = [adapter for adapter, weight in zip(adapters, weights, strict=True) if weight != 0]
    sources = [owner for owner in owners if policy == KEEP + owner.name or (policy == AVERAGE and owner in merged)]
    if policy.startswith(KEEP) and not sources:
        raise RecipeError(
            f"extras is {policy!r}, and no adapter of that name holds tensors beside its factors.",
            remedy=f"Those that do: {', '.join(owner.name for owner in owners)}.",
        )
    problems = list(_differences(sources))
    specs = {} if problems or not sources else _common_specs(sources)
    dropped = {owner.name: tuple(owner.extras) for owner in owners if owner not in sources}
    problems += _clashes(specs, merged)
    settled = [_settled(found, policy, {source.name for source in sources}) for found in report.findings]
    return Extras(policy, specs, tuple(sources), dropped), Report.of([*settled, *problems])


def _settled(found: Finding, policy: str, sources: set[str]) -> Finding:
    """Return a finding about extras as a caution that tells what becomes of them; others as they are."""
    if found.overrule != EXTRAS_FLAG:
        return found
    fate = "left out" if found.adapter not in sources else "averaged" if policy == AVERAGE else "kept as they are"
    remedy = "Loaders other than PEFT may refuse them." if found.adapter in sources else ""
    return replace(found, severity="caution", seen=f"{found.seen}, {fate} as you asked", expected="", remedy=remedy)


def _common_specs(sources: Sequence[Adapter]) -> dict[str, ExtraSpec]:
    specs = {}
    for name, spec in sources[0].extras.items():
        dtypes = {source.extras[name].dtype for source in sources}
        specs[name] = replace(spec, dtype=spec.dtype if len(dtypes) == 1 else widest(dtypes))
    return specs


def _differences(sources: Sequence[Adapter]) -> Iterator[Finding]:
    """Tell of each source that does not agree with the first one about names, shapes and rows."""
    for other in sources[1:]:
        first, differing = sources[0], None
        for name in {**first.extras, **other.extras}:
            seen, wanted = (_described(adapter.extras.get(name)) for adapter in (other, first))
            if seen != wanted or "float" not in seen:
                differing = differing or (name, seen, wanted)
        if differing:
            name, seen, wanted = differing
            yield Finding(
                "problem",
                "extras_differ",
                other.name,
                name,
                f"{name} is {seen} here and {wanted} in {first.name}",
                "the same names, shapes and rows, to take a mean of",
                "Keep those of one adapter with --extras keep:NAME, or --extras drop.",
            )


def _described(spec: ExtraSpec | None) -> str:
    if spec is None:
        return "absent"
    kind = "float" if spec.dtype in FLOATS else spec.dtype
    rows = f" for tokens {list(spec.rows)}" if spec.rows else ""
    return f"{spec.kind} of {kind} {list(spec.shape)} in {spec.module}{rows}"


def _clashes(specs: Mapping[str, ExtraSpec], adapters: Sequence[Adapter]) -> Iterator[Finding]:
    """Tell of factors of a module that an extra replaces: PEFT can have only one of them there."""
    replaced = {spec.module for spec in specs.values() if spec.kind != "bias"}
    for adapter in adapters:
        both = [name for name in adapter.modules if any(name == m or name.startswith(f"{m}.") for m in replaced)]
        if both:
            yield Finding(
                "problem",
                "extras_clash",
                adapter.name,
                both[0],
                f"it has factors for {len(both)} modules that are to be replaced as a whole",
                "either factors or a trained module",
                "Use --extras drop, or leave this adapter out.",
            )
