"""LoRA on parameters that hold all experts of a layer (``target_parameters``), one module an expert.

PEFT's ``ParamWrapper`` keeps the factors of E experts in two matrices: A is ``(E * rank, in)``, one expert after the
other, B is ``(out, rank * E)`` with the experts fastest. So the delta of expert e is ``scaling * B[:, e::E]`` times
the e-th block of A, and each expert is a module of its own here, called ``path[e]``. Where a module has several such
parameters, PEFT nests their wrappers, and the path of the inner ones ends in ``base_layer``; which parameter that is
follows from the base.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hub_merge.adapter import ModuleSpec, Tensor

__all__ = ["expert", "expert_name", "expert_number", "joined", "of_parameters", "path_of", "target_parameters"]

EXPERT = re.compile(r"(?P<path>.+)\[(?P<number>\d+)\]")


def target_parameters(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of parameters that the config targets, in the order of its file."""
    names = config.get("target_parameters")
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def of_parameters(module: str, targets: Sequence[str]) -> bool:
    """Whether the factors of ``module`` are for a parameter among ``targets``."""
    owner = re.sub(r"(\.base_layer)+$", "", module)
    places = (target.rpartition(".")[0] for target in targets)
    return any(owner == place or owner.endswith(f".{place}") for place in places)


def expert_name(path: str, number: int) -> str:
    """Return the name of the module that stands for one expert."""
    return f"{path}[{number}]"


def path_of(spec: ModuleSpec) -> str:
    """Return where the factors of a module are in a file: an expert's with those of the others."""
    found = EXPERT.fullmatch(spec.name) if spec.kind == "expert" else None
    return found["path"] if found else spec.name


def expert_number(spec: ModuleSpec) -> int:
    """Return which of the experts of its parameter a module is."""
    found = EXPERT.fullmatch(spec.name)
    return int(found["number"]) if found else 0


def expert(A: Tensor, B: Tensor, number: int, rank: int) -> tuple[Tensor, Tensor]:
    """Return A, ``(rank, in)``, and B, ``(out, rank)``, of one expert of the stored A and B."""
    count = len(A) // rank
    return A[number * rank : (number + 1) * rank], B[:, number::count]


def joined(factors: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the stored A and B of experts in their order, all of one rank."""
    A = np.concatenate([A for A, _ in factors])
    B = np.stack([B for _, B in factors], axis=2)
    return A, B.reshape(len(B), -1)
