"""What a composite may state, what it owes, and what may not be shared."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import combinations_with_replacement, permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub_merge.frontmatter import LicenseDetails, license_in_card
from hub_merge.licenses import TERMS, Licensed, LicenseVerdict, prescribed_notice, recognise, terms_files, united
from hub_merge.licenses.expressions import alternatives
from hub_merge.licenses.terms import CLASHES, LIGHT, Duty

HUB_LIST = Path(__file__).parent / "hub_double" / "cards.py"
BASE = "acme/base"

APACHE_OPENING = """
                                 Apache License
                           Version 2.0, January 2004
   TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION
"""
MIT = """MIT License

Copyright (c) 2024 Someone

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""
LLAMA_LINE = (
    "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."
)
LLAMA_3_1 = f"""**LLAMA 3.1 COMMUNITY LICENSE AGREEMENT**

 Llama 3.1 Version Release Date: July 23, 2024

          iii. You must retain in all copies of the Llama Materials that you distribute the following attribution
notice within a “Notice” text file distributed as a part of such copies: “{LLAMA_LINE}”
"""
"""Title and section 1.b.iii of https://github.com/meta-llama/llama-models/blob/main/models/llama3_1/LICENSE ."""
GEMMA = """Gemma Terms of Use

You must include the use restrictions referenced in Section 3.2 as an enforceable provision in any agreement.

All Distributions (other than through a Hosted Service) must be accompanied by a "Notice" text file that contains the
following notice: "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms".
"""


def verdict(base: str | None, *parents: str | None) -> LicenseVerdict:
    """Return the verdict on parents called ``a/0``, ``a/1``, …"""
    return united(Licensed(BASE, base), [Licensed(f"a/{number}", stated) for number, stated in enumerate(parents)])


def codes(verdict: LicenseVerdict, repo_id: str = "me/composite", **asked: bool) -> set[str]:
    return {blocker.code for blocker in verdict.blockers_for(repo_id, **asked)}


