"""PEFT's LoRA format: ``adapter_config.json`` and ``adapter_model.safetensors``.

Reading resolves the effective scaling of every module once (alpha/r or alpha/sqrt(r), rank and alpha patterns by PEFT's
own matching rule, checked against the tensors) and turns whatever is not ``scaling * B @ A`` into findings.
Writing uses the *portable profile*: one rank, ``lora_alpha == r``, no patterns, no variants, a plain list of targets,
so that loaders which know only one scale for all modules see the same delta as PEFT. The profile *peft* gives each
module a rank of its own, named by ``rank_pattern`` and ``alpha_pattern``, which only PEFT and transformers read.
"""

from hub_merge.formats.peft.config import MAX_CONFIG, Scalings, parse_config, read_object
from hub_merge.formats.peft.extras import EXTRAS_FLAG, extra_fields, extra_key
from hub_merge.formats.peft.files import adapter_files, contained, weight_files
from hub_merge.formats.peft.reading import adapter_from_headers, adapter_from_tensors, open_folder, read_tokens
from hub_merge.formats.peft.targets import covered
from hub_merge.formats.peft.writing import only_component, rank_fields, stored_units, write_folder

__all__ = [
    "EXTRAS_FLAG",
    "MAX_CONFIG",
    "Scalings",
    "adapter_files",
    "adapter_from_headers",
    "adapter_from_tensors",
    "contained",
    "covered",
    "extra_fields",
    "extra_key",
    "only_component",
    "open_folder",
    "parse_config",
    "rank_fields",
    "read_object",
    "read_tokens",
    "stored_units",
    "weight_files",
    "write_folder",
]
