"""What the factors alone tell of a sum, with and without the lora_A that trainings of one seed start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peft import get_peft_model
from study import Subject
from train import lora
from transformers import set_seed

from hub_merge import Adapter, score
from hub_merge.adapter import LoraFactors
from hub_merge.scores import PairScore, Scores

__all__ = ["described", "starts"]

Start = Mapping[str, NDArray[np.float32]]


def starts(model: Any, seeds: Sequence[int]) -> dict[int, Start]:
    """Return lora_A by module as it is before training, for each seed.

    ``train.py`` sets the seed just before, and holds the base in bfloat16, to which PEFT rounds the start.
    """
    found = {}
    for seed in seeds:
        set_seed(seed)
        fresh = get_peft_model(model, lora(model.config.model_type))
        names = {name: weight for name, weight in fresh.base_model.model.named_parameters() if "lora_A" in name}
        found[seed] = {
            name.partition(".lora_A")[0]: weight.detach().bfloat16().float().numpy() for name, weight in names.items()
        }
        fresh.unload()
    return found


def moved(adapter: Adapter, start: Start) -> Adapter:
    """Return the part of the delta that training put into A: ``B (A - start)``."""

    def load(module: str) -> LoraFactors:
        part = adapter.factors(module)
        return LoraFactors(part.A - start[module], part.B, part.scaling)

    return replace(adapter, load=load)


def described(subject: Subject, begun: Mapping[int, Start]) -> dict[str, Any]:
    """Return the overlap of all parents of a sum, and from the point of view of each domain."""
    whole = score(subject.parents)
    left = score([moved(parent, begun[seed]) for parent, seed in zip(subject.parents, subject.seeds, strict=True)])
    values = {
        "rms_cosine": lambda pair: pair.rms_cosine,
        "output_overlap": lambda pair: pair.left,
        "a_rows": lambda pair: pair.a_rows,
    }
    return {
        "name": subject.name,
        "domains": subject.domains,
        "seeds": subject.seeds,
        **{name: mean(whole.pairs, value) for name, value in values.items()},
        "rms_cosine_without_start": left.rms_cosine,
        "chance": whole.pairs[0].chance,
        "one_start": [pair.one_start for pair in whole.pairs],
        "of": {domain: seen_from(place, whole, left) for place, domain in enumerate(subject.domains)},
    }


def seen_from(place: int, whole: Scores, left: Scores) -> dict[str, float]:
    """Return the geometry that concerns one parent: means over its pairs, and the others' size beside its own."""
    name = whole.adapters[place]
    mine, mine_left = ([pair for pair in found.pairs if name in (pair.first, pair.second)] for found in (whole, left))
    others = [norm for number, norm in enumerate(whole.norms) if number != place]
    return {
        "rms_cosine": mean(mine, lambda pair: pair.rms_cosine),
        "rms_cosine_without_start": mean(mine_left, lambda pair: pair.rms_cosine),
        "output_overlap": mean(mine, lambda pair: pair.left),
        "retention": float(whole.retention[place] or 0.0),
        "norm_ratio": float(np.linalg.norm(others)) / whole.norms[place],
    }


def mean(pairs: Sequence[PairScore], value: Callable[[PairScore], float | None]) -> float:
    """Return the mean of a value over pairs."""
    return float(np.mean([value(pair) for pair in pairs]))
