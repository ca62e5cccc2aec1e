"""The one spine: sources, check, score, merge, proof, record, card, push. API, command line and Space all use it.

This is the only place where findings become exceptions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hub_merge.adapter import Adapter, Origin
from hub_merge.advise import Advice, advise
from hub_merge.budgets import budget
from hub_merge.card import published_card, render_card, update_card
from hub_merge.choice import choose
from hub_merge.compat import Compatibility, check, total_rank
from hub_merge.composite import Composite, compose
from hub_merge.conversion import Place, converted
from hub_merge.errors import (
    AdapterNotFound,
    HubMergeError,
    HubUnavailable,
    IncompatibleAdapters,
    MergeError,
    OutputExists,
    ProofFailed,
    PublishError,
    RecipeError,
)
from hub_merge.extras import checked_policy, decide
from hub_merge.findings import Finding, Report
from hub_merge.formats.opening import open_adapter_files
from hub_merge.formats.output import get_format
from hub_merge.formats.peft import contained
from hub_merge.formats.tensors import WRITABLE, dtype_named
from hub_merge.hub import Hub, Listing, Reference
from hub_merge.layout import CARD_FILE, OWN_CONTENT, PICTURE_FILE, PUBLISHED_FILES, RECIPE_FILE, RECORD_FILE
from hub_merge.licenses import LicenseVerdict, verdict_of
from hub_merge.lineage import Standing, standings
from hub_merge.methods import Method, get_method
from hub_merge.notices import carried_names, carried_texts, notice_texts, write_texts
from hub_merge.outliers import dominance_findings
from hub_merge.proof import Proof, prove
from hub_merge.provenance import build_record, read_record, reopen, require_files
from hub_merge.publish import Published, publish_folder
from hub_merge.ranks import Profile, Rank, require_rank
from hub_merge.recipe import REFUSE, MergeRecord, Parent, Recipe, Weight, checked_weight
from hub_merge.scores import Scores, Scoring, score
from hub_merge.sources import Opened, base_origin, open_adapter, open_headers, unique_names
from hub_merge.staging import require_free, staged
from hub_merge.workspace import workspace, write_whole

__all__ = [
    "advise_on_references",
    "card_of",
    "check_references",
    "compress",
    "followers",
    "inspect_reference",
    "is_open",
    "merge",
    "merge_to_folder",
    "push",
    "push_folder",
    "require_lawful",
    "run",
    "save",
    "score_references",
    "search",
    "verify",
]

HEADER_BYTES = 1000
"""More than two tensors take in the header of a file."""

ABOUT_NUMBERS = ("untrained", "partly_zero", "norms_differ", "same_adapter", "norm_outlier", "spectrum_outlier")
"""Findings that say something of scores."""

Progress = Callable[[str, int, int], None]
"""Called with the step, what is done and what there is to do."""

Follow = Callable[[str], str | None]
"""Gives one Hub id for another, ``None`` for none."""


def _silent(step: str, done: int, total: int) -> None:
    """Report nothing."""


# --- merging ----------------------------------------------------------------------------------------------------------


def merge(
    adapters: Sequence[Adapter],
    method: str = "sum",
    *,
    weights: Sequence[Weight] | None = None,
    rank: Rank | None = None,
    energy: float | None = None,
    profile: Profile = "portable",
    seed: int = 0,
    dtype: str | None = None,
    base: str | None = None,
    allow: Sequence[str] = (),
    extras: str = REFUSE,
    canonical: Follow | None = None,
    original: Follow | None = None,
    **options: Any,
) -> Composite:
    """Return the composite of ``adapters``. Its factors are computed when they are asked for or saved.

    Args:
        adapters: One or more adapters.
        method: Name of the merge method; ``list_methods()`` has them all.
        weights: One number an adapter, or numbers by module (``{"self_attn": 0.5, "*": 1.0}``); 1.0 by default.
        rank: Rank of the result; ``None`` leaves it to the method, ``auto`` takes the smallest that keeps ``energy``.
        energy: Share of the squared Frobenius norm that ``auto`` keeps of the linear combination that the method makes,
            or of the weighted sum for a method that makes none, (0, 1]; 0.99 by default.
        profile: ``portable`` gives all modules one rank. ``peft`` gives each its own, the largest singular values of
            all modules first: the fewest that keep ``energy`` with ``auto``, ``rank`` a module on average with a
            number, the method's own without one. Only PEFT and transformers read such a file right.
        seed: Seed of every random choice.
        dtype: ``float32``, ``bfloat16`` or ``float16``; ``None`` takes the widest of the sources.
        base: Hub id that you assert to be the base of all adapters.
        allow: Codes of findings that you accept, such as ``task_differs``.
        extras: What becomes of heads, biases and token rows: ``refuse``, ``keep:NAME`` (those of one adapter),
            ``average`` (the plain mean over the adapters that have them) or ``drop``.
        canonical: Follows renames of a Hub id, such as ``Hub().canonical``.
        original: Tells which model a quantised copy was made from, such as ``Hub().original``.
        **options: Options of the method.

    Raises:
        IncompatibleAdapters: They do not fit together; the error lists every problem.
        BudgetExceeded: There are more adapters, or they have a larger rank together, than a limit allows.
        UnknownMethod: No such method.
        MergeError: An option, rank or dtype that the method cannot use.
        RecipeError: Weights that are no numbers, or not one an adapter.
    """
    if not adapters:
        raise MergeError("There is nothing to merge.", remedy="Name one or more adapters.")
    chosen = get_method(method)
    numbers = _checked_weights(adapters, weights)
    settings = chosen.parse_options(options)
    _require_choices(dtype, seed)
    require_rank(rank, energy, profile)
    named = _affordable(adapters)
    compatibility = check(named, base=base, allow=allow, canonical=canonical, original=original)
    beside, report = decide(extras, named, numbers, compatibility.report)
    if not report.compatible:
        raise IncompatibleAdapters(report)
    compatibility = replace(compatibility, report=report)
    compatibility = _with_cautions(compatibility, chosen, numbers, settings, rank)
    return compose(
        named,
        numbers,
        chosen,
        rank=rank,
        energy=energy,
        profile=profile,
        options=settings,
        seed=seed,
        dtype=dtype,
        compatibility=compatibility,
        allow=allow,
        beside=beside,
    )


def _affordable(adapters: Sequence[Adapter]) -> list[Adapter]:
    """Return the adapters under unique names, or raise ``BudgetExceeded``; none of their numbers is read."""
    limits = budget()
    limits.require_adapters(len(adapters))
    limits.require_rank(total_rank(adapters), "The exact sum")
    return unique_names(adapters)


def _with_cautions(
    compatibility: Compatibility,
    method: Method,
    weights: Sequence[Weight],
    options: Mapping[str, Any],
    rank: Rank | None,
) -> Compatibility:
    """Add what is to be told about the choice of method and weights."""
    numbers = [
        number for weight in weights for number in (weight.values() if isinstance(weight, Mapping) else [weight])
    ]
    told = list(method.cautions(numbers, options)) if method.cautions else []
    if isinstance(rank, int) and rank > compatibility.total_rank:
        told.append(
            f"rank {rank} is more than the adapters have together; the composite has {compatibility.total_rank}"
        )
    cautions = [Finding("caution", "method", "", method.name, text, "", "") for text in told]
    cautions += dominance_findings(compatibility.adapters, compatibility.statistics, weights)
    return replace(compatibility, report=Report((*compatibility.report.findings, *cautions)))


def _checked_weights(adapters: Sequence[Adapter], weights: Sequence[Weight] | None) -> list[Weight]:
    weights = [1.0] * len(adapters) if weights is None else list(weights)
    if len(weights) != len(adapters):
        raise RecipeError(
            f"There are {len(adapters)} adapters and {len(weights)} weights.", remedy="Give one weight an adapter."
        )
    return [checked_weight(weight, adapter.name) for weight, adapter in zip(weights, adapters, strict=True)]


def _require_choices(dtype: str | None, seed: int) -> None:
    if dtype is not None and dtype not in WRITABLE:
        raise MergeError(f"{dtype!r} is no dtype to write.", remedy=f"It is one of {', '.join(WRITABLE)}.")
    if seed < 0:
        raise MergeError(f"Seed {seed} is negative.", remedy="Give a whole number from 0.")


def run(
    recipe: Recipe,
    *,
    hub: Hub,
    folder: Path = Path(),
    parents: Sequence[str | Path] = (),
    progress: Progress = _silent,
) -> Composite:
    """Return the composite that ``recipe`` describes.

    Args:
        recipe: What to merge.
        hub: Client to pull adapters with.
        folder: Folder that relative paths of the recipe start from.
        parents: Folders that stand for the local adapters of the same names, wherever they are now.
        progress: Told of each adapter that was opened.

    Raises:
        HubMergeError: An adapter cannot be had, or the merge cannot be carried out.
    """
    get_method(recipe.merge_method).parse_options(recipe.options)  # a typo is told before anything is downloaded
    _require_choices(recipe.dtype, recipe.seed)
    require_rank(recipe.rank, recipe.energy, recipe.profile)
    checked_policy(recipe.extras)
    adapters = _open_all(_references(recipe, folder, parents), hub, progress)
    adapters = _converted(recipe, adapters, hub, _finder(parents, folder), progress)
    return _carry_out(recipe, adapters, *followers(hub))


def _finder(parents: Sequence[str | Path], folder: Path = Path()) -> Place:
    """Return what finds a local reference of a recipe: among ``parents`` by its name, else below ``folder``."""
    given = {Path(parent).name: Path(parent) for parent in parents}
    return lambda text: given.get(Path(text).name, folder / text) if text.startswith(".") else text


def _converted(
    recipe: Recipe, adapters: Sequence[Adapter], hub: Hub, place: Place, progress: Progress
) -> list[Adapter]:
    """Return the adapters made plain where the recipe says so."""
    return [
        converted(adapter, source.convert, hub=hub, place=place, progress=progress)
        for adapter, source in zip(adapters, recipe.models, strict=True)
    ]


def _helpers(recipe: Recipe) -> set[str]:
    """Return the names of what conversions need beside the adapters: base weights and initial adapters."""
    return {Path(text).name for source in recipe.models if source.convert for text in source.convert.references()}


def _references(recipe: Recipe, folder: Path, parents: Sequence[str | Path]) -> list[str | Path]:
    """Return where each adapter of the recipe is: on the Hub, among ``parents`` by name, or below ``folder``."""
    given = {Path(parent).name: Path(parent) for parent in parents}
    local = {source.model: Path(source.model).name for source in recipe.models if source.model.startswith(".")}
    if strange := given.keys() - local.values() - _helpers(recipe):
        raise RecipeError(
            f"The recipe has no local adapter called {min(strange)}.",
            remedy=f"Its local adapters: {', '.join(local.values()) or 'none'}.",
        )
    places = {model: given.get(name, folder / model) for model, name in local.items()}
    if folder != Path() and (absent := [path for path in places.values() if not path.exists()]):
        raise AdapterNotFound(
            f"{absent[0]}: There is no such folder or file.",
            remedy=f"Put it there, or name where it is: hub-merge merge RECIPE.yaml PATH/TO/{absent[0].name} -o FOLDER",
        )
    return [places.get(source.model, source.model) for source in recipe.models]


def _carry_out(
    recipe: Recipe, adapters: Sequence[Adapter], canonical: Follow | None = None, original: Follow | None = None
) -> Composite:
    return merge(
        adapters,
        recipe.merge_method,
        weights=[source.weight for source in recipe.models],
        rank=recipe.rank,
        energy=recipe.energy,
        profile=recipe.profile,
        seed=recipe.seed,
        dtype=recipe.dtype,
        base=recipe.base_model,
        allow=recipe.allow,
        extras=recipe.extras,
        canonical=canonical,
        original=original,
        **recipe.options,
    )


def followers(hub: Hub) -> tuple[Follow | None, Follow | None]:
    """Return what follows renames and what follows copies of base models on the Hub; nothing does while offline.

    A Hub that does not answer leaves a name as it is, and is not asked again.
    """
    if hub.offline:
        return None, None

    answers = True

    def patient(follow: Follow) -> Follow:
        def followed(model_id: str) -> str | None:
            nonlocal answers
            try:
                return follow(model_id) if answers else None
            except HubUnavailable:
                answers = False
                return None

        return followed

    return patient(hub.canonical), patient(hub.original)


def _checked(
    adapters: Sequence[Adapter], hub: Hub, base: str | None = None, allow: Sequence[str] = ()
) -> Compatibility:
    """Return whether the adapters fit together, their bases followed on the Hub."""
    canonical, original = followers(hub)
    return check(adapters, base=base, allow=allow, canonical=canonical, original=original)


def compress(
    adapter: Adapter,
    rank: Rank = "auto",
    energy: float | None = None,
    *,
    profile: Profile = "portable",
    dtype: str | None = None,
    base: str | None = None,
    allow: Sequence[str] = (),
) -> Composite:
    """Return ``adapter`` at a smaller rank, as close to it as that rank allows: method ``svd`` of it alone.

    Args:
        adapter: What to compress.
        rank: A whole number, or ``auto`` for the smallest rank that keeps ``energy``; 1 for a delta that is zero.
        energy: Share of the squared Frobenius norm that ``auto`` keeps, (0, 1]; 0.99 by default.
        profile: ``portable`` for one rank in all modules, ``peft`` for a rank in each; see ``merge``.
        dtype: ``float32``, ``bfloat16`` or ``float16``; ``None`` takes that of the adapter.
        base: Hub id that you assert to be the adapter's base.
        allow: Codes of findings that you accept.

    Raises:
        IncompatibleAdapters: The adapter holds more than its factors, which would be lost.
        MergeError: A rank, energy, profile or dtype that cannot be used.
    """
    return merge([adapter], "svd", rank=rank, energy=energy, profile=profile, dtype=dtype, base=base, allow=allow)


# --- writing ----------------------------------------------------------------------------------------------------------


def save(
    adapter: Adapter,
    folder: Path,
    *,
    format: str = "peft",
    force: bool = False,
    picture: bool = False,
    base: Origin | None = None,
    progress: Progress = _silent,
) -> Path:
    """Write ``adapter`` to ``folder`` with proof, record, recipe and card; whole or not at all.

    A plain adapter is written as the sum of itself alone, so it is checked and proved like any composite.

    Args:
        adapter: What to write.
        folder: Where to; created with its parents.
        format: ``peft``, or ``kohya``, ``diffusers`` or ``mlx`` where that format can hold the adapter.
        force: Replace a composite that is there; what was written around our part of a composite's card stays.
        picture: Draw the scores too (needs matplotlib).
        base: Where the base model is and which licence it states, where that is known.
        progress: Told of each module that is written or compared.

    Raises:
        BudgetExceeded: The file would be larger than a limit or the disk allows.
        OutputExists: ``folder`` exists and ``force`` is not set, or it is a parent's or holds something else too.
        ProofFailed: What was written is not what was asked for; nothing is left behind.
        IncompatibleAdapters: The adapter holds more than its factors, which would be lost.
        MergeError: The format cannot hold the adapter, or its profile.
    """
    target = get_format(format)
    composite = adapter if isinstance(adapter, Composite) else merge([adapter])
    target.require_profile(composite.profile)
    folder = folder.expanduser()
    _require_no_parent(folder, composite)
    target.require_content(composite)
    _require_room(composite, folder)
    total = len(composite.modules)
    with staged(folder, force, OWN_CONTENT) as stage:
        target.write(
            composite,
            stage,
            base_model=composite.base_model,
            dtype=composite.dtype,
            rank=composite.uniform_rank,
            progress=_counter("write", total, progress),
        )
        written = open_adapter_files(stage, choose(target.files), name=composite.name, origin=Origin(folder=stage))
        scoring = Scoring(composite.parents, composite.weights)
        proof = prove(stage, written, composite, _counter("prove", total, progress), scoring)
        _require_proof(proof)
        scores = scoring.result()
        record = build_record(composite, stage, scores, proof, base, target)
        _document(record, stage, scores if picture else None)
        carried = carried_texts(record, base, [parent.origin for parent in composite.parents])
        write_texts(stage, {**carried, **notice_texts(record, carried)})
        if (folder / RECORD_FILE).is_file() and (folder / CARD_FILE).is_file():
            _keep_words(folder / CARD_FILE, stage / CARD_FILE)
    return folder


def _keep_words(replaced: Path, card: Path) -> None:
    """Carry over to ``card`` what the user wrote around our part of the card that it replaces."""
    text = update_card(replaced.read_text(encoding="utf-8"), card.read_text(encoding="utf-8"))
    card.write_text(text, encoding="utf-8")


def _require_no_parent(folder: Path, composite: Composite) -> None:
    """Raise ``OutputExists`` if writing to ``folder`` would replace what the composite is made from."""
    for parent in composite.parents:
        if parent.origin.folder is not None and parent.origin.folder.resolve() == folder.resolve():
            raise OutputExists(
                f"{folder} is the folder of {parent.name}, which goes into the merge, so it is not replaced even with "
                "--force.",
                remedy="Choose another folder.",
            )


def _require_room(composite: Composite, folder: Path) -> None:
    """Raise ``BudgetExceeded`` if the file would be too large: every module is padded to the one rank."""
    numbers = composite.rank * sum(sum(spec.shape) for spec in composite.modules.values())
    size = numbers * dtype_named(composite.dtype).itemsize + HEADER_BYTES * len(composite.modules)
    limits = budget()
    limits.require_bytes(size, f"A composite of rank {composite.rank} in every module")
    limits.require_disk(size, folder.parent, "The composite")


def _counter(step: str, total: int, progress: Progress) -> Callable[[str], None]:
    progress(step, 0, total)
    done = iter(range(1, total + 1))
    return lambda module: progress(step, next(done), total)


def _require_proof(proof: Proof) -> None:
    if not proof.passed:
        failed = "; ".join(f"{entry.name}: {entry.detail}" for entry in proof.checks if not entry.passed)
        raise ProofFailed(
            f"The written composite is not what was asked for ({failed}).",
            remedy="Try --dtype float32; if that fails too, please report it.",
        )


def _document(record: MergeRecord, stage: Path, pictured: Scores | None) -> None:
    """Write record, recipe, card and, with scores to draw, a picture beside the proved files in ``stage``."""
    (stage / RECORD_FILE).write_text(record.to_json(), encoding="utf-8")
    (stage / RECIPE_FILE).write_text(record.recipe.to_yaml(), encoding="utf-8")
    if pictured is not None:
        from hub_merge.plots import heat_map

        heat_map(pictured, stage / PICTURE_FILE)
    card = render_card(record, picture=PICTURE_FILE if pictured is not None else None)
    (stage / CARD_FILE).write_text(card, encoding="utf-8")


# --- verifying --------------------------------------------------------------------------------------------------------


def verify(
    reference: str | Path, *, parents: Sequence[str | Path] = (), hub: Hub, progress: Progress = _silent
) -> Proof:
    """Return what comparing a composite with its own record shows: its parents are opened and merged again.

    Args:
        reference: Composite on the Hub or in a folder.
        parents: Folders of parents that were local; they are recognised by their hashes.
        hub: Client to pull with.
        progress: Told of each module that is compared.

    Raises:
        ProofFailed: A file of the composite or of a parent is not the one that was recorded.
        AdapterNotFound: A parent is gone, or a local one was not given.
    """
    written = open_adapter(reference, hub=hub)
    folder = written.origin.folder
    if folder is None:
        raise HubMergeError("The composite is not on disk.")
    record = read_record(folder)
    require_files(written, record.output["files"], str(reference))
    weights = [source.convert.base_weights for source in record.recipe.models if source.convert]
    bases = {Path(place).name for place in weights if place and place.startswith(".")}
    local = [open_adapter(Path(parent), hub=hub) for parent in parents if Path(parent).name not in bases]
    found = [reopen(parent, local, hub) for parent in record.parents]
    adapters = _converted(record.recipe, found, hub, _finder(parents), progress)
    asked = _carry_out(record.recipe, adapters)
    return prove(folder, written, asked, _counter("prove", len(asked.modules), progress))


# --- by reference -----------------------------------------------------------------------------------------------------


def check_references(
    references: Sequence[str],
    *,
    hub: Hub,
    base: str | None = None,
    allow: Sequence[str] = (),
    full: bool = False,
    progress: Progress = _silent,
) -> Compatibility:
    """Return whether the adapters of ``references`` fit together; ``full`` reads their numbers too."""
    if full:
        adapters = _open_all(references, hub, progress)
    else:
        budget().require_adapters(len(references))
        adapters = [open_headers(reference, hub=hub).adapter for reference in references]
    return _checked(_affordable(adapters), hub, base, allow)


def inspect_reference(reference: str, *, hub: Hub, revision: str | None = None) -> tuple[Opened, Standing]:
    """Return one adapter by its headers, and what its base model stands for."""
    opened = open_headers(reference, revision=revision, hub=hub)
    canonical, original = followers(hub)
    return opened, standings([opened.adapter], canonical=canonical, original=original)[0]


def score_references(
    references: Sequence[str],
    *,
    hub: Hub,
    weights: Sequence[Weight] | None = None,
    exact_signs: bool = False,
    progress: Progress = _silent,
    tell: Callable[[Finding], None] = lambda found: None,
) -> Scores:
    """Return the scores of the adapters of ``references``; ``tell`` gets what stands out in their numbers.

    See ``score`` for ``weights`` and ``exact_signs``.

    Raises:
        IncompatibleAdapters: Their deltas cannot be compared.
    """
    adapters = _affordable(_open_all(references, hub, progress))
    compatibility = _checked(adapters, hub)
    comparable = ("base_differs", "base_unknown", "task_differs", "trained_weights", "unknown_fields", "base_copy")
    blocking = [found for found in compatibility.report.problems if found.code not in comparable]
    if blocking:
        raise IncompatibleAdapters(Report.of(blocking))
    for found in compatibility.report.cautions:
        if found.code in ABOUT_NUMBERS:
            tell(found)
    numbers = None if weights is None else _checked_weights(adapters, weights)
    return score(adapters, numbers, spectra=True, exact_signs=exact_signs)


def advise_on_references(
    references: Sequence[str],
    *,
    hub: Hub,
    base: str | None = None,
    allow: Sequence[str] = (),
    max_rank: int = 64,
    progress: Progress = _silent,
) -> Advice:
    """Return which method, weights and rank the geometry of the adapters of ``references`` suggests, and why.

    Raises:
        IncompatibleAdapters: They cannot be merged at all.
    """
    adapters = _affordable(_open_all(references, hub, progress))
    compatibility = _checked(adapters, hub, base, allow)
    if not compatibility.compatible:
        raise IncompatibleAdapters(compatibility.report)
    return advise(adapters, score(adapters), compatibility, max_rank=max_rank)


def _open_all(references: Sequence[str | Path], hub: Hub, progress: Progress) -> list[Adapter]:
    budget().require_adapters(len(references))
    adapters = []
    for number, reference in enumerate(references):
        progress("pull", number, len(references))
        adapters.append(open_adapter(reference, hub=hub))
    progress("pull", len(adapters), len(adapters))
    return adapters


def merge_to_folder(
    recipe: Recipe,
    output: Path,
    *,
    hub: Hub,
    sources_from: Path = Path(),
    parents: Sequence[str | Path] = (),
    format: str = "peft",
    force: bool = False,
    picture: bool = False,
    progress: Progress = _silent,
) -> MergeRecord:
    """Carry out ``recipe``, write the composite to ``output`` and return its record; see ``run`` and ``save``."""
    output = output.expanduser()
    require_free(output, force, OWN_CONTENT)
    get_format(format).require_profile(recipe.profile)  # told before anything is downloaded
    composite = run(recipe, hub=hub, folder=sources_from, parents=parents, progress=progress)
    save(
        composite,
        output,
        format=format,
        force=force,
        picture=picture,
        base=_base_of(composite, hub),
        progress=progress,
    )
    return read_record(output)


def _base_of(composite: Composite, hub: Hub) -> Origin | None:
    """Return where the base is; asked only where the Hub was needed anyway, and never a reason to fail."""
    asked = not hub.offline and any(parent.origin.repo_id for parent in composite.parents)
    return base_origin(composite.base_model, hub) if asked and composite.base_model else None


def search(base_model: str | None = None, *, hub: Hub | None = None, **filters: Any) -> list[Listing]:
    """Return public adapters of the Hub, of one base model or of any; see ``Hub.search`` for the filters."""
    return (hub or Hub()).search(base_model, **filters)


def card_of(folder: Path, *, repo_id: str | None = None, write: bool = False) -> str:
    """Return the model card that the record in ``folder`` gives, with what the user wrote around ours.

    Args:
        folder: Folder of a composite.
        repo_id: Repository to name in the usage section.
        write: Write it to the folder's README.md.
    """
    text = render_card(read_record(folder), repo_id=repo_id, picture=_picture(folder))
    path = contained(folder, CARD_FILE)
    if path.is_file():
        text = update_card(path.read_text(encoding="utf-8"), text)
    if write:
        write_whole(path, text)
    return text


def _picture(folder: Path) -> str | None:
    return PICTURE_FILE if (folder / PICTURE_FILE).is_file() else None


# --- publishing -------------------------------------------------------------------------------------------------------


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    hub: Hub,
    private: bool | None = None,
    accept_unknown_license: bool = False,
    **asked: Any,
) -> Published:
    """Publish the composite in ``folder`` as one commit; see ``publish.publish_folder`` for what else may be asked.

    A new repository is private unless said otherwise if a parent is private or gated. The published card names the
    repository, and keeps what was written into the repository's card around ours. The licence of the base is looked
    up where the merge did not.

    Args:
        folder: Folder of a composite.
        repo_id: ``owner/name``, or ``name`` in the user's own namespace.
        hub: Connection with a token that may write.
        private: Visibility of a new repository.
        accept_unknown_license: Publish although the licence of a source is not known, or its terms are not.
        **asked: Further arguments of ``publish_folder``.

    Raises:
        AdapterNotFound: The folder holds no composite.
        AdapterFormatError: A file of it is a link that leads out of it.
        PublishError: The licences do not allow it, the Hub refused, or the repository changed meanwhile.
    """
    recorded = read_record(folder)
    if not asked.get("create_pr") and repo_id.lower() in {
        parent.repo_id.lower() for parent in recorded.parents if parent.repo_id
    }:
        raise PublishError(
            f"{repo_id} is a parent of this composite; publishing there would replace it.",
            remedy="Choose another repository, or open a pull request with --create-pr.",
        )
    names = [*PUBLISHED_FILES, *carried_names(recorded)]
    files = [name for name in names if contained(folder, name).is_file()]
    record, added = _with_base(recorded, folder, hub)
    require_lawful(verdict_of(record), repo_id, accept_unknown=accept_unknown_license)
    if private is None and not all(is_open(parent, hub) for parent in record.parents):
        private = True
    return publish_folder(
        folder,
        repo_id,
        hub=hub,
        files=files,
        private=private,
        texts=lambda full_id, published: {**added, **_card_to_publish(folder, record, full_id, published)},
        **asked,
    )


def _with_base(record: MergeRecord, folder: Path, hub: Hub) -> tuple[MergeRecord, dict[str, str]]:
    """Return the record with the base's licence, asked for where the merge did not, and the texts that it changes."""
    if record.base_license is not None or record.base_license_details.texts or record.base_model is None or hub.offline:
        return record, {}
    base = base_origin(record.base_model, hub)
    if base is None:
        return record, {}
    record = replace(record, base_license=base.license, base_license_details=base.license_details)
    carried = carried_texts(record, base, [Origin()] * len(record.parents))
    kept = {name: contained(folder, name) for name in carried_names(record)}
    there = {name: path.read_text(encoding="utf-8") for name, path in kept.items() if path.is_file()}
    return record, {**carried, **notice_texts(record, {**there, **carried}), RECORD_FILE: record.to_json()}


