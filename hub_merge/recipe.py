"""What was asked (``Recipe``) and what was done (``MergeRecord``), both plain data that survive a round trip.

A recipe is YAML whose field names follow mergekit's configuration where they mean the same::

    merge_method: lego
    base_model: HuggingFaceTB/SmolLM2-135M-Instruct
    models:
      - model: someone/math-lora@1f0c…          # owner/name[@revision][:subfolder], or a folder beside the recipe
        parameters: {weight: 1.0}
      - model: ./medicine
        parameters:
          weight:                               # by module: the first filter found in the module's name counts
            - {filter: self_attn.v_proj, value: 0.5}
            - {value: 1.0}
    parameters: {rank: 8, clustering: kmeans}  # or {rank: auto, energy: 0.99}
    dtype: float32
    seed: 0
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hub_merge.errors import RecipeError
from hub_merge.findings import REFUSE
from hub_merge.frontmatter import LicenseDetails, require_flat
from hub_merge.measurements import Measurement
from hub_merge.ranks import PROFILES, Profile, Rank
from hub_merge.weights import EVERY_MODULE, Weight, checked_weight

__all__ = [
    "SCHEMA_VERSION",
    "STATED",
    "Conversion",
    "MergeRecord",
    "Parent",
    "Recipe",
    "Source",
    "require_schema",
]

SCHEMA_VERSION = 1
"""Version of ``hub_merge.json``; raised when an old reader would misunderstand a new file."""

COMMIT = re.compile("[0-9a-f]{40}")
FIELDS = "merge_method base_model models parameters profile dtype seed allow extras mixtures".split()
"""What a recipe may say at its top."""


MOST_ALIASES = 16
"""Aliases of a recipe: each may hold all those before it many times, which no memory has room for."""

STATED = "base"
"""In place of a reference to base weights: those of the base that the adapter states."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """How an adapter that is no plain product is made one.

    Attributes:
        initial: The adapter as it was before training, whose product is to be subtracted (PiSSA and its like).
        base_weights: Where the weights of the base are, for DoRA; ``base`` for the base that the adapter states.
        rank: Rank of the factors of a DoRA adapter; ``None`` for the default.
    """

    initial: str | None = None
    base_weights: str | None = None
    rank: int | None = None

    def references(self) -> list[str]:
        """Return the references in it."""
        return [text for text in (self.initial, self.base_weights) if text]


@dataclass(frozen=True, slots=True)
class Source:
    """One adapter of a recipe: a reference, its weight, and how it is made plain if it has to be."""

    model: str
    weight: Weight = 1.0
    convert: Conversion | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that determines a merge.

    Attributes:
        merge_method: Registered name of the method.
        models: The adapters with their weights, in order.
        base_model: Base model, asserted by the user where the adapters do not prove it.
        rank: Rank asked for, ``auto`` for the smallest that keeps ``energy``; ``None`` leaves it to the method.
        energy: Share of the squared norm that ``auto`` keeps, (0, 1]; ``None`` for 0.99.
        profile: ``portable`` for one rank in all modules, ``peft`` for a rank in each.
        options: Further options of the method.
        dtype: Dtype of the written factors; ``None`` takes the widest of the sources.
        seed: Seed of every random choice.
        allow: Codes of the findings that the user accepted.
        extras: What becomes of tensors beside the factors: ``refuse``, ``keep:NAME``, ``average`` or ``drop``.
        mixtures: sha256 of the file of mixtures beside the recipe, for a method that takes some.
    """

    merge_method: str
    models: tuple[Source, ...]
    base_model: str | None = None
    rank: Rank | None = None
    energy: float | None = None
    profile: Profile = "portable"
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    seed: int = 0
    allow: tuple[str, ...] = ()
    extras: str = REFUSE
    mixtures: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe in the shape of its YAML."""
        size = {"rank": self.rank, "energy": self.energy}
        parameters = {**{name: value for name, value in size.items() if value is not None}, **self.options}
        asked: dict[str, Any] = {
            "merge_method": self.merge_method,
            "base_model": self.base_model,
            "models": [
                {
                    "model": source.model,
                    "parameters": {"weight": _weight_to_yaml(source.weight)},
                    **({"convert": _stated(source.convert)} if source.convert else {}),
                }
                for source in self.models
            ],
            "parameters": parameters,
            "profile": None if self.profile == "portable" else self.profile,
            "dtype": self.dtype,
            "seed": self.seed,
            "allow": list(self.allow),
            "extras": None if self.extras == REFUSE else self.extras,
            "mixtures": self.mixtures,
        }
        return {key: value for key, value in asked.items() if value not in (None, {}, [])}

    def to_yaml(self) -> str:
        """Return the recipe as YAML that ``from_yaml`` reads back."""
        import yaml

        text: str = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
        return text

    @classmethod
    def from_yaml(cls, text: str) -> Recipe:
        """Read a recipe.

        Raises:
            RecipeError: The text is not YAML, or a field is missing, unknown or of the wrong kind.
        """
        import yaml

        try:
            require_flat(text)
            aliases = (event for event in yaml.parse(text) if isinstance(event, yaml.AliasEvent))
            if text.count("*") > MOST_ALIASES and len(list(aliases)) > MOST_ALIASES:
                raise ValueError(f"it has more than {MOST_ALIASES} aliases")
            content = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise RecipeError(f"The recipe is not valid YAML: {error}", remedy="Mend the line named.") from error
        return cls.from_dict(content)

    @classmethod
    def from_dict(cls, content: object) -> Recipe:
        """Read a recipe from plain data; see ``from_yaml``."""
        if not isinstance(content, Mapping):
            raise RecipeError("The recipe is not a mapping.", remedy="Start it with 'merge_method: sum'.")
        _refuse_unknown(content, FIELDS, "The recipe")
        models = _list(content.get("models"), "models")
        if not models:
            raise RecipeError("The recipe lists no models.", remedy="Add 'models:' with one '- model: …' an adapter.")
        options = dict(_mapping(content.get("parameters"), "parameters"))
        rank, energy = options.pop("rank", None), options.pop("energy", None)
        return cls(
            merge_method=_text(content.get("merge_method", "sum"), "merge_method"),
            models=tuple(_source(entry) for entry in models),
            base_model=None if content.get("base_model") is None else _text(content["base_model"], "base_model"),
            rank=rank if rank in (None, "auto") else _integer(rank, "rank", at_least=1),
            energy=None if energy is None else _share(energy, "energy"),
            profile=_profile(content.get("profile", "portable")),
            options=options,
            dtype=None if content.get("dtype") is None else _text(content["dtype"], "dtype"),
            seed=_integer(content.get("seed", 0), "seed", at_least=0),
            allow=tuple(_text(code, "allow") for code in _list(content.get("allow"), "allow")),
            extras=_text(content.get("extras", REFUSE), "extras"),
            mixtures=None if content.get("mixtures") is None else _text(content["mixtures"], "mixtures"),
        )


def _source(entry: object) -> Source:
    if isinstance(entry, str):
        return Source(entry)
    if not isinstance(entry, Mapping) or not isinstance(entry.get("model"), str):
        raise RecipeError(f"{entry!r} does not name a model.", remedy="Write '- model: owner/name'.")
    _refuse_unknown(entry, ("model", "parameters", "convert"), entry["model"])
    parameters = _mapping(entry.get("parameters"), "parameters")
    _refuse_unknown(parameters, ("weight",), f"parameters of {entry['model']}")
    weight = parameters.get("weight", 1.0)
    if isinstance(weight, Sequence) and not isinstance(weight, str):
        rules: dict[str, object] = {}
        for part, value in map(_rule, weight):
            rules.setdefault(part, value)  # the first one counts
        weight = rules
    return Source(entry["model"], checked_weight(weight, entry["model"]), _conversion(entry.get("convert")))


def _conversion(content: object) -> Conversion | None:
    if content is None:
        return None
    content = _mapping(content, "convert")
    _refuse_unknown(content, ("initial", "base_weights", "rank"), "convert")
    given = [name for name in ("initial", "base_weights") if content.get(name) is not None]
    if len(given) != 1 or (given == ["initial"] and "rank" in content):
        raise RecipeError(
            f"'convert' is {dict(content)!r}.",
            remedy="Give either initial, or base_weights and perhaps a rank.",
        )
    rank = content.get("rank")
    return Conversion(
        **{given[0]: _text(content[given[0]], given[0])},
        rank=None if rank is None else _integer(rank, "rank", at_least=1),
    )


def _stated(conversion: Conversion) -> dict[str, Any]:
    return {name: value for name, value in asdict(conversion).items() if value is not None}


def _rule(rule: object) -> tuple[str, object]:
    """Return filter and value of one entry of a weight by module."""
    rule = _mapping(rule, "weight")
    _refuse_unknown(rule, ("filter", "value"), "weight")
    part = rule.get("filter")
    return EVERY_MODULE if part is None else str(part), rule.get("value")


def _refuse_unknown(content: Mapping[Any, Any], known: Collection[str], place: str) -> None:
    """A misspelt field must not be passed over: it would change the merge without a word."""
    if unknown := sorted(str(key) for key in content if key not in known):
        raise RecipeError(
            f"{place} has unknown fields: {', '.join(unknown)}.", remedy=f"Known: {', '.join(sorted(known))}."
        )


def _weight_to_yaml(weight: Weight) -> float | list[dict[str, Any]]:
    if not isinstance(weight, Mapping):
        return weight
    return [
        {"value": value} if part == EVERY_MODULE else {"filter": part, "value": value} for part, value in weight.items()
    ]


def _mapping(value: object, name: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RecipeError(f"'{name}' is {value!r}.", remedy="It must be a mapping.")
    return value


def _list(value: object, name: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise RecipeError(f"'{name}' is {value!r}.", remedy="It must be a list.")
    return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise RecipeError(f"'{name}' is {value!r}.", remedy="It must be text.")
    return value


def _integer(value: object, name: str, at_least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise RecipeError(f"'{name}' is {value!r}.", remedy=f"It must be a whole number from {at_least}.")
    return value


def _share(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise RecipeError(f"'{name}' is {value!r}.", remedy="It must be a number above 0 and up to 1, such as 0.99.")
    return float(value)


def _profile(value: object) -> Profile:
    for profile in PROFILES:
        if value == profile:
            return profile
    raise RecipeError(f"'profile' is {value!r}.", remedy=f"It must be one of {', '.join(PROFILES)}.")


@dataclass(frozen=True, slots=True)
class Parent:
    """One adapter that went into a composite, as the record keeps it.

    Attributes:
        name: Name used in tables.
        model: Reference that finds it again: ``owner/name@commit[:subfolder]``, or ``./name`` for a local folder.
        repo_id: Hub id, ``None`` for a local folder.
        commit: Commit of the repository, 40 hex digits.
        subfolder: Folder inside the repository.
        files: ``{name, sha256, size}`` of each file that was read.
        base_model: Base model that it was trained on, as it states it; ``None`` also where it stated a local path.
        license: Licence the repository states.
        gated: Whether the repository asks for access.
        private: Whether the repository is private.
        weight: Weight in the merge.
        rank: Largest rank.
        scalings: Smallest and largest effective scaling over the modules.
        modules: Number of adapted modules.
        task_type: PEFT task type.
        base_stands_for: The model that its base stands for, such as the original of a quantised copy.
        license_details: Where the licence is stated, and the licence files.
        converted: How it was made plain, and with what error; ``None`` if it was merged as it is.
    """

    name: str
    model: str
    repo_id: str | None
    commit: str | None
    subfolder: str
    files: tuple[Mapping[str, Any], ...]
    base_model: str | None
    license: str | None
    gated: bool
    private: bool
    weight: Weight
    rank: int
    scalings: tuple[float, float]
    modules: int
    task_type: str | None
    base_stands_for: str | None = None
    license_details: LicenseDetails = field(default_factory=LicenseDetails)
    converted: Mapping[str, Any] | None = None


def _license_details(content: Mapping[str, Any], field: str) -> LicenseDetails:
    """Read where a licence is stated; the first records did not say it."""
    return LicenseDetails.from_dict(content[field]) if field in content else LicenseDetails()


def _commit(text: object) -> str | None:
    """Return a commit of the Hub; the first records had none of the base."""
    if text is None or (isinstance(text, str) and COMMIT.fullmatch(text)):
        return text
    raise ValueError("the commit of the base is none")


def _parent_to_dict(parent: Parent) -> dict[str, Any]:
    content = asdict(parent)
    if parent.converted is None:
        del content["converted"]
    return content


def _parent(content: Mapping[str, Any]) -> Parent:
    """Read a parent of a record; ``TypeError`` or ``ValueError`` if a field is not of its kind."""
    low, high = (float(scaling) for scaling in content["scalings"])
    weight = checked_weight(content["weight"], "a parent")
    details = _license_details(content, "license_details")
    read = {"files": tuple(content["files"]), "scalings": (low, high), "weight": weight, "license_details": details}
    parent = Parent(**{**content, **read})
    texts = (parent.name, parent.model, parent.subfolder)
    optional = (parent.repo_id, parent.commit, parent.base_model, parent.license, parent.task_type)
    if not all(isinstance(text, str) for text in (*texts, *(text for text in optional if text is not None))):
        raise TypeError("a text of a parent is none")
    if not all(type(number) is int for number in (parent.rank, parent.modules)):
        raise TypeError("rank or modules of a parent are no numbers")
    return parent


@dataclass(frozen=True, slots=True)
class MergeRecord:
    """What was done: enough to repeat the merge and to judge it. Written as ``hub_merge.json``.

    Attributes:
        recipe: The recipe with every reference pinned.
        parents: The adapters that went in.
        base_model: Canonical base, ``None`` if unknown.
        base_license: Licence of the base, where it could be read.
        output: ``{rank, dtype, modules, task_type, format, components, files}`` of the composite.
        findings: Cautions and accepted problems, as plain data.
        scores: The orthogonality scores, as plain data (``scores.Scores.to_dict``).
        proof: What re-reading the written file showed (``proof.Proof.to_dict``).
        versions: Versions of this package and of the libraries that shaped the bytes.
        base_license_details: Where the base's licence is stated, and its licence files.
        base_commit: Commit that the base's repository was at, where it was looked up.
        measured: What was measured of the composite, and of others beside it.
        tuning: How the merge was chosen by measurement, and what that showed; ``None`` if it was not.
    """

    recipe: Recipe
    parents: tuple[Parent, ...]
    base_model: str | None
    base_license: str | None
    output: Mapping[str, Any]
    findings: tuple[Mapping[str, Any], ...]
    scores: Mapping[str, Any]
    proof: Mapping[str, Any]
    versions: Mapping[str, str]
    base_license_details: LicenseDetails = field(default_factory=LicenseDetails)
    base_commit: str | None = None
    measured: tuple[Measurement, ...] = ()
    tuning: Mapping[str, Any] | None = None

    def to_json(self) -> str:
        """Return the record as JSON; the same record gives the same bytes."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "recipe": self.recipe.to_dict(),
            "parents": [_parent_to_dict(parent) for parent in self.parents],
            "base_model": self.base_model,
            "base_commit": self.base_commit,
            "base_license": self.base_license,
            "base_license_details": asdict(self.base_license_details),
            "output": self.output,
            "findings": self.findings,
            "scores": self.scores,
            "proof": self.proof,
            **({"measured": [entry.to_dict() for entry in self.measured]} if self.measured else {}),
            "versions": self.versions,
            **({"tuning": self.tuning} if self.tuning else {}),
        }
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> MergeRecord:
        """Read a record.

        Raises:
            RecipeError: The text is no record, or was written by a newer version.
        """
        try:
            content = json.loads(text)
            if "kind" in content:
                raise RecipeError(
                    f"This is a {content['kind']}, made by another command, and no composite.",
                    remedy="Name the composite that it was made from; `hub-merge push` takes either.",
                )
            require_schema(content["schema_version"])
            for entry in [*content["output"]["files"], *(f for parent in content["parents"] for f in parent["files"])]:
                if not (isinstance(entry["name"], str) and isinstance(entry["sha256"], str)):
                    raise TypeError("a file has no name or no sha256")
            return cls(
                recipe=Recipe.from_dict(content["recipe"]),
                parents=tuple(_parent(parent) for parent in content["parents"]),
                base_model=content["base_model"],
                base_license=content["base_license"],
                output=content["output"],
                findings=tuple(content["findings"]),
                scores=content["scores"],
                proof=content["proof"],
                versions=content["versions"],
                tuning=_mapping(content.get("tuning"), "tuning") or None,
                base_license_details=_license_details(content, "base_license_details"),
                base_commit=_commit(content.get("base_commit")),
                measured=tuple(Measurement.from_dict(entry) for entry in content.get("measured", ())),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RecipeError(
                f"hub_merge.json is not a merge record: {error!r}.", remedy="Merge again to write a new one."
            ) from error


def require_schema(version: Any) -> None:
    """Raise ``RecipeError`` unless a record of this schema can be read; those of every former version can."""
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise RecipeError(
            f"hub_merge.json has schema version {version!r}; this version reads up to {SCHEMA_VERSION}.",
            remedy="Upgrade hub-merge.",
        )
