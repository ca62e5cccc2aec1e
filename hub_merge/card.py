"""The model card of a composite, from its record alone; the same record gives the same bytes.

Whatever comes from elsewhere (names, licences, findings) is data to be shown, never Markdown, HTML, YAML or a template:
values that the template prints are escaped unless a helper of this module made them, and every one loses local paths
and tokens on its way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from hub_merge.bases import HUB_ID
from hub_merge.errors import MergeError
from hub_merge.formats.names import COMPONENTS
from hub_merge.frontmatter import split_front_matter
from hub_merge.layout import DIFFUSERS_FILE, FILE_FORMATS, KOHYA_FILE
from hub_merge.licenses import LicenseVerdict, united
from hub_merge.methods import Method, get_method
from hub_merge.privacy import one_line, scrub
from hub_merge.recipe import SCHEMA_VERSION, MergeRecord, Parent, Weight
from hub_merge.scores import started_alike

if TYPE_CHECKING:
    import jinja2

__all__ = [
    "END",
    "START",
    "TASKS",
    "Markdown",
    "cleaned",
    "code_span",
    "environment",
    "escape",
    "hub_id",
    "link",
    "published_card",
    "render_card",
    "scrub",
    "to_yaml",
    "update_card",
    "weight_files",
]

START, END = "<!-- hub-merge:start -->", "<!-- hub-merge:end -->"
HUB = "https://huggingface.co"
PACKAGE = "hub-merge"
BLANK = "–"

TASKS = {
    "CAUSAL_LM": ("text-generation", "AutoModelForCausalLM"),
    "FEATURE_EXTRACTION": ("feature-extraction", "AutoModel"),
    "QUESTION_ANS": ("question-answering", "AutoModelForQuestionAnswering"),
    "SEQ_2_SEQ_LM": (None, "AutoModelForSeq2SeqLM"),
    "SEQ_CLS": ("text-classification", "AutoModelForSequenceClassification"),
    "TOKEN_CLS": ("token-classification", "AutoModelForTokenClassification"),
}
"""PEFT's task types, with the Hub's pipeline tag and the class that loads the base."""

VLLM_RANKS = (8, 16, 32, 64, 128, 256)
"""Values of ``--max-lora-rank`` to choose from."""

LICENSE_KEYS = ("license", "license_name", "license_link")
GENERATED_TAGS = ("base_model:", "hub-merge:", "merged_from:")
MOST_PAIRS = 10
LONGEST_TEXT = 400
ALIKE = ([1.0, 1.0], [True, True])
"""Weights and presence of two adapters, to tell a weighted sum by its coefficients from another combination."""


# --- text from elsewhere ----------------------------------------------------------------------------------------------

AS_ENTITY = re.compile(r"[\\<>&|$]")
MARKUP = re.compile(r"[`*~\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
BLOCK_OPENING = re.compile(r"^(\d*)([#+=-]|(?<=\d)[.)](?=\s|$))")
LINK_INSIDE = re.compile(r":(?=//)|\bwww(?=\.)|@", re.IGNORECASE)


class Markdown(str):
    """Text that a helper of this module has made fit for printing as Markdown."""

    __slots__ = ()


def _clean(value: object) -> str:
    """Return ``value`` as one short line of visible characters, scrubbed."""
    text = one_line(str(value))
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def escape(value: object) -> Markdown:
    """Return ``value`` as Markdown that shows it literally: no markup, link, HTML, formula or table column."""
    text = AS_ENTITY.sub(lambda found: f"&#{ord(found[0])};", _clean(value))
    text = MARKUP.sub(r"\\\g<0>", text)
    text = BLOCK_OPENING.sub(r"\1\\\2", text)
    return Markdown(LINK_INSIDE.sub("\\g<0>&#8288;", text))


def code_span(value: object) -> Markdown:
    """Return ``value`` as a code span that is safe in a table too; a backtick and a pipe become their look-alikes."""
    text = _clean(value).replace("`", "ˋ").replace("|", "¦")
    return Markdown(f"`{text}`" if text else BLANK)


def _fenced(text: str, language: str) -> Markdown:
    """Return ``text`` as a code block that it cannot close."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return Markdown(f"{fence}{language}\n{text.rstrip()}\n{fence}")