# --- one licence for all ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "parents", "expected"),
    [
        ("apache-2.0", ["apache-2.0", "apache-2.0"], "apache-2.0"),
        ("apache-2.0", ["mit", "cc0-1.0"], "apache-2.0"),
        ("llama3.1", ["apache-2.0", "mit"], "llama3.1"),
        ("mit", ["llama3.1"], "llama3.1"),
        ("apache-2.0", ["cc-by-nc-4.0"], "cc-by-nc-4.0"),
        ("MIT ", ["mit"], "mit"),
        ("gemma", ["gemma", "mit"], "gemma"),
        ("gemma", ["llama3.1"], "other"),
        ("mit", ["bsd-3-clause"], "other"),
        ("apache-2.0", ["gpl-2.0"], "other"),
        ("apache-2.0", ["gpl-3.0"], "gpl-3.0"),
        ("apache-2.0", ["gpl"], "gpl-3.0"),
        ("gpl", ["gpl-3.0"], "gpl-3.0"),
        ("gpl-3.0", ["agpl-3.0"], "agpl-3.0"),
        ("mpl-2.0", ["gpl-3.0"], "gpl-3.0"),
        ("cc-by-nc-4.0", ["cc-by-nc-sa-4.0"], "cc-by-nc-sa-4.0"),
        ("cc-by-sa-3.0", ["cc-by-sa-4.0"], "cc-by-sa-4.0"),
        ("cc-by-sa-4.0", ["gpl-3.0"], "gpl-3.0"),
        ("llama3.1", ["cc-by-nc-4.0"], "other"),
        ("llama3.1", ["creativeml-openrail-m"], "other"),
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
    found = verdict(base, *parents)

    assert found.identifier == expected
    assert (found.name, found.link) == (("composite", "LICENSES.md") if expected == "other" else (None, None))


def test_the_order_of_sources_does_not_matter() -> None:
    some = ["mit", "apache-2.0", "gemma", "cc-by-4.0", "mpl-2.0", "gpl", "cc-by-nc-2.0 OR llama3.1", None]
    for sources in combinations_with_replacement(some, 3):
        verdicts = [verdict(first, *rest) for first, *rest in permutations(sources)]
        assert len({found.identifier for found in verdicts}) == 1
        assert len({frozenset(found.obligations) for found in verdicts}) == 1
        assert len({frozenset(blocker.code for blocker in found.blockers) for found in verdicts}) == 1


def test_a_verdict_is_never_looser_than_a_source() -> None:
    for pair in combinations_with_replacement(sorted(TERMS), 2):
        identifier = verdict(pair[0], pair[1]).identifier
        if identifier != "other":
            owed = TERMS[pair[0]].duties | TERMS[pair[1]].duties
            assert owed - LIGHT <= TERMS[str(identifier)].duties, pair


def test_what_holds_side_by_side_is_owed_in_full() -> None:
    found = verdict("llama3.1", "cc-by-nc-4.0", "mit")

    owed = {(obligation.license, obligation.duty) for obligation in found.obligations}
    assert {
        ("llama3.1", "naming"),
        ("llama3.1", "user limit"),
        ("cc-by-nc-4.0", "non-commercial"),
        ("mit", "notice"),
    } <= owed
    assert {obligation.url for obligation in found.obligations if obligation.license == "cc-by-nc-4.0"} == {
        "https://creativecommons.org/licenses/by-nc/4.0/legalcode"
    }
    assert (found.prefixes, found.displays) == (("Llama",), ("Built with Llama",))
    assert found.notices == (("llama3.1", LLAMA_LINE),)
    assert not found.blockers


def test_notes_name_who_said_what() -> None:
    mixed = verdict("llama3.1", "cc-by-nc-4.0", "mit")
    assert [(source.who, source.stated) for source in mixed.sources] == [
        (BASE, "llama3.1"),
        ("a/0", "cc-by-nc-4.0"),
        ("a/1", "mit"),
    ]
    assert "cc-by-nc-4.0 keeps holding for a/0." in mixed.notes

    assert "apache-2.0 (a/0 and a/1)" in verdict("gemma", "apache-2.0", "apache-2.0").notes[0]
    assert "a/1" in verdict("mit", "mit", None).notes[0]
    assert verdict("mit", "mit").notes == ()
    assert verdict("mit", "mine").notes[-1] == "mine keeps holding for a/0."


# --- what may be shared -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "parent", "clauses"),
    [
        ("llama3.1", "gemma", ["gemma s. 3.1", "llama3.1 s. 1.b.i"]),
        (
            "gemma",
            "llama3",
            ["gemma s. 3.1", "llama3 s. 1.b.v: do not improve language models other than Meta Llama 3"],
        ),
        ("llama3.1", "agpl-3.0", ["agpl-3.0 s. 5(c)", "llama3.1 s. 1.b.i"]),
        ("gpl-3.0", "cc-by-nc-4.0", ["gpl-3.0 s. 5(c)", "cc-by-nc-4.0 s. 2(a)(1)"]),
        ("cc-by-sa-4.0", "cc-by-nc-sa-4.0", ["s. 3(b)"]),
        ("cc-by-sa-4.0", "gpl-2.0", ["cc-by-sa-4.0 s. 3(b)", "gpl-2.0 s. 2(b)"]),
        ("odbl", "mpl-2.0", ["odbl s. 4.4", "mpl-2.0 s. 3.1"]),
        ("gpl-3.0", "openrail", ["gpl-3.0 s. 5(c)", "openrail s. 4(a)"]),
        ("apache-2.0", "gpl-2.0", ["GPL 2.0 s. 6", "Apache 2.0 s. 3"]),
    ],
)
def test_what_no_licence_satisfies_is_not_shared_and_the_clauses_are_named(
    base: str, parent: str, clauses: list[str]
) -> None:
    for first, second in ((base, parent), (parent, base)):
        found = verdict(first, second)
        assert found.identifier == "other"
        (blocker,) = found.blockers_for("me/Llama-3-composite", accept_unknown=True)
        assert blocker.code == "terms_clash"
        assert "a/0" in blocker.problem and BASE in blocker.problem
        assert all(clause in blocker.problem for clause in clauses)
        assert blocker.remedy


