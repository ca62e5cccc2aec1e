"""Single weights of a base model, read by header and range: from a folder, or from the Hub without downloading it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hub_merge.adapter import Array, ModuleSpec, Tensor
from hub_merge.errors import AdapterFormatError, AdapterNotFound, UnsupportedAdapter
from hub_merge.formats.tensors import (
    JoinedStore,
    SafetensorsStore,
    TensorInfo,
    TensorStore,
    dtype_named,
    is_finite,
    parse_header,
)
from hub_merge.hub.ranges import read_header

if TYPE_CHECKING:
    from hub_merge.hub import Hub, PinnedRepo

__all__ = ["BaseWeights", "open_base"]

WEIGHTS = re.compile(r"(?:model|diffusion_pytorch_model)(?:-\d{5}-of-\d{5})?\.safetensors")


class RangedStore:
    """A safetensors file of which ranges can be read."""

    has_values = True

    def __init__(self, file: str, size: int, read: Callable[[int, int], bytes]) -> None:
        """Read the header of ``file``, which has ``size`` bytes.

        Raises:
            AdapterFormatError: The file is damaged.
        """
        head = read_header(read, size, file)
        header = parse_header(head, file, size)
        self.infos: Mapping[str, TensorInfo] = header
        self.metadata: Mapping[str, str] = header.metadata
        self._start, self._read = len(head), read

    def read(self, name: str) -> Array:
        """Return one tensor."""
        info = self.infos[name]
        content = self._read(self._start + info.begin, self._start + info.end)
        return np.frombuffer(content, dtype_named(info.dtype)).reshape(info.shape)


class BaseWeights:
    """The weights of a base model, by the names that modules have in an adapter."""

    def __init__(self, store: TensorStore, label: str) -> None:
        self._store = store
        self.label = label

    def weight(self, spec: ModuleSpec, *, fan_in_fan_out: bool) -> Tensor:
        """Return the weight of a module in the layout of its delta, ``(out, in)``.

        Args:
            spec: The module.
            fan_in_fan_out: Whether the base stores it as ``(in, out)``, as GPT-2's Conv1D does.

        Raises:
            AdapterFormatError: The base has no such weight, or one of another shape or with NaN.
            UnsupportedAdapter: It is quantised.
        """
        name = self._tensor_name(spec.name)
        info = self._store.infos[name]
        transposed = spec.kind == "embedding" or fan_in_fan_out
        if not info.is_float:
            raise UnsupportedAdapter(
                f"{self.label} stores {name} as {info.dtype}, which is quantised.",
                remedy="Give the weights it was made from: --base-weights FOLDER_OR_REPO",
            )
        if info.shape != (spec.shape[::-1] if transposed else spec.shape):
            raise AdapterFormatError(
                f"{name} of {self.label} has shape {list(info.shape)}; the adapter's delta is {list(spec.shape)}.",
                remedy="Give the base that the adapter was trained on: --base-weights FOLDER_OR_REPO",
            )
        weight = self._store.read(name)
        if not is_finite(weight):
            raise AdapterFormatError(f"{name} of {self.label} holds NaN or infinity.", remedy="Download it again.")
        return weight.T if transposed else weight

    def _tensor_name(self, module: str) -> str:
        """Return the tensor of ``module``: of its name, or the only one whose name is that but for its beginning.

        Checkpoints and models differ by what stands in front, as ``transformer.`` does for GPT-2.
        """
        wanted = f"{module}.weight"
        if wanted in self._store.infos:
            return wanted
        found = [name for name in self._store.infos if wanted.endswith(f".{name}") or name.endswith(f".{wanted}")]
        if len(found) == 1:
            return found[0]
        seen = f"{len(found)} tensors could be {wanted}" if found else f"there is no tensor {wanted}"
        raise AdapterFormatError(
            f"{self.label}: {seen}.",
            remedy="Give the base in the layout it was trained in (a tied head is not stored): --base-weights FOLDER",
        )


def open_base(reference: str | Path, *, hub: Hub) -> BaseWeights:
    """Return the weights of the base that ``reference`` names: a folder, or ``owner/name[@revision]`` on the Hub.

    Only headers are read at once; a weight is read when it is asked for.

    Raises:
        AdapterNotFound: There is none, or it has no safetensors weights.
        AdapterFormatError: A file is damaged.
        HubUnavailable: The Hub did not answer.
    """
    from hub_merge.hub import parse_reference

    folder = Path(reference).expanduser()
    if isinstance(reference, Path) or reference.startswith((".", "/", "~")) or folder.is_dir():
        files = sorted(path for path in folder.glob("*.safetensors") if WEIGHTS.fullmatch(path.name))
        label = f"./{folder.resolve().name}"
        return BaseWeights(_joined([SafetensorsStore(path) for path in files], label), label)
    pinned = hub.resolve(parse_reference(str(reference)))
    stores = [_remote(hub, pinned, name) for name in sorted(pinned.names()) if WEIGHTS.fullmatch(name)]
    label = f"{pinned.repo_id}@{pinned.commit}" + (f":{pinned.subfolder}" if pinned.subfolder else "")
    return BaseWeights(_joined(stores, label), label)


def _remote(hub: Hub, pinned: PinnedRepo, name: str) -> RangedStore:
    return RangedStore(name, pinned.files[pinned.path(name)].size, partial(hub.ranges(pinned), name))


def _joined(stores: list[SafetensorsStore] | list[RangedStore], label: str) -> TensorStore:
    if not stores:
        raise AdapterNotFound(
            f"{label} holds no model.safetensors.",
            remedy="Give a base with safetensors weights: --base-weights FOLDER_OR_REPO",
        )
    return JoinedStore(stores)
