"""The values everything else works on: one module's factors, and an adapter that reads them on demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hub_merge.errors import AdapterFormatError
from hub_merge.findings import Finding
from hub_merge.frontmatter import LicenseDetails

if TYPE_CHECKING:
    from hub_merge.publish import Published

__all__ = [
    "Adapter",
    "Array",
    "ExtraKind",
    "ExtraSpec",
    "FileDigest",
    "LoraFactors",
    "ModuleKind",
    "ModuleSpec",
    "Origin",
    "Tensor",
    "unique_names",
]

Array: TypeAlias = NDArray[np.floating[Any]]
Tensor: TypeAlias = NDArray[Any]
ModuleKind: TypeAlias = Literal["linear", "embedding", "conv", "expert"]
ExtraKind: TypeAlias = Literal["weights", "bias", "tokens"]


@dataclass(frozen=True, slots=True, eq=False)
class LoraFactors:
    """The low-rank update of one module: ``delta = scaling * B @ A``.

    Attributes:
        A: Shape ``(rank, in)``; the input side. Any floating dtype.
        B: Shape ``(out, rank)``; the output side.
        scaling: Multiplier of the product, dimensionless.

    Raises:
        AdapterFormatError: The shapes do not belong together.
    """

    A: Array
    B: Array
    scaling: float = 1.0

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.B.ndim != 2 or self.A.shape[0] != self.B.shape[1]:
            raise AdapterFormatError(
                f"Factors A {self.A.shape} and B {self.B.shape} do not form a product B @ A.",
                remedy="A must be (rank, in) and B (out, rank).",
            )

    @classmethod
    def empty(cls, shape: tuple[int, int]) -> LoraFactors:
        """Return rank-0 factors of a module of ``shape = (out, in)``: the delta is zero."""
        out_features, in_features = shape
        return cls(np.zeros((0, in_features), np.float32), np.zeros((out_features, 0), np.float32))

    @property
    def rank(self) -> int:
        """Number of rank-one pieces."""
        return int(self.A.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """Shape ``(out, in)`` of the delta."""
        return self.B.shape[0], self.A.shape[1]

    def astype(self, dtype: type[np.floating[Any]]) -> LoraFactors:
        """Return the factors in ``dtype``."""
        return LoraFactors(self.A.astype(dtype, copy=False), self.B.astype(dtype, copy=False), self.scaling)

    def delta(self) -> NDArray[np.float64]:
        """Return the dense delta, float64 ``(out, in)``. For tests and small modules; merging never needs it."""
        return self.scaling * (self.B.astype(np.float64) @ self.A.astype(np.float64))


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """What the headers and the config say of one adapted module, without its numbers.

    Attributes:
        name: Dotted name inside the base model, with the component before it where there is one.
        kind: ``linear`` (also GPT-2's Conv1D), ``embedding``, ``conv``, or ``expert`` (one of a parameter that holds
            several).
        shape: ``(out, in)`` of the delta; ``(dim, vocabulary)`` for an embedding, ``(out, in * kernel size)`` for a
            convolution, whose A is stored flattened: ``(rank, in, *kernel)`` as ``(rank, in * kernel size)``.
        rank: Rank of the stored factors.
        scaling: Effective multiplier of ``B @ A``.
        dtype: Name of the stored dtype, the wider one if A and B differ.
        kernel: Kernel of a convolution, such as ``(3, 3)``; empty for other kinds.
        component: Model of a pipeline that the module belongs to, such as ``unet``; empty for a model of its own.
    """

    name: str
    kind: ModuleKind
    shape: tuple[int, int]
    rank: int
    scaling: float
    dtype: str
    kernel: tuple[int, ...] = ()
    component: str = ""

    @property
    def local_name(self) -> str:
        """Name inside its component."""
        return self.name.removeprefix(f"{self.component}.") if self.component else self.name


@dataclass(frozen=True, slots=True)
class ExtraSpec:
    """A trained tensor beside the factors, which takes the place of one of the base.

    Attributes:
        name: Dotted name of the parameter inside the base model.
        kind: ``weights`` (of a module that is saved whole, such as a head), ``bias``, or ``tokens`` (rows of an
            embedding).
        module: The module that is saved whole, or that has the bias or the rows.
        shape: Its shape.
        dtype: Name of the stored dtype.
        rows: For ``tokens``, the token of each row.
    """

    name: str
    kind: ExtraKind
    module: str
    shape: tuple[int, ...]
    dtype: str
    rows: tuple[int, ...] = ()


def _no_extra(name: str) -> Tensor:
    raise KeyError(name)


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Identity of one file: its name inside the adapter, sha256 and size in bytes."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an adapter came from, as far as it may be told to others.

    Attributes:
        repo_id: Canonical Hub id, ``None`` for a local folder.
        revision: What was asked for (a branch, tag or commit).
        commit: The commit it resolved to, 40 hex digits.
        subfolder: Folder inside the repository, empty for the root.
        license: Licence identifier that the repository states, if any.
        license_details: Where it states it, and its licence files.
        gated: Whether access has to be requested.
        private: Whether the repository is private.
        folder: Local folder that holds the files; never written to any output.
        file: Name of the one file of the folder that was asked for; empty if the folder says enough.
        files: Names of the files in ``folder`` that it was read from.
    """

    repo_id: str | None = None
    revision: str | None = None
    commit: str | None = None
    subfolder: str = ""
    license: str | None = None
    license_details: LicenseDetails = field(default_factory=LicenseDetails)
    gated: bool = False
    private: bool = False
    folder: Path | None = None
    file: str = ""
    files: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Adapter:
    """A LoRA adapter: a name, a base model, and factors by module that are read when asked for.

    Attributes:
        name: Short name for tables and messages.
        modules: Specs by module name, in a stable order.
        base_model: Base model as the adapter states it (a Hub id, or something less useful).
        base_revision: Revision of the base that the adapter states.
        task_type: PEFT task type, such as ``CAUSAL_LM``.
        target_modules: Names that select exactly ``modules`` in the base; suffixes where they are safe.
        target_parameters: Names of parameters that hold experts, if ``modules`` has any.
        fan_in_fan_out: Whether the adapted layers keep weights as ``(in, out)`` (GPT-2's Conv1D).
        findings: What reading it brought to light.
        format: Format of its files: ``peft``, ``kohya``, ``diffusers``, ``mlx`` or ``gguf``.
        has_values: Whether its tensors can be read; ``False`` when only headers were fetched.
        added_tokens: Tokens beyond the base vocabulary, by id, as far as the files tell.
        vocabulary: Number of tokens that embeddings or head have rows for, as far as the files tell.
        extras: Trained tensors beside the factors, by name.
        load_extra: Reads one of them.
        load_magnitude: Reads the DoRA magnitudes of a module, ``(out,)``; ``None`` if it is no DoRA adapter.
        converted: How it was made plain, as data for the record; ``None`` if it was read as it is.
        origin: Where it came from.
    """

    name: str
    modules: Mapping[str, ModuleSpec]
    load: Callable[[str], LoraFactors] = field(repr=False)
    base_model: str | None = None
    base_revision: str | None = None
    task_type: str | None = None
    target_modules: tuple[str, ...] = ()
    target_parameters: tuple[str, ...] = ()
    fan_in_fan_out: bool = False
    findings: tuple[Finding, ...] = ()
    format: str = "peft"
    has_values: bool = True
    added_tokens: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    vocabulary: int | None = None
    extras: Mapping[str, ExtraSpec] = field(default_factory=lambda: MappingProxyType({}))
    load_extra: Callable[[str], Tensor] = field(default=_no_extra, repr=False)
    load_magnitude: Callable[[str], Array] | None = field(default=None, repr=False)
    converted: Mapping[str, Any] | None = None
    origin: Origin = field(default_factory=Origin)

    @classmethod
    def from_pretrained(
        cls,
        repo_or_folder: str | Path,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        allow_pickle: bool = False,
    ) -> Adapter:
        """Open an adapter of the Hub or of a local folder.

        A Hub adapter is pinned to a commit and its files are downloaded; tensors are read one module at a time.

        Args:
            repo_or_folder: ``owner/name``, ``owner/name@revision:subfolder``, ``hf://…``, a folder or a file.
            revision: Branch, tag or commit.
            subfolder: Folder inside the repository.
            token: Hub token; ``None`` takes the stored login, ``False`` none.
            local_files_only: Never use the network.
            allow_pickle: Also open weights that are only there as a pickle of torch, by a reader that runs none of it.

        Raises:
            AdapterNotFound: There is no such adapter, or no right to read it.
            AdapterFormatError: Its files are damaged.
            UnsupportedAdapter: It is not a LoRA adapter, or in no format that is known.
            HubUnavailable: The Hub did not answer.
        """
        from hub_merge.hub import Hub
        from hub_merge.sources import open_adapter

        hub = Hub(token=token, offline=local_files_only, allow_pickle=allow_pickle)
        return open_adapter(repo_or_folder, revision=revision, subfolder=subfolder, hub=hub)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any], config: Mapping[str, Any], *, name: str) -> Adapter:
        """Build an adapter from PEFT's state dict (torch tensors or arrays) and its config, without any file."""
        from hub_merge.formats.peft import adapter_from_tensors
        from hub_merge.formats.tensors import ArrayStore

        return adapter_from_tensors(dict(config), ArrayStore(state_dict), name=name)

    def factors(self, module: str, shape: tuple[int, int] | None = None) -> LoraFactors:
        """Return the factors of ``module``; rank-0 factors of ``shape`` if this adapter lacks it.

        Raises:
            KeyError: The adapter lacks ``module`` and no ``shape`` was given.
        """
        if module in self.modules:
            return self.load(module)
        if shape is None:
            raise KeyError(module)
        return LoraFactors.empty(shape)

    def rounded(self, module: str, dtype: np.dtype[Any]) -> LoraFactors:
        """Return the factors of ``module`` as a file holds them: with scaling 1, in ``dtype``."""
        factors = self.factors(module)
        B = factors.B if factors.scaling == 1.0 else np.multiply(factors.B, factors.scaling, dtype=np.float64)
        return LoraFactors(factors.A.astype(dtype, copy=False), B.astype(dtype, copy=False))

    def renamed(self, name: str) -> Adapter:
        """Return the same adapter under another name, in its findings too."""
        return replace(self, name=name, findings=tuple(replace(found, adapter=name) for found in self.findings))

    @property
    def rank(self) -> int:
        """Largest rank over the modules, 0 without any."""
        return max((spec.rank for spec in self.modules.values()), default=0)

    def save_pretrained(self, folder: str | Path, *, format: str = "peft", force: bool = False) -> Path:
        """Write this adapter to ``folder``, whole or not at all.

        Args:
            folder: Where to.
            format: ``peft`` for the portable profile of PEFT's format, or ``kohya``, ``diffusers`` or ``mlx``.
            force: Replace a composite that is there.

        Raises:
            OutputExists: ``folder`` is there already and ``force`` is not set.
            MergeError: The format cannot hold this adapter.
        """
        from hub_merge.pipeline import save

        return save(self, Path(folder), format=format, force=force)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
        accept_unknown_license: bool = False,
        token: str | bool | None = None,
    ) -> Published:
        """Write and prove the adapter in a temporary folder and publish it as one commit.

        Args:
            repo_id: ``owner/name``; created if it does not exist.
            private: Visibility of a new repository; private by default if a parent is gated or private.
            create_pr: Open a pull request instead.
            commit_message: Title of the commit.
            accept_unknown_license: Publish although the licence of a source is not known, or its terms are not.
            token: Hub token; ``None`` takes the stored login.

        Raises:
            PublishError: The licences do not allow it, the Hub refused, or the repository changed meanwhile.
        """
        from hub_merge.pipeline import push

        return push(
            self,
            repo_id,
            token=token,
            private=private,
            create_pr=create_pr,
            commit_message=commit_message,
            accept_unknown_license=accept_unknown_license,
        )


def unique_names(adapters: Sequence[Adapter]) -> list[Adapter]:
    """Return the adapters with names that tell them apart: ``math``, ``math-2``."""
    names = [adapter.name for adapter in adapters]
    for place, name in enumerate(names):
        if name in names[:place]:
            numbered = (f"{name}-{number}" for number in count(2))
            names[place] = next(free for free in numbered if free not in names)
    return [a if a.name == name else a.renamed(name) for a, name in zip(adapters, names, strict=True)]