@pytest.mark.parametrize("stated", ["cc-by-nd-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-nd-3.0"])
def test_no_derivatives_is_not_shared(stated: str) -> None:
    where = "s. 3" if stated.endswith("3.0") else "s. 2(a)(1)(B)"
    (blocker,) = verdict("apache-2.0", "mit", stated).blockers_for("me/x", accept_unknown=True)
    assert blocker.code == "no_derivatives"
    assert blocker.problem.startswith(f"{stated} holds for a/1") and where in blocker.problem
    assert blocker.remedy.startswith("Merge without a/1")

    (of_base,) = verdict(stated, "mit").blockers
    assert of_base.remedy.startswith("Take another base model")


@pytest.mark.parametrize(
    ("base", "parent", "code", "who"),
    [
        ("mit", None, "license_unknown", "a/0"),
        (None, "mit", "license_unknown", BASE),
        ("mit", "other", "license_unread", "a/0"),
        ("mit", "a licence of my own", "license_unread", "a/0 states a licence of my own"),
        ("intel-research", "mit", "license_unread", BASE),
        ("intel-research", "llama3.1", "license_unread", BASE),
    ],
)
def test_what_is_not_known_needs_the_flag(base: str | None, parent: str | None, code: str, who: str) -> None:
    found = verdict(base, parent)
    (blocker,) = found.blockers_for("me/Llama-x")
    assert blocker.code == code and who in blocker.problem
    assert blocker.overrule == "--accept-unknown-license" and blocker.overrule in blocker.remedy
    assert codes(found, "me/Llama-x", accept_unknown=True) == set()


@pytest.mark.parametrize(
    ("license", "name", "fits"),
    [
        ("llama3.1", "me/math-medicine", False),
        ("llama3.1", "me/Llama-3.1-math", True),
        ("llama3.1", "llama-math", True),
        ("llama3.1", "llama/math", False),
        ("llama3.1", "me/MetaLlama-math", False),
        ("llama4", "me/LlamaMath", True),
        ("llama3", "me/Llama-math", False),
        ("llama3", "me/Llama-3-math", True),
        ("llama3", "me/llama3-math", True),
        ("llama2", "me/math", True),
        ("gemma", "me/math", True),
    ],
)
def test_names_of_repositories_begin_as_the_licence_says(license: str, name: str, fits: bool) -> None:
    assert codes(verdict(license, "mit"), name, accept_unknown=True) == (set() if fits else {"name_prefix"})


def test_a_wrong_name_comes_with_the_clause_and_a_right_one() -> None:
    (blocker,) = verdict("llama3", "llama3.1").blockers_for("me/math")
    assert "“Llama 3”" in blocker.problem and "llama3 s. 1.b.i" in blocker.problem
    assert blocker.remedy == "Publish as me/Llama-3-math."
    assert codes(verdict("llama3", "llama3.1"), "me/Llama-3-math") == set()


def test_the_line_says_the_licence_the_name_and_what_is_in_the_way() -> None:
    assert verdict("mit", "mit").line() == "mit"
    assert verdict("llama3.1", "mit").line() == "llama3.1, named “Llama…”"
    assert verdict("llama3.1", "gemma").line() == "other, named “Llama…”; not to be shared as it is (terms_clash)"
    assert verdict(None, "mit").line() == f"none as long as that of {BASE} is not known"


# --- what sources say -------------------------------------------------------------------------------------------------


def test_an_adapter_that_claims_less_than_its_base_is_corrected() -> None:
    found = verdict("llama3.1", "mit", "llama3.1", "cc-by-nc-4.0")
    assert found.corrections == (f"a/0 states mit, but it is derived from {BASE}, so that llama3.1 holds for it too.",)
    assert verdict("apache-2.0", "mit").corrections == ()


def of_text(stated: str | None, *texts: tuple[str, str | None], name: str | None = None) -> LicenseVerdict:
    details = LicenseDetails("card" if stated else None, name, None, texts)
    return united(Licensed(BASE, "mit"), [Licensed("a/0", stated, details)])


