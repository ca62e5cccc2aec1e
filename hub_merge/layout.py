"""Names of the files that make an adapter and a composite."""

__all__ = [
    "CARD_FILE",
    "COMPONENT_KEY",
    "CONFIG_FILE",
    "DIFFUSERS_FILE",
    "FILE_FORMATS",
    "INDEX_FILE",
    "KOHYA_FILE",
    "LICENSES_FILE",
    "LICENSES_FOLDER",
    "MIXTURES_FILE",
    "MLX_FILE",
    "NOTICE_FILE",
    "OWN_CONTENT",
    "PICTURE_FILE",
    "PUBLISHED_FILES",
    "RECIPE_FILE",
    "RECORD_FILE",
    "TERMS_FILES",
    "TOKENIZER_FILES",
    "WEIGHTS_FILE",
]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
INDEX_FILE = "adapter_model.safetensors.index.json"
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
KOHYA_FILE = "lora.safetensors"
MLX_FILE = "adapters.safetensors"
"""Names that the other formats' own programs write or look for; kohya's have none."""

FILE_FORMATS = ("peft", "kohya", "diffusers", "mlx")
"""Formats that can be written."""

COMPONENT_KEY = "hub_merge.component"
"""Key in the header of the weights, under which a file for one model of a pipeline names that model."""

TOKENIZER_FILES = ("tokenizer_config.json", "added_tokens.json")
"""Files that tell which tokens an adapter's tokenizer adds to or marks in the vocabulary."""

RECORD_FILE = "hub_merge.json"
"""The record, by which a folder or repository is known to be made by this package."""
RECIPE_FILE = "recipe.yaml"
CARD_FILE = "README.md"
MIXTURES_FILE = "mixtures.safetensors"
"""What a tuned merge is made with, beside its parents."""
PICTURE_FILE = "orthogonality.png"

NOTICE_FILE = "NOTICE"
"""The lines that licences of the sources prescribe."""
LICENSES_FILE = "LICENSES.md"
"""Every source with its licence, where no single identifier covers them all."""
LICENSES_FOLDER = "LICENSES"
"""Licence texts of the sources, one folder a source."""
TERMS_FILES = ("LICEN[SC]E*", "licen[sc]e*", "Licen[sc]e*", "COPYING*", "NOTICE*", "Notice*", "USE_POLICY*")
"""Names of files that tell the terms of a repository, as patterns."""

PUBLISHED_FILES = (
    *(CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, DIFFUSERS_FILE, KOHYA_FILE, MLX_FILE),
    *(RECORD_FILE, RECIPE_FILE, MIXTURES_FILE, PICTURE_FILE, NOTICE_FILE, LICENSES_FILE),
)
"""The files of a composite's folder that a push takes, beside the licence texts that its record names."""
OWN_CONTENT = (*PUBLISHED_FILES, f"{LICENSES_FOLDER}/")
"""What a merge may replace."""
