"""Mixtures by module: how each rank-one unit of a composite is put together from those of all its parents.

They are what measuring on a model finds. With the parents they are the whole composite, so a file of them, some
kilobytes a module, lets a tuned merge be made and proved again without the model and the data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from hub_merge.adapter import Array
from hub_merge.errors import ProofFailed, RecipeError
from hub_merge.formats.peft import contained
from hub_merge.formats.tensors import SafetensorsStore
from hub_merge.layout import MIXTURES_FILE

__all__ = ["Mixture", "Mixtures", "digest_of", "read_mixtures", "write_mixtures"]

OUT, IN = "out", "in"


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """The units of one module: ``delta = [s_1 B_1 …] @ out @ inward @ [A_1; …]``.

    Attributes:
        out: Shape ``(R, k)``, R the sum of the parents' ranks in the module; makes columns of B from theirs.
        inward: Shape ``(k, R)``; makes rows of A from theirs.

    Raises:
        RecipeError: The shapes do not belong together.
    """

    out: Array
    inward: Array

    def __post_init__(self) -> None:
        if self.out.ndim != 2 or self.out.shape != self.inward.shape[::-1]:
            raise RecipeError(
                f"Mixtures {self.out.shape} and {self.inward.shape} do not form a product.",
                remedy="Tune again to write new ones.",
            )


Mixtures: TypeAlias = Mapping[str, Mixture]
"""By the name of the module."""


def write_mixtures(mixtures: Mixtures, folder: Path) -> str:
    """Write the coefficients into ``folder``, float32, and return the sha256 of the file."""
    content = _content(mixtures)
    (folder / MIXTURES_FILE).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def digest_of(mixtures: Mixtures) -> str:
    """Return the sha256 that the file of the coefficients has."""
    return hashlib.sha256(_content(mixtures)).hexdigest()


def read_mixtures(folder: Path, sha256: str) -> Mixtures:
    """Return the coefficients in ``folder``.

    Raises:
        RecipeError: There are none, or they are not what a recipe can mean.
        ProofFailed: The file is not the one with this sha256.
    """
    path = contained(folder, MIXTURES_FILE)
    if not path.is_file():
        raise RecipeError(
            f"The recipe needs {MIXTURES_FILE}, which is not beside it.",
            remedy="Put the file of the tuned composite there, or tune again.",
        )
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ProofFailed(f"{MIXTURES_FILE} is not the file that was recorded.", remedy="Get it again, or tune again.")
    store = SafetensorsStore(path)
    modules = sorted({name.rpartition(".")[0] for name in store.infos})
    try:
        return {name: Mixture(store.read(f"{name}.{OUT}"), store.read(f"{name}.{IN}")) for name in modules}
    except KeyError as error:
        raise RecipeError(f"{MIXTURES_FILE} lacks {error.args[0]}.", remedy="Get it again, or tune again.") from error


def _content(mixtures: Mixtures) -> bytes:
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(tensor, np.float32) for name, tensor in _tensors(mixtures)})


def _tensors(mixtures: Mixtures) -> Iterator[tuple[str, Array]]:
    for module, mixture in sorted(mixtures.items()):
        yield f"{module}.{OUT}", mixture.out
        yield f"{module}.{IN}", mixture.inward
