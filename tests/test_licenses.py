"""The licence that a composite may state."""

from __future__ import annotations

import re
from itertools import combinations_with_replacement, permutations
from pathlib import Path

import pytest

from hub_merge.licenses import FREEDOM, united

HUB_LIST = Path(__file__).parent / "hub_double" / "cards.py"


@pytest.mark.parametrize(
    ("base", "parents", "expected"),
    [
        ("apache-2.0", ["apache-2.0", "apache-2.0"], "apache-2.0"),
        ("apache-2.0", ["mit", "cc0-1.0"], "apache-2.0"),
        ("llama3.1", ["apache-2.0", "mit"], "llama3.1"),
        ("apache-2.0", ["cc-by-nc-4.0"], "cc-by-nc-4.0"),
        ("MIT ", ["mit"], "mit"),
        ("gemma", ["llama3.1"], "other"),
        ("mit", ["bsd-3-clause"], "other"),
        ("apache-2.0", ["gpl-2.0"], "other"),
        ("apache-2.0", ["gpl-3.0"], "gpl-3.0"),
        ("other", ["other"], "other"),
        ("apache-2.0", ["a licence of my own"], "other"),
        (None, ["mit"], None),
        ("mit", [None], None),
        ("mit", ["unknown"], None),
        ("mit", [""], None),
    ],
)
def test_looser_licences_flow_into_one_stricter_and_the_rest_is_other(
    base: str | None, parents: list[str | None], expected: str | None
) -> None:
    verdict = united(base, parents)

    assert verdict.identifier == expected
    assert verdict.name == ("composite" if expected == "other" else None)


def test_the_order_of_sources_does_not_matter() -> None:
    some = ["mit", "apache-2.0", "gemma", "cc-by-4.0", None]
    for sources in combinations_with_replacement(some, 3):
        verdicts = {united(first, rest).identifier for first, *rest in permutations(sources)}
        assert len(verdicts) == 1


def test_a_verdict_is_never_looser_than_a_source() -> None:
    for pair in combinations_with_replacement(sorted(FREEDOM), 2):
        identifier = united(pair[0], [pair[1]]).identifier
        assert identifier == "other" or FREEDOM[str(identifier)] == max(FREEDOM[source] for source in pair)


def test_notes_name_who_said_what() -> None:
    mixed = united("llama3.1", ["gemma", "mit"], names=["a/math", "b/law"])
    assert mixed.stated == (("the base model", "llama3.1"), ("a/math", "gemma"), ("b/law", "mit"))
    assert "gemma keeps holding for a/math." in mixed.notes

    assert "apache-2.0 (parent 1, parent 2)" in united("gemma", ["apache-2.0", "apache-2.0"]).notes[0]
    assert "b/law" in united("mit", ["mit", None], names=["a/math", "b/law"]).notes[0]
    assert "does not permit" in united("cc-by-nd-4.0", ["cc-by-nd-4.0"]).notes[0]
    assert united("mit", ["mit"]).notes == ()


def test_every_licence_of_the_hubs_list_has_a_class() -> None:
    found = re.search(r'LICENSES = """(.*?)"""', HUB_LIST.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    assert set(found[1].split()) - {"other", "unknown"} == FREEDOM.keys()
