"""What was done to make a fused model; written as ``hub_merge.json`` beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hub_merge.adapter import Origin
from hub_merge.errors import AdapterFormatError, RecipeError
from hub_merge.formats.peft import contained
from hub_merge.formats.strict_json import read_bounded
from hub_merge.frontmatter import LicenseDetails
from hub_merge.layout import RECORD_FILE
from hub_merge.licenses import Licensed, LicenseVerdict, united
from hub_merge.provenance import MAX_RECORD
from hub_merge.recipe import SCHEMA_VERSION, Parent, require_schema

__all__ = ["BaseModel", "FusionRecord", "is_fused", "read_fusion"]

KIND = "fused model"
"""What tells this record from that of a composite."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The full model that an adapter was folded into.

    Attributes:
        name: Its Hub id, or the name of its folder.
        model: Reference that finds it again: ``owner/name@commit``, or ``./name`` for a local folder.
        repo_id: Hub id, ``None`` for a local folder.
        commit: Commit of the repository, 40 hex digits.
        license: Licence it states.
        gated: Whether the repository asks for access.
        private: Whether the repository is private.
        files: ``{name, sha256, size}`` of each file that was used.
        license_details: Where the licence is stated, and the licence files.
    """

    name: str
    model: str
    repo_id: str | None
    commit: str | None
    license: str | None
    gated: bool
    private: bool
    files: tuple[Mapping[str, Any], ...]
    license_details: LicenseDetails = field(default_factory=LicenseDetails)


@dataclass(frozen=True, slots=True)
class FusionRecord:
    """Enough to fold again and to judge the result.

    Attributes:
        base: The model folded into.
        adapter: The adapter that was folded.
        parents: The adapters it was merged from, if its own record tells.
        recipe: The recipe of that merge.
        output: ``{dtypes, tensors, untied, files}`` of the fused model.
        cautions: What its user should know, as sentences.
        proof: What re-reading it showed (``FusionProof.to_dict``).
        versions: Versions of this package and of the libraries that shaped the bytes.
    """

    base: BaseModel
    adapter: Parent
    parents: tuple[Parent, ...]
    recipe: Mapping[str, Any] | None
    output: Mapping[str, Any]
    cautions: tuple[str, ...]
    proof: Mapping[str, Any]
    versions: Mapping[str, str]

    @property
    def license(self) -> LicenseVerdict:
        """What the licences of base and adapters come to together."""
        sources = self.parents or (self.adapter,)
        return united(_licensed(self.base), [_licensed(source) for source in sources])

    @property
    def sources(self) -> tuple[Parent | Origin, ...]:
        """All it was made from."""
        base = Origin(
            repo_id=self.base.repo_id, commit=self.base.commit, gated=self.base.gated, private=self.base.private
        )
        return base, self.adapter, *self.parents

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return {"schema_version": SCHEMA_VERSION, "kind": KIND, **asdict(self)}

    def to_json(self) -> str:
        """Return the record as JSON; the same record gives the same bytes."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> FusionRecord:
        """Read a record.

        Raises:
            RecipeError: The text is no record of a fused model, or was written by a newer version.
        """
        try:
            content = json.loads(text)
            require_schema(content.pop("schema_version"))
            if content.pop("kind") != KIND:
                raise ValueError("another kind")
            base = content.pop("base")
            return cls(
                base=BaseModel(**{**base, "files": tuple(base["files"]), "license_details": _details(base)}),
                adapter=_parent(content.pop("adapter")),
                parents=tuple(map(_parent, content.pop("parents"))),
                cautions=tuple(content.pop("cautions")),
                **content,
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RecipeError(
                f"{RECORD_FILE} is not the record of a fused model: {error!r}.", remedy="Fuse again to write a new one."
            ) from error


def _parent(content: Mapping[str, Any]) -> Parent:
    read = {"files": tuple(content["files"]), "scalings": tuple(content["scalings"])}
    return Parent(**{**content, **read, "license_details": _details(content)})


def _licensed(source: BaseModel | Parent) -> Licensed:
    return Licensed(source.repo_id or source.name, source.license, source.license_details)


def _details(content: Mapping[str, Any]) -> LicenseDetails:
    return LicenseDetails.from_dict(content["license_details"])


def is_fused(folder: Path) -> bool:
    """Whether the folder holds a model made by ``fuse``."""
    try:
        content = json.loads(_read(folder))
    except (OSError, ValueError, RecursionError, AdapterFormatError):
        return False
    return isinstance(content, dict) and content.get("kind") == KIND


def read_fusion(folder: Path) -> FusionRecord:
    """Return the record of the fused model in ``folder``.

    Raises:
        RecipeError: It is damaged, or of a newer version.
        AdapterFormatError: It is too long, or a link that leads out of the folder.
    """
    return FusionRecord.from_json(_read(folder))


def _read(folder: Path) -> bytes:
    return read_bounded(contained(folder, RECORD_FILE), most=MAX_RECORD)
