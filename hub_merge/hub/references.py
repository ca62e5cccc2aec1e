"""How an adapter of the Hub is named: parsing, checking and writing references."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hub_merge.errors import RecipeError
from hub_merge.hub.failures import redact

__all__ = ["Reference", "is_model_id", "parse_reference"]

HOW_TO_NAME = (
    "Write owner/name, owner/name@revision:subfolder, or paste the address of its page; "
    "a local folder starts with ./ or /."
)
FORBIDDEN_IN_REVISION = re.compile(r"\.\.|[\\~^:?*\[\s\x00-\x1f\x7f]|^[-/]|/$|^$")
ADDRESS = re.compile(r"hf://|https?://|(huggingface\.co|hf\.co)/", re.IGNORECASE)
WEIGHT_SUFFIXES = (".safetensors", ".gguf")
FILE_SUFFIXES = (*WEIGHT_SUFFIXES, ".json", ".md", ".bin", ".yaml")


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an adapter is on the Hub: ``owner/name[@revision][:subfolder]``.

    Attributes:
        repo_id: ``owner/name``, as it was asked for.
        revision: Branch, tag or commit; ``None`` for the default branch.
        subfolder: Folder inside the repository, empty for the root.
        file: Name of the one file in it that is meant, empty if the folder is to say.

    Raises:
        RecipeError: A part is malformed.
    """

    repo_id: str
    revision: str | None = None
    subfolder: str = ""
    file: str = ""

    def __post_init__(self) -> None:
        if "/" not in self.repo_id or not is_model_id(self.repo_id):
            raise RecipeError(f"{redact(self.repo_id)!r} is not a repository of the Hub.", remedy=HOW_TO_NAME)
        if self.revision is not None and FORBIDDEN_IN_REVISION.search(self.revision):
            raise RecipeError(
                f"{self.revision!r} cannot be a revision of {self.repo_id}.",
                remedy="Give a branch, a tag or a commit, such as main or v1.0.",
            )
        if not _is_inside(self.place):
            raise RecipeError(
                f"{self.place!r} cannot be a folder inside {self.repo_id}.",
                remedy="Give a relative path with forward slashes and without '..', such as checkpoints/last.",
            )

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        place = f":{self.place}" if self.place else ""
        return f"{self.repo_id}{revision}{place}"

    @property
    def place(self) -> str:
        """Path of what is meant inside the repository: the folder, or the file where one is named."""
        return f"{self.subfolder}/{self.file}".lstrip("/") if self.file else self.subfolder


def parse_reference(text: str, *, endpoint: str | None = None) -> Reference:
    """Return what ``text`` refers to on the Hub.

    Understands ``owner/name[@revision][:subfolder]``, with a weight file in place of the folder too,
    ``hf://owner/name[@revision][/subfolder]`` and addresses of repositories, folders and files as a browser shows them.

    Args:
        text: The reference.
        endpoint: Address of another Hub whose pages are understood too; ``None`` takes ``HF_ENDPOINT``.

    Raises:
        RecipeError: ``text`` names no model repository.
    """
    text = text.strip()
    if ADDRESS.match(text):
        return _parse_address(text, endpoint)
    location, _, subfolder = text.partition(":")
    repo_id, at, revision = location.partition("@")
    return Reference(repo_id, revision if at else None, *_folder_and_file(subfolder.rstrip("/")))


def _folder_and_file(path: str) -> tuple[str, str]:
    """Return the folder that ``path`` names, and the file where it ends in one that may stand for itself.

    PEFT's files do not: they belong to their folder.
    """
    folder, slash, name = path.rpartition("/")
    if not name.endswith(FILE_SUFFIXES) or (slash and not folder):
        return path, ""
    return folder, name if name.endswith(WEIGHT_SUFFIXES) and not name.startswith("adapter_model") else ""


def is_model_id(text: str) -> bool:
    """Tell whether ``text`` can be the id of a model: ``owner/name``, or one of the old names without an owner."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def _parse_address(text: str, endpoint: str | None) -> Reference:
    from huggingface_hub import constants, parse_hf_uri
    from huggingface_hub.errors import HfUriError

    try:
        uri = parse_hf_uri(text, endpoint=endpoint or constants.ENDPOINT)
    except HfUriError as error:
        raise RecipeError(f"{redact(text)!r} is not the address of a Hub repository.", remedy=HOW_TO_NAME) from error
    if uri.type != "model":
        raise RecipeError(
            f"{redact(text)!r} is a {uri.type}, and adapters are in model repositories.", remedy=HOW_TO_NAME
        )
    return Reference(uri.id, uri.revision, *_folder_and_file(uri.path_in_repo.rstrip("/")))


def _is_inside(subfolder: str) -> bool:
    if not subfolder:
        return True
    parts = subfolder.split("/")
    return subfolder.isprintable() and "\\" not in subfolder and not {"", ".", ".."}.intersection(parts)