def test_a_licence_file_tells_what_the_card_does_not() -> None:
    found = of_text(None, ("LICENSE", "apache-2.0"))
    assert (found.identifier, found.blockers) == ("apache-2.0", ())
    assert (found.sources[1].stated, found.sources[1].found_in) == (None, "LICENSE")
    assert of_text("other", ("LICENSE", "gemma")).identifier == "gemma"
    assert codes(of_text(None, ("LICENSE", None), ("NOTICE", None))) == {"license_unknown"}


def test_a_licence_file_that_says_more_than_the_card_is_kept_too() -> None:
    found = of_text("mit", ("LICENSE", "llama3.1"))
    assert found.identifier == "llama3.1"
    assert found.corrections == ("a/0 states mit, but its LICENSE is the text of llama3.1: both are kept.",)
    assert of_text("mit", ("LICENSE", "mit")).corrections == ()


def test_a_licence_of_its_own_name_is_recognised() -> None:
    assert of_text("other", name="llama3").identifier == "llama3"
    assert of_text("other", name="llama-3.1-community-license").identifier == "llama3.1"
    assert of_text("other", name="gemma-terms-of-use").identifier == "gemma"
    assert of_text("other", name="mine").sources[1].stated == "other (mine)"


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("apache-2.0", [{"apache-2.0"}]),
        ("Apache-2.0", [{"apache-2.0"}]),
        ("apache-2.0 OR mit", [{"apache-2.0"}, {"mit"}]),
        ("apache-2.0 and mit", [{"apache-2.0", "mit"}]),
        ("(MIT OR Apache-2.0) AND CC-BY-NC-4.0", [{"mit", "cc-by-nc-4.0"}, {"apache-2.0", "cc-by-nc-4.0"}]),
        ("Apache-2.0 WITH LLVM-exception", [{"apache-2.0"}]),
        ("GPL-2.0-or-later", [{"gpl-2.0"}, {"gpl-3.0"}]),
        ("GPL-2.0+ AND mit", [{"gpl-2.0", "mit"}, {"gpl-3.0", "mit"}]),
        ("GPL-3.0-or-later", [{"gpl-3.0"}]),
        ("GPL-2.0-only", [{"gpl-2.0"}]),
        ("openrail++", [{"openrail++"}]),
        ("mit AND", [{"other"}]),
        ("mit AND theirs", [{"mit", "other"}]),
        ("()", [{"other"}]),
        ("mit AND (", [{"other"}]),
        ("Unknown", []),
        (None, []),
    ],
)
def test_expressions_are_choices_of_licences_that_hold_together(stated: str | None, expected: list[set[str]]) -> None:
    assert [set(choice) for choice in alternatives(stated)] == expected


def test_a_choice_is_made_where_it_leaves_least_in_the_way() -> None:
    assert verdict("apache-2.0", "gpl-2.0 OR mit").identifier == "apache-2.0"
    assert verdict("apache-2.0", "GPL-2.0-or-later").identifier == "gpl-3.0"
    assert verdict("mit", "cc-by-nd-4.0 OR cc-by-nc-4.0").identifier == "cc-by-nc-4.0"
    assert codes(verdict("llama3.1", "gemma AND mit"), "me/Llama-x") == {"terms_clash"}


WORDS = ["mit", "llama3.1", "gemma", "theirs", "AND", "OR", "WITH", "(", ")", "+", "/", "\n", "é"]


@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=4), max_size=60).map(" ".join))
def test_no_statement_breaks_the_verdict(stated: str) -> None:
    found = verdict("llama3.1", stated)
    assert found.identifier in {"llama3.1", "other", None}


def test_many_choices_do_not_take_long() -> None:
    many = " AND ".join(f"(x{number} OR y{number})" for number in range(30))
    assert len(alternatives(many)) == 1


def test_a_card_may_list_several_licences() -> None:
    assert license_in_card({"license": ["mit", "apache-2.0"]}) == ("mit AND apache-2.0", LicenseDetails("card"))
    assert license_in_card({}, ["gemma"]) == ("gemma", LicenseDetails("tag"))
    assert license_in_card({"license": "mit"}, ["gemma"]) == ("mit", LicenseDetails("card"))
    assert license_in_card({"license": 5}) == (None, LicenseDetails())
    hostile = {"license": ["mit", "</td><script>"], "license_name": "a\nb", "license_link": "javascript:alert(1) x"}
    assert license_in_card(hostile) == ("mit AND other", LicenseDetails("card"))
    assert license_in_card({"license": "other", "license_name": "mine", "license_link": "LICENSE"}) == (
        "other",
        LicenseDetails("card", "mine", "LICENSE"),
    )


