"""A merge that has been decided but not yet computed: an adapter whose factors come out of a method."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hub_merge.adapter import Adapter, LoraFactors, ModuleSpec, Origin
from hub_merge.compat import Compatibility
from hub_merge.errors import MergeError
from hub_merge.extras import NO_EXTRAS, Extras
from hub_merge.formats.peft import covered
from hub_merge.formats.tensors import widest
from hub_merge.gram import Parts
from hub_merge.methods import Method
from hub_merge.methods.sum import combination
from hub_merge.mixtures import Mixtures
from hub_merge.ranks import ENERGY, Profile, Rank, ranks_by_module
from hub_merge.spectra import squares_of_sum
from hub_merge.weights import Weight, weight_for

__all__ = ["Composite", "compose", "module_generator"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Composite(Adapter):
    """The result of a merge. It is an adapter like any other; ``factors`` runs the method for one module.

    Attributes:
        parents: The adapters that go in.
        weights: One weight a parent.
        method: The merge method.
        rank_asked: Rank asked for, ``None`` for the method's own.
        energy: Share of the energy that rank ``auto`` keeps, ``None`` where another rank was asked for.
        profile: Whether all modules are written with one rank.
        ranks: What the method is told for each module, ``None`` for its own rank.
        options: Every option of the method with its value.
        seed: Seed of every random choice.
        dtype: Dtype it is written in.
        compatibility: What the check of the parents showed.
        allow: Codes of findings the user accepted.
        beside: What becomes of the parents' tensors beside their factors.
        mixtures: Coefficients by module that the method merges with, ``None`` for a method that takes none.
        tuning: How they, or weights and method, were chosen by measurement; ``None`` if they were not.
    """

    parents: tuple[Adapter, ...]
    weights: tuple[Weight, ...]
    method: Method
    rank_asked: Rank | None
    energy: float | None
    profile: Profile
    ranks: Mapping[str, int | None]
    options: Mapping[str, Any]
    seed: int
    dtype: str
    compatibility: Compatibility
    allow: tuple[str, ...] = ()
    beside: Extras = NO_EXTRAS
    mixtures: Mixtures | None = None
    tuning: Mapping[str, Any] | None = None

    @property
    def is_linear(self) -> bool:
        """Whether the composite is by definition a linear combination of its parents' deltas."""
        return self.method.coefficients is not None and self.rank_asked is None

    @property
    def uniform_rank(self) -> int | None:
        """The one rank that every module is written with; ``None`` where each has its own."""
        return self.rank if self.profile == "portable" else None

    def coefficients(self, weights: Sequence[float], parts: Sequence[LoraFactors]) -> Sequence[float]:
        """Return the coefficients of the combination that one module is measured against; see ``Method``."""
        return self.method.combination(weights, parts)

    def weights_at(self, module: str) -> list[float]:
        """Return one number a parent."""
        return [weight_for(weight, module) for weight in self.weights]

    def parts(self, module: str, parents: Parts | None = None) -> tuple[Parts, list[float]]:
        """Return the factors and weights that go into ``module``; parents of weight zero have none.

        Args:
            module: Name of a module.
            parents: The parents' factors of that module, if they were read already.
        """
        weights = self.weights_at(module)
        if parents is not None and all(weights):
            return parents, weights
        return _taking_part(parents or self.parents, weights, module, self.modules[module].shape), weights

    def merged(self, module: str, parents: Parts | None = None) -> LoraFactors:
        """Run the method for ``module``; see ``parts`` for the arguments."""
        parts, weights = self.parts(module, parents)
        rng = module_generator(self.seed, module)
        mixture = {} if self.mixtures is None else {"mixture": self.mixtures[module]}
        return self.method.kernel(parts, weights, rank=self.ranks[module], rng=rng, **mixture, **self.options)

    def rounded(self, module: str, dtype: np.dtype[Any]) -> LoraFactors:
        """Return the factors of ``module`` as a file holds them; of a combination, made in ``dtype``."""
        if not self.is_linear:
            return super().rounded(module, dtype)
        parts, weights = self.parts(module)
        if self.modules[module].rank != sum(part.rank for part in parts):  # a method that writes it in another way
            return super().rounded(module, dtype)
        factors = combination(parts, self.coefficients(weights, parts), dtype)
        return LoraFactors(factors.A.astype(dtype, copy=False), factors.B.astype(dtype, copy=False))


