"""Which of the files in a folder make an adapter, by their names; what they are is judged by their content later."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from hub_merge.errors import AdapterFormatError, AdapterNotFound, UnsupportedAdapter
from hub_merge.layout import CONFIG_FILE, DIFFUSERS_FILE, INDEX_FILE, KOHYA_FILE, MIXTURES_FILE, MLX_FILE, WEIGHTS_FILE

__all__ = ["FULL_MODELS", "PICKLED_WEIGHTS", "PICKLES", "Choice", "choose", "peft_weights", "pickled"]

FULL_MODELS = ("model*.safetensors", "diffusion_pytorch_model*.safetensors", "consolidated*.safetensors")
"""Weights of a full model, whatever is beside them."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
PICKLED_WEIGHTS = "adapter_model.bin"
PEFT_WEIGHTS = ("adapter_model*.safetensors", PICKLED_WEIGHTS)
SHARD = re.compile(r"adapter_model-[0-9]{5}-of-([0-9]{5})\.safetensors")
USUAL = (DIFFUSERS_FILE, KOHYA_FILE, MLX_FILE)
MOST_NAMED = 8


@dataclass(frozen=True, slots=True)
class Choice:
    """The files that make an adapter: PEFT's own, or one file of another format, with a config beside it if any.

    Attributes:
        is_peft: Whether it is PEFT's folder, as far as there is an adapter at all.
        file: Name of the weights of another format.
        has_config: Whether an ``adapter_config.json`` is beside them.
    """

    is_peft: bool
    file: str = ""
    has_config: bool = False

    def name(self, folder: str) -> str:
        """Return a short name for the adapter: the file's, unless all of its format are called so."""
        return folder if self.is_peft or self.file in USUAL else self.file.rpartition(".")[0]


def choose(names: Collection[str], file: str = "", refer: Callable[[str], str] = str) -> Choice:
    """Return which of the files in a folder make the adapter.

    A folder with PEFT's config and weights is PEFT's; beside a config without such weights mlx-lm's file counts; else
    the one safetensors or GGUF file that is no full model.

    Args:
        names: Names of the files in the folder.
        file: The one that was asked for, empty if the folder is to say.
        refer: Returns how the user can name one of the files.

    Raises:
        AdapterFormatError: Several could be meant.
        AdapterNotFound: ``file`` is not there.
    """
    has_config = CONFIG_FILE in names
    if file and file not in names:
        raise AdapterNotFound(f"There is no file {file}.", remedy="Check its name.")
    if file == CONFIG_FILE or file.startswith("adapter_model"):
        return Choice(is_peft=True)
    peft = INDEX_FILE in names or any(fnmatchcase(name, pattern) for pattern in PEFT_WEIGHTS for name in names)
    found = [file] if file else [] if has_config and peft else _candidates(names)
    if has_config and MLX_FILE in found:
        found = [MLX_FILE]
    if len(found) > 1:
        named = ", ".join(refer(name) for name in found[:MOST_NAMED])
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        raise AdapterFormatError(
            f"{len(found)} files could be meant, and no {CONFIG_FILE} says which.", remedy=f"Name one: {named}{more}."
        )
    return Choice(False, found[0], has_config) if found else Choice(is_peft=True)


def _candidates(names: Collection[str]) -> list[str]:
    return sorted(
        name
        for name in names
        if name.endswith((".safetensors", ".gguf"))
        and name != MIXTURES_FILE
        and not any(fnmatchcase(name, pattern) for pattern in (*FULL_MODELS, *PEFT_WEIGHTS))
    )


def peft_weights(names: Collection[str], listed: Sequence[str] = (), *, allow_pickle: bool = False) -> tuple[str, ...]:
    """Return the names of what holds the tensors of PEFT's adapter: one file, all shards, or nothing.

    Args:
        names: Names of the files in the folder; not every shard need be among them.
        listed: The files that the index of shards names.
        allow_pickle: Take ``adapter_model.bin`` where there is no safetensors file.
    """
    if WEIGHTS_FILE in names:
        return (WEIGHTS_FILE,)
    if shards := _all_shards(listed or names) or listed:
        return tuple(shards)
    return (PICKLED_WEIGHTS,) if allow_pickle and PICKLED_WEIGHTS in names else ()


def _all_shards(names: Iterable[str]) -> list[str]:
    """Return every name that the numbered shards among ``names`` must have together; none if none is numbered."""
    count = next((int(found[1]) for name in sorted(names) if (found := SHARD.fullmatch(name))), 0)
    return [f"adapter_model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def pickled(names: Iterable[str]) -> UnsupportedAdapter | None:
    """Return what is to be said of weights that are only there as pickles, ``None`` if there are none."""
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if not pickles:
        return None
    named = ", ".join(pickles[:MOST_NAMED])
    way = f"Read {PICKLED_WEIGHTS} with --allow-pickle (allow_pickle=True), which runs none of it, or ask"
    return UnsupportedAdapter(
        f"The weights are there as a pickle only ({named}), which can run any code when it is opened.",
        remedy=f"{way if PICKLED_WEIGHTS in pickles else 'Ask'} its author for safetensors: "
        "`model.save_pretrained(folder, safe_serialization=True)`.",
    )
