"""Which format a file or folder has, judged by its content, and the adapter in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hub_merge.adapter import Adapter, Origin
from hub_merge.budgets import budget
from hub_merge.choice import Choice
from hub_merge.errors import AdapterFormatError, UnsupportedAdapter
from hub_merge.formats.diffusers import adapter_from_diffusers, is_diffusers
from hub_merge.formats.gguf import adapter_from_gguf
from hub_merge.formats.gguf_file import MAGIC, GgufStore
from hub_merge.formats.kohya import adapter_from_kohya, is_kohya
from hub_merge.formats.mlx import adapter_from_mlx, is_mlx, is_mlx_config
from hub_merge.formats.peft import MAX_CONFIG, contained, read_object
from hub_merge.formats.peft import adapter_from_headers as peft_from_headers
from hub_merge.formats.peft import open_folder as open_peft
from hub_merge.formats.strict_json import read_bounded
from hub_merge.formats.tensors import HeaderStore, SafetensorsStore, TensorStore, parse_header
from hub_merge.layout import CONFIG_FILE

__all__ = ["adapter_from_headers", "open_adapter_files"]


def open_adapter_files(
    folder: Path, chosen: Choice, *, name: str, origin: Origin, allow_pickle: bool = False
) -> Adapter:
    """Open the adapter that the ``chosen`` files of ``folder`` make; their weights are read when asked for.

    Args:
        folder: Folder of the files.
        chosen: Which of them.
        name: Short name.
        origin: Where it came from.
        allow_pickle: Also open PEFT's weights that are only there as a pickle.

    Raises:
        AdapterFormatError: A file is missing, damaged, or a link that leads out of the folder.
        BudgetExceeded: The weights are larger than a limit allows.
        UnsupportedAdapter: It is no LoRA adapter, or in no format that is known.
    """
    if chosen.is_peft:
        return open_peft(folder, name=name, origin=origin, allow_pickle=allow_pickle)
    path = contained(folder, chosen.file)
    budget().require_bytes(path.stat().st_size, name)
    with path.open("rb") as opened:
        start = opened.read(4)
    config = {}
    if chosen.has_config:
        config = read_object(read_bounded(contained(folder, CONFIG_FILE), most=MAX_CONFIG))
    if start == MAGIC:
        return adapter_from_gguf(GgufStore(path), name=name, origin=replace(origin, files=(chosen.file,)))
    return _adapter(config, _safetensors(path, start), chosen.file, name=name, origin=origin)


def _safetensors(path: Path, start: bytes) -> SafetensorsStore:
    """Open a safetensors file, or tell what the file is that is none: a header's length may look like a pickle too."""
    try:
        return SafetensorsStore(path)
    except AdapterFormatError as error:
        if start[:2] != b"PK" and start[:1] != b"\x80":
            raise
        raise UnsupportedAdapter(
            f"{path.name} is a pickle, which can run code when it is opened.",
            remedy="Only PEFT's adapter_model.bin beside its config can be read so, with --allow-pickle.",
        ) from error


def adapter_from_headers(
    config: bytes | None,
    headers: Mapping[str, bytes],
    sizes: Mapping[str, int],
    *,
    name: str,
    origin: Origin,
    tokens: Mapping[str, bytes] = MappingProxyType({}),
) -> Adapter:
    """Build an adapter from its config, if it has one, and the headers of its weights; its numbers cannot be read.

    Args:
        config: Content of ``adapter_config.json``.
        headers: First bytes of each weight file: length field and header.
        sizes: Size of each weight file in bytes.
        name: Short name.
        origin: Where it came from.
        tokens: Content of tokenizer files by name, which only PEFT's adapters have.
    """
    foreign = [file for file in headers if not file.startswith("adapter_model")]
    if config is not None and not foreign:
        return peft_from_headers(config, headers, sizes, name=name, origin=origin, tokens=tokens)
    ((file, head),) = headers.items()
    store = HeaderStore(parse_header(head, file, sizes[file]))
    return _adapter(read_object(config) if config else {}, store, file, name=name, origin=origin)


def _adapter(config: Mapping[str, Any], store: TensorStore, file: str, *, name: str, origin: Origin) -> Adapter:
    """Return the adapter that a safetensors file other than PEFT's holds."""
    if is_mlx_config(config) and is_mlx(store.infos):
        return adapter_from_mlx(config, store, name=name, origin=replace(origin, files=(CONFIG_FILE, file)))
    origin = replace(origin, files=(file,))
    if is_kohya(store.infos):
        return adapter_from_kohya(store, name=name, origin=origin)
    if is_diffusers(store.infos):
        return adapter_from_diffusers(store, name=name, origin=origin)
    raise _unknown(file, store)


def _unknown(file: str, store: TensorStore) -> UnsupportedAdapter | AdapterFormatError:
    first = next(iter(store.infos), "")
    if is_mlx(store.infos) or any(".lora_A" in key for key in store.infos):
        return AdapterFormatError(
            f"{file} holds LoRA factors ({first}), but the {CONFIG_FILE} that states their scaling is not beside it.",
            remedy=f"Get {CONFIG_FILE} from where the file came from.",
        )
    return UnsupportedAdapter(
        f"{file} holds {len(store.infos)} tensors ({first[:80] or 'none'}), and no LoRA layers of a known format.",
        remedy="PEFT, kohya, LyCORIS, diffusers, MLX-LM and llama.cpp adapters are known.",
    )