def cleaned(value: Any) -> Any:
    """Return plain data with every text in it cleaned."""
    if isinstance(value, Mapping):
        return {_clean(key): cleaned(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [cleaned(entry) for entry in value]
    return _clean(value) if isinstance(value, str) else value


def to_yaml(content: Mapping[str, Any]) -> str:
    """Return a mapping as YAML, in its order and with a line a value."""
    import yaml

    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=math.inf)


# --- words and numbers ------------------------------------------------------------------------------------------------


def _number(value: float | None) -> Markdown:
    """Return ``value`` with three significant digits."""
    if value is None or not math.isfinite(value):
        return Markdown(BLANK)
    if value == 0 or abs(value) >= 1000:
        return Markdown(f"{value:.0f}")
    return Markdown(re.sub(r"e([+-])0", r"e\1", f"{value:#.3g}").rstrip("."))


def _percent(share: float | None) -> Markdown:
    """Return a share in per cent with three significant digits."""
    return _number(None) if share is None else Markdown(f"{_number(100 * share)} %")


def _listed(items: Iterable[object]) -> Markdown:
    """Return ``a, b and c``, each escaped unless it is Markdown already."""
    *rest, last = [item if isinstance(item, Markdown) else escape(item) for item in items]
    return Markdown(f"{', '.join(rest)} and {last}" if rest else last)


def _counted(count: int, noun: str) -> Markdown:
    return Markdown(f"{count} {noun}{'s' * (count != 1)}")


def _weight(weight: Weight) -> Markdown:
    if not isinstance(weight, Mapping):
        return Markdown(f"{weight:.3g}")
    rules = [
        f"{value:.3g} elsewhere" if part in ("*", "") else f"{value:.3g} in {code_span(part)}"
        for part, value in weight.items()
    ]
    return Markdown(", ".join(rules))


def hub_id(text: str | None) -> Markdown | None:
    """Return ``text`` if it can be an id on the Hub; such a text needs no escaping."""
    return Markdown(text) if text and HUB_ID.fullmatch(text) and text == scrub(text) else None


def link(repo_id: str, commit: str | None = None, subfolder: str = "") -> Markdown:
    """Return a link to a repository of the Hub, at a commit if one is given."""
    folder = f"/{quote(_clean(subfolder))}" if subfolder else ""
    tree = f"/tree/{commit}{folder}" if commit else ""
    return Markdown(f"[{code_span(repo_id + folder)}]({HUB}/{repo_id}{tree})")


def _source(parent: Parent) -> Markdown:
    """Return where a parent is found: a pinned link, or the name of a local folder."""
    repo_id = hub_id(parent.repo_id)
    if repo_id is None:
        return Markdown(f"{code_span(parent.name)} (local folder)")
    commit = parent.commit if re.fullmatch("[0-9a-f]{40}", parent.commit or "") else None
    access = " (private)" if parent.private else " (gated)" if parent.gated else ""
    return Markdown(link(repo_id, commit, parent.subfolder) + access)


# --- what the record says ---------------------------------------------------------------------------------------------


def _task_type(record: MergeRecord) -> str | None:
    """Return the task type of all parents, if they agree on one."""
    stated = {parent.task_type for parent in record.parents}
    return stated.pop() if len(stated) == 1 else None


def _method(record: MergeRecord) -> Method | None:
    """Return the method of the merge; ``None`` if it is not installed here."""
    try:
        return get_method(record.recipe.merge_method)
    except MergeError:
        return None


def _method_name(record: MergeRecord) -> str:
    method = _method(record)
    return method.name if method else record.recipe.merge_method


def _options(record: MergeRecord) -> Mapping[str, Any]:
    """Return the options with their defaults, as far as the method is known here."""
    method = _method(record)
    try:
        return method.parse_options(record.recipe.options) if method else record.recipe.options
    except MergeError:
        return record.recipe.options


def _described(method: Method | None) -> dict[str, Any] | None:
    """Return what the card tells of the method; ``does`` is the rest of a sentence that its name begins."""
    if method is None:
        return None
    verb, _, rest = method.summary.partition(" ")
    return {
        "formula": method.formula,
        "does": f"returns {rest}" if verb == "Return" else f"is described as: {method.summary}",
        "paper": Markdown(method.paper) if re.fullmatch(r"\d{4}\.\d{4,5}", method.paper) else None,
    }


def _exact(record: MergeRecord) -> Markdown:
    """Return what the composite is measured against, in words."""
    if len(record.parents) == 1:
        weighted = "" if record.parents[0].weight == 1.0 else "weighted "
        return Markdown(f"the {weighted}delta of its parent")
    method = _method(record)
    is_older = "losses" not in record.proof  # and measured every composite against the weighted sum
    if is_older or method is None or method.coefficients is None or list(method.coefficients(*ALIKE)) == ALIKE[0]:
        return Markdown("the exact weighted sum of the deltas")
    return Markdown("the exact combination of the deltas")


def _ranks(record: MergeRecord) -> tuple[list[int], list[Markdown]] | None:
    """Return the smallest and the largest rank, and how many modules have which; ``None`` where all have one."""
    counts = {int(rank): int(count) for rank, count in record.output.get("ranks", {}).items()}
    if not counts:
        return None
    told = [Markdown(f"{rank} in {_counted(count, 'module')}") for rank, count in sorted(counts.items())]
    return sorted({min(counts), max(counts)}), told


def _losses(record: MergeRecord) -> Sequence[Mapping[str, Any]]:
    """Return the modules that a truncation took most from."""
    losses: Sequence[Mapping[str, Any]] = record.proof.get("losses", [])
    return losses if record.recipe.rank is not None else []


def _verdict(record: MergeRecord) -> LicenseVerdict:
    return united(
        record.base_license,
        [parent.license for parent in record.parents],
        names=[parent.repo_id or parent.name for parent in record.parents],
    )


def _matrix(scores: Mapping[str, Any]) -> list[tuple[str, list[float | None]]]:
    """Return the rows of the matrix of RMS cosines, each with its adapter's name."""
    known = {frozenset((pair["first"], pair["second"])): pair["rms_cosine"] for pair in scores["pairs"]}
    names: Sequence[str] = scores["adapters"]
    return [(row, [1.0 if row == name else known.get(frozenset((row, name))) for name in names]) for row in names]


def _most_alike(pairs: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(pairs, key=lambda pair: -(pair["rms_cosine"] or 0.0))[:MOST_PAIRS]


def weight_files(files: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return those of a record's files that hold weights."""
    return [file for file in files if str(file["name"]).endswith(".safetensors")]


def _version(record: MergeRecord) -> Markdown | None:
    version = record.versions.get(PACKAGE, "")
    return Markdown(version) if re.fullmatch(r"\d[A-Za-z0-9.+!]*", version) else None


# --- front matter -----------------------------------------------------------------------------------------------------


def _front_matter(record: MergeRecord) -> dict[str, Any]:
    base, verdict = hub_id(record.base_model), _verdict(record)
    task = TASKS.get(_task_type(record) or "")
    content = {
        "base_model": base,
        "base_model_relation": "adapter" if base else None,
        "library_name": _library(record),
        "pipeline_tag": task[0] if task else None,
        "tags": _tags(record, base, is_transformers=task is not None),
        "license": verdict.identifier,
        "license_name": verdict.name,
        "license_link": verdict.link,
        "hub_merge": _machine_readable(record, verdict),
    }
    return {key: cleaned(value) for key, value in content.items() if value is not None}


def _library(record: MergeRecord) -> str:
    """Return what the Hub calls the library that loads the composite."""
    if _format(record) == "mlx":
        return "mlx"
    return "diffusers" if _components(record) else "peft"


def _format(record: MergeRecord) -> str:
    written = record.output.get("format", "peft")
    return written if written in FILE_FORMATS else "peft"


def _components(record: MergeRecord) -> list[str]:
    """Return the models of a pipeline that the composite is for; none for a model of its own."""
    return [name for name in record.output.get("components", ()) if name in COMPONENTS]


def _tags(record: MergeRecord, base: str | None, *, is_transformers: bool) -> list[str]:
    repo_ids = dict.fromkeys(hub_id(parent.repo_id) for parent in record.parents)
    return [
        *([f"base_model:adapter:{base}"] if base else []),
        "lora",
        *(["transformers"] if is_transformers else []),
        "merge",
        "hub-merge",
        f"hub-merge:{_method_name(record)}",
        *(f"merged_from:{repo_id}" for repo_id in repo_ids if repo_id),
    ]


def _machine_readable(record: MergeRecord, verdict: LicenseVerdict) -> dict[str, Any]:
    recipe, output = record.recipe, record.output
    rms_cosine = record.scores["rms_cosine"]
    content = {
        "schema_version": SCHEMA_VERSION,
        "version": record.versions.get(PACKAGE),
        "method": {
            "name": _method_name(record),
            "rank": recipe.rank,
            "energy": recipe.energy,
            "options": dict(_options(record)),
            "seed": recipe.seed,
        },
        "parents": [_machine_readable_parent(parent) for parent in record.parents],
        "output": {"rank": output["rank"], "dtype": output["dtype"], "sha256": _digests(output["files"])},
        "license": verdict.identifier,
        "rms_cosine": None if rms_cosine is None else float(f"{rms_cosine:.4g}"),
    }
    return {key: _without_none(value) for key, value in content.items() if value is not None}


def _machine_readable_parent(parent: Parent) -> dict[str, Any]:
    return {
        **({"repo_id": parent.repo_id} if parent.repo_id else {"name": parent.name}),
        "revision": parent.commit,
        "subfolder": parent.subfolder or None,
        "sha256": _digests(parent.files),
        "rank": parent.rank,
        "weight": dict(parent.weight) if isinstance(parent.weight, Mapping) else parent.weight,
        "license": parent.license,
    }


def _digests(files: Iterable[Mapping[str, Any]]) -> str | list[str] | None:
    """Return the sha256 of the weights: one text, or a list where they are in several files."""
    digests = [str(file["sha256"]) for file in weight_files(files)]
    return digests if len(digests) > 1 else next(iter(digests), None)


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(entry) for key, entry in value.items() if entry is not None}
    return [_without_none(entry) for entry in value] if isinstance(value, list) else value


# --- the card ---------------------------------------------------------------------------------------------------------


@cache
def environment() -> jinja2.Environment:
    """Return the templates, which escape every value that is not Markdown already."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hub_merge"),
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markdown) else escape(value),
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "code": code_span,
        "counted": _counted,
        "fenced": _fenced,
        "listed": _listed,
        "number": _number,
        "percent": _percent,
        "source": _source,
        "weight": _weight,
    }
    return environment


def _usage(record: MergeRecord, repo_id: Markdown | None) -> dict[str, Any]:
    base, rank, task = hub_id(record.base_model), record.output["rank"], _task_type(record)
    names = [str(file["name"]) for file in weight_files(record.output["files"])]
    return {
        "library": _library(record),
        "format": _format(record),
        "component": next(iter(_components(record)), None),
        "file": next((name for name in names if name in (KOHYA_FILE, DIFFUSERS_FILE)), None),
        "base": base or Markdown("BASE_MODEL"),
        "repo_id": repo_id or Markdown("path/to/this/adapter"),
        "loader": TASKS.get(task or "", (None, "AutoModel"))[1],
        "is_generator": task == "CAUSAL_LM",
        "max_lora_rank": next((allowed for allowed in VLLM_RANKS if allowed >= rank), None),
    }


def _context(record: MergeRecord, repo_id: Markdown | None, picture: str | None) -> dict[str, Any]:
    base, pairs = hub_id(record.base_model), record.scores["pairs"]
    return {
        "record": record,
        "title": repo_id.partition("/")[2] or repo_id if repo_id else None,
        "repo_id": repo_id,
        "picture": Markdown(quote(picture)) if picture else None,
        "base": link(base) if base else None,
        "method_name": _method_name(record),
        "method": _described(_method(record)),
        "options": _options(record),
        "exact": _exact(record),
        "ranks": _ranks(record),
        "losses": _losses(record),
        "matrix": _matrix(record.scores),
        "pairs": _most_alike(pairs),
        "shared_starts": [
            Markdown(f"{code_span(pair['first'])} with {code_span(pair['second'])}")
            for pair in _most_alike(pairs)
            if started_alike(pair["a_rows"], pair["a_rows_chance"])
        ],
        "usage": _usage(record, repo_id),
        "version": _version(record),
        "versions": [Markdown(f"{code_span(name)} {escape(value)}") for name, value in record.versions.items()],
        "local": [parent for parent in record.parents if parent.repo_id is None],
        "recipe": to_yaml(cleaned(record.recipe.to_dict())),
        "weights": weight_files(record.output["files"]),
        "verdict": _verdict(record),
    }


def render_card(record: MergeRecord, *, repo_id: str | None = None, picture: str | None = None) -> str:
    """Return the whole README.md of a composite: YAML front matter and body.

    Args:
        record: What was done.
        repo_id: Where the composite will be published, ``owner/name``; the card then says how to load it from there.
        picture: Name of the picture of the scores, a file beside the card.
    """
    template = environment().get_template("card.md.jinja")
    body = template.render(_context(record, hub_id(repo_id), picture)).strip()
    return f"---\n{to_yaml(_front_matter(record))}---\n\n{START}\n{body}\n{END}\n"


# --- an existing card -------------------------------------------------------------------------------------------------

GENERATED = re.compile(rf"^{START}[ \t]*$.*?^{END}[ \t]*$", re.DOTALL | re.MULTILINE)
MARKER = re.compile(rf"^(?:{START}|{END})[ \t]*\n?", re.MULTILINE)


def update_card(existing: str, new: str) -> str:
    """Return ``existing`` with the generated part and our metadata taken from ``new``.

    Text outside the markers, further metadata and further tags stay as their author wrote them. A card without markers
    keeps its body, and the generated part follows it.

    Args:
        existing: The card that is there, with or without our markers.
        new: A card from ``render_card``.

    Raises:
        HubMergeError: The metadata of ``existing`` is not a YAML mapping.
    """
    old_data, old_body = split_front_matter(existing)
    new_data, new_body = split_front_matter(new)
    generated = new_body.strip()
    if GENERATED.search(old_body):
        body = GENERATED.sub(lambda _: generated, old_body, count=1).strip("\n")
    else:
        body = f"{MARKER.sub('', old_body).rstrip()}\n\n{generated}".strip("\n")
    return f"---\n{to_yaml(_updated(old_data, new_data))}---\n\n{body}\n"


def published_card(published: str, local: str) -> str:
    """Return the card that takes the place of ``published``, which its readers may have edited on the Hub.

    Metadata is united as ``update_card`` does. Text outside the markers is that of ``local`` if it has any, for it was
    written last and here, else that of ``published``.

    Raises:
        HubMergeError: The metadata of one of them is not a YAML mapping.
    """
    _, body = split_front_matter(local)
    if not GENERATED.sub("", body, count=1).strip():
        return update_card(published, local)
    data = _updated(split_front_matter(published)[0], split_front_matter(local)[0])
    return f"---\n{to_yaml(data)}---\n\n{body.strip()}\n"


def _updated(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    record = old.get("hub_merge")
    stated_by_us = record.get("license") if isinstance(record, Mapping) else None
    dropped = LICENSE_KEYS if "license" in new or stated_by_us == old.get("license") else ()
    kept = {key: value for key, value in old.items() if key not in (*new, *dropped)}
    return {**new, "tags": _united_tags(old.get("tags"), new.get("tags", [])), **kept}


def _united_tags(old: Any, new: Sequence[str]) -> list[Any]:
    tags = old if isinstance(old, list) else [old] if old else []
    return [*new, *(tag for tag in tags if tag not in new and not str(tag).startswith(GENERATED_TAGS))]