def require_lawful(verdict: LicenseVerdict, repo_id: str, *, accept_unknown: bool) -> None:
    """Raise ``PublishError`` if the licences of the sources do not allow to share what was made as ``repo_id``."""
    blockers = verdict.blockers_for(repo_id, accept_unknown=accept_unknown)
    if not blockers:
        return
    told = "\n".join(f"  - [{found.code}] {found.problem} {found.remedy}" for found in blockers)
    raise PublishError(
        f"The licences of its sources do not let this be published as {repo_id} (no legal advice):\n{told}",
        remedy="It may stay where it is: only publishing is refused.",
    )


def _card_to_publish(folder: Path, record: MergeRecord, repo_id: str, published: str | None) -> dict[str, str]:
    """Return the folder's card as it is to stand in ``repo_id``, which has the card ``published`` if any."""
    path = contained(folder, CARD_FILE)
    if not path.is_file():
        return {}
    local = path.read_text(encoding="utf-8")
    if card_of(folder) == local:  # nobody has edited our part
        local = update_card(local, render_card(record, repo_id=repo_id, picture=_picture(folder)))
    return {CARD_FILE: local if published is None else published_card(published, local)}


def is_open(source: Parent | Origin, hub: Hub) -> bool:
    """Whether anybody can read a source now; one that is gone or cannot be seen counts as closed."""
    if source.private or source.gated:
        return False
    if source.repo_id is None:
        return True
    try:
        now = hub.describe(Reference(source.repo_id, source.commit))
    except HubMergeError:
        return False
    return not (now.private or now.gated)


def push(adapter: Adapter, repo_id: str, *, token: str | bool | None = None, **asked: Any) -> Published:
    """Write ``adapter`` to a temporary folder and publish it; see ``push_folder`` for the arguments."""
    with workspace() as place:
        folder = save(adapter, place / "composite")
        return push_folder(folder, repo_id, hub=Hub(token=token), **asked)
