"""PEFT's LoRA format: ``adapter_config.json`` and ``adapter_model.safetensors``.

Reading resolves the effective scaling of every module once (alpha/r or alpha/sqrt(r), rank and alpha patterns by PEFT's
own matching rule, checked against the tensors) and turns whatever is not ``scaling * B @ A`` into findings.
Writing uses the *portable profile*: one rank, ``lora_alpha == r``, no patterns, no variants, a plain list of targets,
so that loaders which know only one scale for all modules see the same delta as PEFT.
"""

from hub_merge.formats.peft.config import Scalings, parse_config
from hub_merge.formats.peft.extras import EXTRAS_FLAG, extra_fields, extra_key
from hub_merge.formats.peft.files import adapter_files, weight_files
from hub_merge.formats.peft.reading import adapter_from_headers, adapter_from_tensors, open_folder
from hub_merge.formats.peft.targets import covered
from hub_merge.formats.peft.writing import stored_units, write_portable

__all__ = [
    "EXTRAS_FLAG",
    "Scalings",
    "adapter_files",
    "adapter_from_headers",
    "adapter_from_tensors",
    "covered",
    "extra_fields",
    "extra_key",
    "open_folder",
    "parse_config",
    "stored_units",
    "weight_files",
    "write_portable",
]
