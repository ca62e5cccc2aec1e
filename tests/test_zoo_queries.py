"""Questions to an index: planted copies, families and partners are found, and exact cosines decide where they can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hub_merge.errors import MergeError
from hub_merge.zoo.composing import compose
from hub_merge.zoo.entries import Entry
from hub_merge.zoo.exact import exact_cosine
from hub_merge.zoo.families import families
from hub_merge.zoo.fingerprint import fingerprint
from hub_merge.zoo.index import Index
from hub_merge.zoo.loaded import Loaded
from hub_merge.zoo.picture import draw_map
from hub_merge.zoo.queries import complement, far, fit_together, near
from hub_merge.zoo.sketch import bound
from tests.zoos import BASE, FAMILY, Factors, gpt2_factors, in_memory, planted_factors

COUNT, LAYERS = 40, 2


@pytest.fixture(scope="module")
def adapters() -> dict[str, Factors]:
    return {repo_id: factors for repo_id, _, factors in planted_factors(COUNT, LAYERS)}


def entry_of(name: str, factors: Factors, **fields: Any) -> Entry:
    known = {"license": "apache-2.0", "weights_hash": name.replace("copier", "author"), **fields}
    found = fingerprint(in_memory(name, factors), known.get("base", BASE))
    return Entry(**{"key": name, "repo_id": name, "commit": "0" * 40, "base": BASE, "fingerprint": found, **known})


@pytest.fixture(scope="module")
def zoo(adapters: dict[str, Factors], tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    pytest.importorskip("pyarrow")
    index = Index.create(tmp_path_factory.mktemp("index") / "zoo")
    with index.writing() as writer:
        for number, (name, factors) in enumerate(adapters.items()):
            same = "author/run-0-step-0" if name == "copier/run-0-again" else name
            writer.put(entry_of(name, factors, weights_hash=same, downloads=number, tags=("lora", name[:6])))
    return Loaded.read(index)


def asked(zoo: Loaded, key: str) -> Entry:
    place = zoo.place(key)
    assert place is not None
    return zoo.entry(place)


def test_estimates_of_pairs_lie_within_the_bound_of_the_exact_cosines(
    zoo: Loaded, adapters: dict[str, Factors]
) -> None:
    opened = [in_memory(name, factors) for name, factors in sorted(adapters.items())]
    pairs = [(i, j) for i in range(COUNT) for j in range(i)]
    within = 0
    for i, j in pairs:
        exact = exact_cosine(opened[i], opened[j])
        assert exact is not None
        one, other = zoo.entry(i).fingerprint, zoo.entry(j).fingerprint
        assert one is not None
        assert other is not None
        estimate = one.cosine(other)
        assert estimate is not None
        within += abs(estimate - exact) <= bound(exact)
    assert within >= 0.95 * len(pairs)


def test_the_exact_cosine_is_that_of_the_dense_deltas(adapters: dict[str, Factors]) -> None:
    names = ["author/run-0-step-0", "author/run-0-step-1", "maths/apart-0-6", "maths/apart-0-7"]
    one, two, three, four = (in_memory(name, adapters[name]) for name in names)
    for first, second in ((one, two), (one, three), (three, four)):
        x, y = (
            np.concatenate([adapter.factors(module).delta().ravel() for module in sorted(adapter.modules)])
            for adapter in (first, second)
        )
        expected = float(x @ y) / float(np.linalg.norm(x) * np.linalg.norm(y))
        assert exact_cosine(first, second) == pytest.approx(expected, abs=1e-6)
    assert exact_cosine(three, four) == 0


def test_near_finds_the_copy_first_then_the_family(zoo: Loaded) -> None:
    found = near(zoo, asked(zoo, "author/run-0-step-0"), limit=6)
    assert found[0].entry.key == "copier/run-0-again"
    assert found[0].relation == "same file"
    assert {match.entry.key for match in found[1:5]} == {f"author/run-0-step-{step}" for step in range(1, FAMILY)}
    assert {match.relation for match in found[1:5]} == {"one run"}
    assert found[5].relation == "unrelated"


def test_a_copy_that_was_saved_anew_has_the_same_delta(zoo: Loaded, adapters: dict[str, Factors]) -> None:
    found = near(zoo, asked(zoo, "author/run-1-step-0"), limit=1)
    assert (found[0].entry.key, found[0].relation) == ("copier/run-1-again", "same delta")
    scaled = {module: type(part)(part.A, part.B, 3.0) for module, part in adapters["author/run-1-step-0"].items()}
    found = near(zoo, entry_of("me/scaled", scaled), limit=2)
    assert {match.relation for match in found} == {"scaled copy"}


def test_an_adapter_with_turned_sign_is_opposed(zoo: Loaded, adapters: dict[str, Factors]) -> None:
    turned = {module: type(part)(part.A, part.B, -1.0) for module, part in adapters["author/run-2-step-0"].items()}
    assert near(zoo, entry_of("me/turned", turned), limit=1)[0].relation == "opposed"


def test_far_and_complement_leave_the_family_out(zoo: Loaded) -> None:
    for answer in (far, complement):
        found = answer(zoo, asked(zoo, "author/run-0-step-0"), limit=20)
        assert len(found) == 20
        assert not any("run-0-" in match.entry.key for match in found)


def test_exact_cosines_find_the_orthogonal_one_that_sketches_cannot_tell(
    zoo: Loaded, adapters: dict[str, Factors]
) -> None:
    mine = in_memory("me", adapters["maths/apart-0-6"])

    def exact(entry: Entry) -> float | None:
        return exact_cosine(mine, in_memory(entry.key, adapters[entry.key]))

    found = far(zoo, asked(zoo, "maths/apart-0-6"), limit=30, exact=exact)
    assert {match.entry.key for match in found[:4]} == {f"maths/apart-{group}-7" for group in range(4)}
    assert [match.cosine for match in found[:4]] == [0] * 4
    sizes = [abs(match.cosine or 0) for match in found]
    assert sizes == sorted(sizes)


def test_partners_have_a_licence_that_fits_and_a_norm_of_the_same_order(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    index = Index.create(tmp_path / "zoo")
    mine = entry_of("me/mine", gpt2_factors(0, 1))
    weak = {module: type(part)(part.A, part.B, 0.01) for module, part in gpt2_factors(1, 1).items()}
    with index.writing() as writer:
        writer.put(entry_of("a/weak", weak))
        writer.put(entry_of("a/silent", gpt2_factors(2, 1), license=None))
        writer.put(entry_of("a/no-derivatives", gpt2_factors(3, 1), license="cc-by-nd-4.0"))
        writer.put(entry_of("a/good", gpt2_factors(4, 1), license="mit"))
        writer.put(entry_of("a/other-base", gpt2_factors(5, 1), base="distilbert/distilgpt2"))
        writer.put(entry_of("a/untrained", {m: type(p)(p.A, p.B * 0) for m, p in gpt2_factors(6, 1).items()}))
    zoo = Loaded.read(index)
    assert [match.entry.key for match in complement(zoo, mine)] == ["a/good", "a/weak"]
    anyone = {match.entry.key for match in complement(zoo, mine, any_license=True)}
    assert anyone == {"a/good", "a/weak", "a/silent", "a/no-derivatives"}
    with pytest.raises(MergeError, match="its delta is zero"):
        near(zoo, asked(zoo, "a/untrained"))


@pytest.mark.parametrize(
    ("license", "other", "fits"),
    [
        ("mit", "apache-2.0", True),
        ("mit", None, False),
        (None, "mit", True),
        ("mit", "cc-by-nd-4.0", False),
        ("llama3", "gemma", False),
    ],
)
def test_licences_fit_as_the_table_of_terms_says(license: str | None, other: str | None, fits: bool) -> None:
    assert fit_together(license, other) is fits


def test_families_are_those_that_were_planted(zoo: Loaded, tmp_path: Path) -> None:
    found = families(zoo)
    members = {frozenset(member.key for member in family.members) for family in found.families}
    expected = {
        frozenset([*(f"author/run-{group}-step-{step}" for step in range(FAMILY)), f"copier/run-{group}-again"])
        for group in range(COUNT // 10)
    }
    assert members == expected
    assert all(family.deltas == FAMILY for family in found.families)
    assert {family.files for family in found.families} == {FAMILY, FAMILY + 1}  # one copy is the same file
    assert all(family.cohesion == pytest.approx(1 / 1.09, abs=0.03) for family in found.families)
    draw_map(found, tmp_path / "map.svg")
    drawn = (tmp_path / "map.svg").read_text(encoding="utf-8")
    assert drawn.startswith("<?xml")
    draw_map(found, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text(encoding="utf-8") == drawn


def test_a_family_lies_together_on_the_map(zoo: Loaded) -> None:
    found = families(zoo)
    row_of = {int(place): row for row, place in enumerate(found.places)}
    centres = np.stack([found.map[[row_of[p] for p in family.places]].mean(axis=0) for family in found.families])
    spread = [
        np.linalg.norm(found.map[[row_of[p] for p in f.places]] - c, axis=1).max()
        for f, c in zip(found.families, centres, strict=True)
    ]
    apart = [np.linalg.norm(a - b) for i, a in enumerate(centres) for b in centres[:i]]
    assert max(apart) > 3 * max(spread)


def test_a_proposal_takes_one_adapter_a_skill_and_no_two_of_one_family(zoo: Loaded) -> None:
    proposal = compose(zoo, ["maths", "author"], 3)
    assert proposal.skills == ("maths", "maths", "author")
    assert len({entry.key for entry in proposal.entries}) == 3
    assert proposal.interference == 0
    assert len(proposal.pairs) == 3
    assert all(abs(pair.estimate) < bound(0) * 2 for pair in proposal.pairs)
    alike = compose(zoo, ["run-3-step"], 2)
    norms = [entry.fingerprint.norm for entry in alike.entries if entry.fingerprint]
    expected = alike.pairs[0].estimate * max(norms) / min(norms)
    assert alike.interference == pytest.approx(expected, rel=1e-6)


def test_a_proposal_that_cannot_be_made_is_refused(zoo: Loaded) -> None:
    with pytest.raises(MergeError, match="has cooking in its name or tags"):
        compose(zoo, ["maths", "cooking"])
    with pytest.raises(MergeError, match="1 adapters cannot have 2 skills"):
        compose(zoo, ["maths", "author"], 1)


def test_an_index_of_untrained_adapters_has_no_families(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    index = Index.create(tmp_path / "zoo")
    found = families(Loaded.read(index))
    assert found.families == ()
    assert found.map.shape == (0, 2)