def compose(
    parents: Sequence[Adapter],
    weights: Sequence[Weight],
    method: Method,
    *,
    rank: Rank | None,
    energy: float | None = None,
    profile: Profile = "portable",
    options: Mapping[str, Any],
    seed: int,
    dtype: str | None,
    compatibility: Compatibility,
    allow: Sequence[str] = (),
    beside: Extras = NO_EXTRAS,
    mixtures: Mixtures | None = None,
    tuning: Mapping[str, Any] | None = None,
    name: str = "composite",
) -> Composite:
    """Return the composite that these choices give; nothing is computed yet but ranks that depend on the numbers.

    They follow from the singular values of the linear combination that the method makes, or of the weighted sum for a
    method that makes none.

    Raises:
        MergeError: Every weight is zero, so nothing is left to merge; or there are more adapters than the method takes.
    """
    if method.most_adapters is not None and len(parents) > method.most_adapters:
        raise MergeError(
            f"Method {method.name} takes at most {method.most_adapters} adapters; there are {len(parents)}.",
            remedy="Leave some out, merge in steps, or take another method.",
        )
    found = _specs_taking_part(parents, weights)
    if not found:
        raise MergeError("Every weight is zero.", remedy="Give at least one adapter a weight.")
    _require_mixtures(method, mixtures, found)
    if rank == "auto" and energy is None:
        energy = ENERGY
    ranks = _ranks(parents, weights, method, found, rank, energy or ENERGY, profile)
    specs = {
        module: replace(
            parts[0],
            rank=method.output_rank([spec.rank for spec in parts], ranks[module])
            if mixtures is None
            else len(mixtures[module].inward),
            scaling=1.0,
            dtype="float32",
        )
        for module, parts in found.items()
    }
    parameters = _target_parameters(parents, specs)
    if parameters and profile == "peft":
        raise MergeError(
            "Profile peft gives each module a rank of its own, which PEFT has not for experts (target_parameters).",
            remedy="Leave out --profile.",
        )
    written = dtype or widest(spec.dtype for parent in parents for spec in parent.modules.values())

    def load(module: str) -> LoraFactors:
        return composite.merged(module)

    composite = Composite(
        name=name,
        modules=specs,
        load=load,
        base_model=compatibility.base_model,
        task_type=_task_type(parents, beside),
        target_modules=_targets(parents, specs, beside),
        target_parameters=parameters,
        extras=beside.specs,
        load_extra=beside.load,
        fan_in_fan_out=any(parent.fan_in_fan_out for parent in parents),
        origin=Origin(
            gated=any(parent.origin.gated for parent in parents), private=any(p.origin.private for p in parents)
        ),
        parents=tuple(parents),
        weights=tuple(weights),
        method=method,
        rank_asked=rank,
        energy=energy,
        profile=profile,
        ranks=ranks,
        options=dict(options),
        seed=seed,
        dtype=written,
        compatibility=compatibility,
        allow=tuple(allow),
        beside=beside,
        mixtures=mixtures,
        tuning=tuning,
    )
    return composite


def _require_mixtures(method: Method, mixtures: Mixtures | None, modules: Mapping[str, Any]) -> None:
    if mixtures is None:
        return
    if not method.takes_mixtures:
        raise MergeError(f"Method {method.name} takes no mixtures.", remedy="Leave them out, or take method mix.")
    if modules.keys() != mixtures.keys():
        other = min(modules.keys() ^ mixtures.keys())
        raise MergeError(
            f"The mixtures and the adapters are for different modules, such as {other}.",
            remedy="Merge the adapters that they were tuned for, or tune again.",
        )