# --- texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (APACHE_OPENING, "apache-2.0"),
        (MIT, "mit"),
        (MIT.replace("\n", " ").upper(), "mit"),
        (MIT + "\nOur modification: whoever has more than 100 users shows our logo. " * 8, None),
        ("This model is under the MIT License.", None),
        (LLAMA_3_1, "llama3.1"),
        (LLAMA_3_1.replace("3.1", "3.2"), "llama3.2"),
        (GEMMA, "gemma"),
        ("My own words about it. " * 60 + LLAMA_3_1, None),
        ("", None),
    ],
)
def test_texts_are_recognised_whole_and_mentions_are_not(text: str, expected: str | None) -> None:
    assert recognise(text) == expected


COMMON = Path("/usr/share/common-licenses")


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("Apache-2.0", "apache-2.0"),
        ("BSD", "bsd-3-clause"),
        ("CC0-1.0", "cc0-1.0"),
        ("GPL-2", "gpl-2.0"),
        ("GPL-3", "gpl-3.0"),
        ("LGPL-2.1", "lgpl-2.1"),
        ("LGPL-3", "lgpl-3.0"),
        ("MPL-2.0", "mpl-2.0"),
        ("Artistic", None),
    ],
)
def test_the_texts_that_debian_ships_are_recognised(file: str, expected: str | None) -> None:
    if not (COMMON / file).is_file():
        pytest.skip(f"no {COMMON / file} here")
    assert recognise((COMMON / file).read_text(encoding="utf-8")) == expected


def test_our_own_licence_file_is_recognised() -> None:
    assert recognise((Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")) == "apache-2.0"


def test_the_prescribed_line_is_the_texts_own() -> None:
    assert prescribed_notice(LLAMA_3_1) == LLAMA_LINE == TERMS["llama3.1"].notice
    assert prescribed_notice(GEMMA) == TERMS["gemma"].notice
    assert prescribed_notice(MIT) is None


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine", encoding="utf-8")
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "LICENSE").symlink_to(tmp_path / "secret")
    (folder / "NOTICE").write_text("yours", encoding="utf-8")
    assert terms_files(folder) == {"NOTICE": "yours"}


def test_only_texts_are_taken_from_a_folder(tmp_path: Path) -> None:
    for name in ("LICENSE", "LICENSE-MIT.md", "NOTICE.txt", "USE_POLICY.md", "COPYING", "license.txt"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    (tmp_path / "LICENSE.bin").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "LICENSE.huge").write_text("x" * 300_000)
    (tmp_path / "LICENSES").mkdir()
    (tmp_path / "README.md").write_text("no")
    assert set(terms_files(tmp_path)) == {
        *("LICENSE", "LICENSE-MIT.md", "NOTICE.txt", "USE_POLICY.md", "COPYING", "license.txt")
    }


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_licence_of_the_hubs_list_is_in_the_table() -> None:
    found = re.search(r'LICENSES = """(.*?)"""', HUB_LIST.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    assert set(found[1].split()) - {"other", "unknown"} == TERMS.keys()


def test_the_table_is_whole() -> None:
    for terms in TERMS.values():
        assert terms.url.startswith("https://") and terms.title
        assert set(terms.into) <= TERMS.keys() - {terms.id}
        assert all(clause.where and clause.says for clause in terms.clauses)
        assert bool(terms.prefix) == (Duty.NAMING in terms.duties)
    assert all(pair <= TERMS.keys() for pair in CLASHES)


def test_a_single_identifier_is_read_without_the_library_of_expressions() -> None:
    program = """
import sys
from hub_merge.licenses import Licensed, united
united(Licensed("base", "llama3.1"), [Licensed("a", "other"), Licensed("b", None)])
print("license_expression" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
