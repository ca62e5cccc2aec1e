"""Names of the files that make an adapter and a composite."""

__all__ = [
    "CARD_FILE",
    "COMPONENT_KEY",
    "CONFIG_FILE",
    "DIFFUSERS_FILE",
    "FILE_FORMATS",
    "INDEX_FILE",
    "KOHYA_FILE",
    "MLX_FILE",
    "PICTURE_FILE",
    "PUBLISHED_FILES",
    "RECIPE_FILE",
    "RECORD_FILE",
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
PICTURE_FILE = "orthogonality.png"

PUBLISHED_FILES = (
    *(CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, DIFFUSERS_FILE, KOHYA_FILE, MLX_FILE),
    *(RECORD_FILE, RECIPE_FILE, PICTURE_FILE),
)
"""The files of a composite's folder: what a push takes, and what a merge may replace."""