def _task_type(parents: Sequence[Adapter], beside: Extras) -> str | None:
    """Return the first task type that is stated, by those first whose extras are written: a head fits its own task."""
    return next((adapter.task_type for adapter in (*beside.sources, *parents) if adapter.task_type), None)


def _targets(parents: Sequence[Adapter], specs: Mapping[str, ModuleSpec], beside: Extras) -> tuple[str, ...]:
    """Return the parents' targets together, or full names where those would select a module that has no factors."""
    targets = sorted({target for parent in parents for target in parent.target_modules})
    dropped = any(module not in specs for parent in parents for module in parent.modules)
    replaced = {spec.name.rpartition(".")[0] for spec in beside.specs.values() if spec.kind == "weights"}
    if dropped or any(covered(module, targets) for module in replaced):
        return tuple(module for module, spec in specs.items() if spec.kind != "expert")
    return tuple(targets)


def _target_parameters(parents: Sequence[Adapter], specs: Mapping[str, ModuleSpec]) -> tuple[str, ...]:
    """Return the parameters that hold experts, if any expert is adapted.

    Raises:
        MergeError: Weights by module leave out some experts, whereas PEFT adapts all of a parameter or none.
    """
    experts = {name for parent in parents for name, spec in parent.modules.items() if spec.kind == "expert"}
    if experts.isdisjoint(specs):
        return ()
    if lost := sorted(experts - specs.keys()):
        raise MergeError(
            f"The weights leave out {lost[0]}; PEFT adapts all experts of target_parameters or none.",
            remedy="Give every expert a weight that is not zero.",
        )
    return next(parent.target_parameters for parent in parents if parent.target_parameters)


def _specs_taking_part(parents: Sequence[Adapter], weights: Sequence[Weight]) -> dict[str, list[ModuleSpec]]:
    """Return, by module, the specs of the parents that have it and a weight there."""
    found: dict[str, list[ModuleSpec]] = {}
    for module in sorted({module for parent in parents for module in parent.modules}):
        for parent, weight in zip(parents, weights, strict=True):
            if module in parent.modules and parent.modules[module].rank and weight_for(weight, module):
                found.setdefault(module, []).append(parent.modules[module])
    return found


def _taking_part(
    sources: Sequence[Adapter | LoraFactors], weights: Sequence[float], module: str, shape: tuple[int, int]
) -> Parts:
    """Return the factors of ``module``, none of them read of a source of weight zero."""
    empty = LoraFactors.empty(shape)
    return Parts(
        empty if not weight else source if isinstance(source, LoraFactors) else source.factors(module, shape)
        for source, weight in zip(sources, weights, strict=True)
    )


def _ranks(
    parents: Sequence[Adapter],
    weights: Sequence[Weight],
    method: Method,
    found: Mapping[str, Sequence[ModuleSpec]],
    rank: Rank | None,
    energy: float,
    profile: Profile,
) -> Mapping[str, int | None]:
    """Return the rank to ask the method for in every module; reads the factors only where it depends on them."""
    if rank is None or (rank != "auto" and profile == "portable"):
        return dict.fromkeys(found, rank)

    def taking_part(module: str) -> tuple[Parts, Sequence[float]]:
        numbers = [weight_for(weight, module) for weight in weights]
        parts = _taking_part(parents, numbers, module, found[module][0].shape)
        return parts, method.combination(numbers, parts)

    return {**ranks_by_module(squares_of_sum(found, taking_part), rank, energy, profile)}


def module_generator(seed: int, module: str) -> np.random.Generator:
    """Return a generator of its own for each module, so that neither their order nor threads change the result."""
    digest = hashlib.sha256(module.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])
