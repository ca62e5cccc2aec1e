"""The model card: what it says, that it cannot be made to say anything else, and that edits survive."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, groupby
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import EvalResultEntry, ModelCard, eval_result_entries_to_yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hub_merge import list_methods
from hub_merge.card import (
    END,
    START,
    benchmark_files,
    code_span,
    escape,
    published_card,
    render_card,
    render_licenses,
    update_card,
)
from hub_merge.errors import HubMergeError, RecipeError
from hub_merge.frontmatter import LicenseDetails
from hub_merge.licenses import TERMS, verdict_of
from hub_merge.measurements import Measurement
from hub_merge.methods import Method
from hub_merge.privacy import scrub
from hub_merge.recipe import MergeRecord, Parent, Recipe, Source

GOLDEN = Path(__file__).parent / "golden" / "card.md"
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
OUR_KEYS = {
    "base_model",
    "base_model_relation",
    "library_name",
    "pipeline_tag",
    "tags",
    "license",
    "license_name",
    "license_link",
    "hub_merge",
}
OWN_TERMS = LicenseDetails("card", "my terms", "https://example.org/terms")
TOKEN = "hf_" + "a1B2" * 8


# --- a record ---------------------------------------------------------------------------------------------------------


def parent(name: str, **changes: Any) -> Parent:
    plain = Parent(
        name=name,
        model=f"someone/{name}-lora@{'1f0c' * 10}",
        repo_id=f"someone/{name}-lora",
        commit="1f0c" * 10,
        subfolder="",
        files=(
            {"name": "adapter_config.json", "sha256": "0c" * 32, "size": 700},
            {"name": "adapter_model.safetensors", "sha256": "5e" * 32, "size": 1_860_000},
        ),
        base_model=BASE,
        license="apache-2.0",
        gated=False,
        private=False,
        weight=1.0,
        rank=4,
        scalings=(16.0, 16.0),
        modules=120,
        task_type="CAUSAL_LM",
        license_details=LicenseDetails("card"),
    )
    return replace(plain, **changes)


def pair(first: str, second: str, **changes: Any) -> dict[str, Any]:
    return {
        "first": first,
        "second": second,
        "rms_cosine": 0.201234,
        "chance": 0.002463,
        "times_chance": 84.9,
        "a_rows": 0.0382,
        "a_rows_chance": 0.0332,
        "norm_ratio": 1.123,
        "shared_modules": 120,
        **changes,
    }


PARENTS = (
    parent("math", license="mit"),
    parent("medicine", weight={"self_attn.v_proj": 0.5, "*": 1.0}, gated=True, subfolder="final"),
    parent(
        "finance",
        repo_id=None,
        commit=None,
        model="./finance",
        rank=8,
        scalings=(5.656854, 8.0),
        license=None,
        license_details=LicenseDetails(texts=(("LICENSE", "apache-2.0"), ("NOTICE", None))),
    ),
)

RECORD = MergeRecord(
    recipe=Recipe("sum", tuple(Source(item.model, item.weight) for item in PARENTS), base_model=BASE, dtype="float32"),
    parents=PARENTS,
    base_model=BASE,
    base_license="apache-2.0",
    base_commit="5b" * 20,
    output={
        "rank": 16,
        "dtype": "float32",
        "modules": 120,
        "task_type": "CAUSAL_LM",
        "files": [{"name": "adapter_model.safetensors", "sha256": "ab" * 32, "size": 7_400_000}],
    },
    findings=(
        {
            "severity": "caution",
            "code": "partial_overlap",
            "adapter": "finance",
            "where": "target_modules",
            "seen": "60 of 120 modules are adapted by all",
            "expected": "one set of modules",
            "remedy": "Nothing to do.",
            "overrule": None,
        },
    ),
    scores={
        "adapters": ["math", "medicine", "finance"],
        "norms": [3.1, 3.4, 1.2],
        "rms_cosine": 0.0789123,
        "retention": [1.21, 1.19, 1.04],
        "pairs": [
            pair("math", "medicine", a_rows=0.972),
            pair("math", "finance", rms_cosine=0.0212, norm_ratio=2.58),
            pair("medicine", "finance", rms_cosine=0.0143, norm_ratio=2.83),
        ],
    },
    proof={
        "passed": True,
        "tolerance": 1e-6,
        "max_error": 3.1e-8,
        "worst_module": "model.layers.7.self_attn.q_proj",
        "modules": 120,
        "reference": "definition",
        "distance_to_sum": 2.9e-8,
        "energy_kept": 1.0,
        "losses": [],
        "retention": [
            {"name": "math", "measured": 1.21, "predicted": 1.21},
            {"name": "medicine", "measured": 1.19, "predicted": 1.19},
            {"name": "finance", "measured": None, "predicted": None},
        ],
        "checks": [
            {"name": "parser", "passed": True, "detail": "safetensors reads 240 tensors of 240"},
            {"name": "modules", "passed": True, "detail": ""},
        ],
    },
    versions={"hub-merge": "0.1.0", "numpy": "2.4.0"},
    base_license_details=LicenseDetails("tag"),
)


def metadata(card: str) -> dict[str, Any]:
    content: dict[str, Any] = ModelCard(card).data.to_dict()
    return content


def body(card: str) -> str:
    text: str = ModelCard(card).text
    return text


# --- what it says -----------------------------------------------------------------------------------------------------


def test_the_card_is_the_reviewed_one() -> None:
    """Read the difference before you accept a new one: ``python -m tests.test_card`` writes it."""
    assert render_card(RECORD, repo_id="me/math-medicine", picture="orthogonality.png") == GOLDEN.read_text("utf-8")


def test_a_record_that_went_through_json_gives_the_same_card() -> None:
    assert render_card(MergeRecord.from_json(RECORD.to_json())) == render_card(RECORD)


def test_the_metadata_survive_the_hubs_own_reader() -> None:
    card = render_card(RECORD, repo_id="me/composite")

    assert yaml.safe_load(card.split("---\n")[1]) == metadata(card) == metadata(str(ModelCard(card)))
    assert metadata(card)["tags"] == [
        f"base_model:adapter:{BASE}",
        "lora",
        "transformers",
        "merge",
        "hub-merge",
        "hub-merge:sum",
        "merged_from:someone/math-lora",
        "merged_from:someone/medicine-lora",
    ]


def test_an_alias_of_a_method_is_tagged_by_its_name() -> None:
    assert (
        "hub-merge:sum"
        in metadata(render_card(replace(RECORD, recipe=replace(RECORD.recipe, merge_method="cat"))))["tags"]
    )


def test_the_machine_readable_block_names_method_parents_and_output() -> None:
    lego = replace(RECORD, recipe=replace(RECORD.recipe, merge_method="lego", rank=16, options={"starts": 3}, seed=5))
    block = metadata(render_card(lego))["hub_merge"]

    assert block["method"].items() >= {"name": "lego", "rank": 16, "seed": 5}.items()
    assert block["method"]["options"].items() >= {"starts": 3, "feature": "raw"}.items()
    assert [entry.get("repo_id", entry.get("name")) for entry in block["parents"]] == [
        "someone/math-lora",
        "someone/medicine-lora",
        "finance",
    ]
    assert block["parents"][1]["weight"] == {"self_attn.v_proj": 0.5, "*": 1.0}
    assert block["output"] == {"rank": 16, "dtype": "float32", "sha256": "ab" * 32}
    assert block["rms_cosine"] == 0.07891


def test_shards_are_all_named() -> None:
    shards = [{"name": f"adapter_model-{n}.safetensors", "sha256": f"{n}" * 64, "size": 1} for n in (1, 2)]
    block = metadata(render_card(replace(RECORD, parents=(parent("math", files=shards),))))["hub_merge"]

    assert block["parents"][0]["sha256"] == ["1" * 64, "2" * 64]


@pytest.mark.parametrize("base", [None, "../models/llama", "/data/llama", "C:\\llama", "a b", ""])
def test_a_base_that_is_no_hub_id_is_left_out(base: str | None) -> None:
    card = render_card(replace(RECORD, base_model=base))

    assert not {"base_model", "base_model_relation"} & metadata(card).keys()
    assert not any(tag.startswith("base_model:") for tag in metadata(card)["tags"])
    assert 'from_pretrained("BASE_MODEL")' in card


def test_parents_of_different_tasks_give_no_pipeline_tag() -> None:
    mixed = replace(RECORD, parents=(parent("a"), parent("b", task_type="SEQ_CLS")))

    assert metadata(render_card(RECORD))["pipeline_tag"] == "text-generation"
    assert "pipeline_tag" not in metadata(render_card(mixed))
    assert "vllm serve" not in render_card(mixed)


@pytest.mark.parametrize(
    ("stated", "loader"),
    [(("CAUSAL_LM", None), "AutoModelForCausalLM"), (("CAUSAL_LM", "SEQ_CLS"), "AutoModelForCausalLM")],
)
def test_usage_loads_the_task_that_was_written(stated: tuple[str | None, str | None], loader: str) -> None:
    record = replace(
        RECORD, parents=tuple(parent(name, task_type=task) for name, task in zip("ab", stated, strict=True))
    )
    card = render_card(record)

    assert f"base = {loader}.from_pretrained" in card
    assert ("vllm serve" in card) is ("pipeline_tag" in metadata(card)) is (None in stated)


@pytest.mark.parametrize("written", [None, "OTHER", ["CAUSAL_LM"]])
def test_usage_of_no_task_that_is_known_loads_the_plain_model(written: Any) -> None:
    card = render_card(replace(RECORD, output={**RECORD.output, "task_type": written}))

    assert "base = AutoModel.from_pretrained" in card and "pipeline_tag" not in metadata(card)


@pytest.mark.parametrize(
    ("licenses", "base", "expected"),
    [
        (("mit", "apache-2.0"), "apache-2.0", {"license": "apache-2.0"}),
        (("mit", None), "apache-2.0", {}),
        (
            ("mit", "gemma"),
            "llama3.1",
            {"license": "other", "license_name": "composite", "license_link": "LICENSES.md"},
        ),
    ],
)
def test_licence_fields_follow_the_verdict(
    licenses: Sequence[str | None], base: str, expected: Mapping[str, str]
) -> None:
    parents = tuple(parent(f"p{number}", license=license) for number, license in enumerate(licenses))
    found = metadata(render_card(replace(RECORD, parents=parents, base_license=base)))

    assert {key: found[key] for key in ("license", "license_name", "license_link") if key in found} == expected


def test_the_licence_section_lists_every_source_what_is_owed_and_that_it_is_no_advice() -> None:
    parents = (parent("math", license="mit"), parent("law", license="other", license_details=OWN_TERMS))
    card = body(render_card(replace(RECORD, parents=parents, base_license="llama3.1")))
    section = card[card.index("## Licence") : card.index("## Limits")]

    assert "| someone/math-lora | mit | card | mit |" in section
    assert "| someone/law-lora | other (my terms), `https://example.org/terms` | card | other |" in section
    assert "This composite: `other` (composite)." in section
    assert f"someone/math-lora states mit, but it is derived from {BASE}, so that llama3.1 holds for it too" in section
    assert "- someone/law-lora states other (my terms), whose terms are not in our table." in section
    assert "begin the name of the model with “Llama” (s. 1.b.i)" in section
    assert "It is not legal advice." in section
    assert card.index("**Built with Llama**") < card.index("## Lineage")


def test_a_composite_that_may_not_be_shared_says_so() -> None:
    card = render_card(replace(RECORD, parents=(parent("math", license="cc-by-nd-4.0"),)))
    assert "- **Not to be shared.** cc-by-nd-4.0 holds for someone/math-lora" in card


def test_the_list_of_licences_says_what_the_card_says() -> None:
    listed = render_licenses(verdict_of(replace(RECORD, base_license="llama3.1")))
    assert listed.startswith("# Licences\n\n| Source |") and "not legal advice" in listed
    assert listed.removeprefix("# Licences\n\n") in render_card(replace(RECORD, base_license="llama3.1"))


def test_a_shared_initialisation_is_warned_of_and_only_then() -> None:
    assert "**Shared initialisation.**" in render_card(RECORD)
    apart = [pair("math", "medicine"), pair("math", "finance", a_rows=None)]
    assert "Shared initialisation" not in render_card(replace(RECORD, scores={**RECORD.scores, "pairs": apart}))


ALONE = {**RECORD.scores, "adapters": ["math"], "pairs": [], "rms_cosine": None, "retention": [1.0]}
LOST = {"module": "layers.3.q_proj", "rank": 2, "lost": 0.0456, "share": 0.25}


def test_one_adapter_has_no_pair_and_no_division_by_nothing() -> None:
    card = render_card(replace(RECORD, parents=(parent("math"),), scores=ALONE))

    assert "was made from [`someone/math-lora`](" in card
    assert "## Retention" in card and "Orthogonality" not in body(card) and "bibtex" not in card
    assert "rms_cosine" not in metadata(card)["hub_merge"]


def test_a_compressed_adapter_speaks_of_its_one_parent_and_of_what_was_lost() -> None:
    recipe = Recipe("svd", (Source("o/a"),), rank="auto", energy=0.95)
    proof = {**RECORD.proof, "energy_kept": 0.9512, "distance_to_sum": 0.2209, "losses": [LOST]}
    card = render_card(replace(RECORD, recipe=recipe, parents=(parent("math"),), scores=ALONE, proof=proof))

    assert (
        "- Rank: 4 in, 16 out (the smallest that keeps 95.0 % of the squared norm of the delta of its parent)." in card
    )
    assert "- Distance to the delta of its parent: 0.221 (Frobenius norm, relative)." in card
    assert "- Squared norm, relative to that of the delta of its parent: 95.1 %." in card
    assert "\n\nThe modules that are farthest from the delta of its parent:\n\n| Module | Rank |" in card
    assert "\n| `layers.3.q_proj` | 2 | 4.56 % | 25.0 % |\n\n## Retention\n" in card
    assert "parents" not in body(card).replace("hub_merge.json", "")
    assert metadata(card)["hub_merge"]["method"].items() >= {"name": "svd", "rank": "auto", "energy": 0.95}.items()


def test_a_rank_for_each_module_is_told_with_who_can_read_it() -> None:
    recipe = replace(RECORD.recipe, rank=3, profile="peft")
    card = render_card(replace(RECORD, recipe=recipe, output={**RECORD.output, "ranks": {"1": 1, "16": 119}}))

    assert "- Rank: 4, 4 and 8 in, 1 to 16 out.\n- Rank by module: 1 in 1 module and 16 in 119 modules." in card
    assert "an alpha equal to the rank in every module" in card and "`lora_alpha == r`" not in card
    assert "vLLM, llama.cpp's converter and other loaders that pass over `rank_pattern`" in card
    assert "vllm serve" not in card and "`profile: portable`" in card
    assert "profile: peft" in body(card)


def test_a_mean_is_measured_against_itself_but_not_in_a_record_of_an_older_version() -> None:
    mean = replace(RECORD, recipe=replace(RECORD.recipe, merge_method="mean"))
    older = replace(mean, proof={key: value for key, value in RECORD.proof.items() if key != "losses"})

    assert "- Distance to the exact combination of the deltas: 2.90e-8" in render_card(mean)
    assert "- Distance to the exact weighted sum of the deltas: 2.90e-8" in render_card(older)


def test_pairs_without_a_score_show_a_dash() -> None:
    nothing = pair("math", "medicine", rms_cosine=None, chance=None, a_rows=None, a_rows_chance=None, norm_ratio=None)
    card = render_card(replace(RECORD, scores={**RECORD.scores, "pairs": [nothing]}))

    assert "| `math`, `medicine` | – | – | – | – | – | 120 |" in card


def test_many_pairs_are_cut_to_the_most_similar() -> None:
    names = [f"n{number}" for number in range(8)]
    pairs = [
        pair(first, second, rms_cosine=(i + j) / 100)
        for i, first in enumerate(names)
        for j, second in enumerate(names)
        if i < j
    ]
    card = render_card(
        replace(RECORD, scores={**RECORD.scores, "adapters": names, "pairs": pairs, "retention": [1.0] * 8})
    )

    assert "The 10 most similar pairs:" in card
    assert card.count("| `n6`, `n7` |") == 1
    assert "| `n0`, `n1` |" not in card


def test_a_method_that_is_not_installed_is_named_without_a_formula() -> None:
    card = render_card(replace(RECORD, recipe=replace(RECORD.recipe, merge_method="theirs", options={"top": 2})))

    assert "`theirs` comes from a package that was not installed" in card
    assert "- Option `top`: `2`." in card


def test_options_that_the_method_here_does_not_know_are_shown_as_they_are() -> None:
    card = render_card(replace(RECORD, recipe=replace(RECORD.recipe, options={"older": 1})))

    assert "- Option `older`: `1`." in card


def test_lego_cites_its_paper() -> None:
    assert "2409.16167" not in render_card(RECORD)
    assert "@inproceedings{zhao2025merging" in render_card(
        replace(RECORD, recipe=replace(RECORD.recipe, merge_method="lego"))
    )


@pytest.mark.parametrize(
    "method", [method for method in list_methods() if method.paper], ids=lambda method: method.name
)
def test_every_method_cites_its_own_paper(method: Method) -> None:
    for record in (RECORD, replace(RECORD, parents=RECORD.parents[:1])):
        card = render_card(replace(record, recipe=replace(record.recipe, merge_method=method.name, options={})))
        citation = card.partition("## Citation")[2]
        if len(record.parents) > 1 or method.paper != "2508.11985":  # which tells of sums, and one adapter is none
            assert citation.count(method.paper) == (1 if f"= {{{method.paper}}}" in citation else 2)


def test_a_method_of_no_paper_asks_for_no_citation() -> None:
    record = replace(RECORD, recipe=replace(RECORD.recipe, merge_method="magnitude_prune", options={}))
    assert "cite it too" not in render_card(record)


def test_a_failed_proof_says_so() -> None:
    failed = {**RECORD.proof, "passed": False, "max_error": None, "distance_to_sum": None, "energy_kept": None}
    card = render_card(replace(RECORD, proof={**failed, "reference": "recomputed"}))

    assert "The proof **failed**" in card
    assert "the method run again from the parents" in card
    assert "Distance to" not in card


@pytest.mark.parametrize(("rank", "flag"), [(4, "--max-lora-rank 8 "), (16, "--max-lora-rank 16 "), (17, "rank 32 ")])
def test_vllm_is_told_the_next_rank_it_takes(rank: int, flag: str) -> None:
    assert flag in render_card(replace(RECORD, output={**RECORD.output, "rank": rank}))


def test_a_rank_beyond_vllm_is_said() -> None:
    assert "400 may be more than your version accepts" in render_card(
        replace(RECORD, output={**RECORD.output, "rank": 400})
    )


def test_the_recipe_in_the_card_reads_back_as_the_recipe() -> None:
    found = re.search(r"```yaml\n(.*?)\n```", render_card(RECORD), re.DOTALL)

    assert found
    assert Recipe.from_yaml(found[1]) == RECORD.recipe


def test_no_code_block_of_the_snippets_is_broken_python() -> None:
    for repo_id in (None, "me/composite"):
        (snippet,) = re.findall(r"```python\n(.*?)```", render_card(RECORD, repo_id=repo_id), re.DOTALL)
        compile(snippet, "card", "exec")


# --- text from elsewhere ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"login with {TOKEN} now", "login with (token removed) now"),
        (f"https://user:{TOKEN}@huggingface.co/a/b", "https://user:(token removed)@huggingface.co/a/b"),
        ("hf_oauth_eyJhbGciOiJFZERTQSJ9.eyJpc3M-x.abc_d", "(token removed)"),
        ("/home/jane/models/math", "(path removed)"),
        ("trained on /data/llama, rank 4", "trained on (path removed), rank 4"),
        ("'/mnt/Jane Doe/x'", "'(path removed)'"),
        ("base=/models", "base=(path removed)"),
        ("host:/srv/llama", "host:(path removed)"),
        ("-I/home/jane/x", "-I(path removed)"),
        ("//nas/share/x", "(path removed)"),
        ("file:///home/jane/x", "(path removed)"),
        ("~/models/llama", "(path removed)"),
        ("~jane/models", "(path removed)"),
        ("C:\\Users\\Jane Doe\\llama", "(path removed)"),
        ("d:/models/llama", "(path removed)"),
        ("\\\\nas\\share\\llama", "(path removed)"),
        ("openai-community/gpt2", "openai-community/gpt2"),
        ("./medicine", "./medicine"),
        ("https://huggingface.co/a/b/tree/main", "https://huggingface.co/a/b/tree/main"),
        ("lora_alpha / r and/or alpha/sqrt(r)", "lora_alpha / r and/or alpha/sqrt(r)"),
        ("hf_hub_download", "hf_hub_download"),
    ],
)
def test_paths_and_tokens_are_removed_and_nothing_else(text: str, expected: str) -> None:
    assert scrub(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("self_attn.q_proj", "self_attn.q_proj"),
        ("_all_ *bold* ~x~", r"\_all\_ \*bold\* \~x\~"),
        ("a|b", "a&#124;b"),
        ("<b> & `c`", r"&#60;b&#62; &#38; \`c\`"),
        ("[x](y)", r"\[x\](y)"),
        ("# head", r"\# head"),
        ("1. item", r"1\. item"),
        ("2.4.0", "2.4.0"),
        ("a\nb\u2028c\x00\u202ed\u200be\ud800", "a b c de"),
        ("$$x$$", "&#36;&#36;x&#36;&#36;"),
        ("x" * 500, "x" * 399 + "…"),
    ],
)
def test_escaped_text_has_no_meaning(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_a_token_cannot_hide_behind_invisible_characters() -> None:
    assert "hf_" not in escape(TOKEN[:10] + "\u200b" + TOKEN[10:])


def test_code_spans_hold_whatever_is_in_them() -> None:
    assert code_span("a`b|c\nd") == "`aˋb¦c d`"
    assert code_span(" \u200b") == "–"


NASTY = [
    "---\nlicense: mit\n---",
    "\n---\nevil: true\n",
    "x\nevil: true",
    "'\"\n: - {}[]&*!|>%@`",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    END,
    f"\n{END}\n{START}\n",
    "[click](https://evil.example)",
    "![x](https://evil.example/x.png)",
    "https://evil.example/x",
    "www.evil.example",
    "me@evil.example",
    "<https://evil.example>",
    "[x]: https://evil.example",
    "a | b | c",
    "\\| x \\",
    "`code` ``more`` ```",
    "\n```\n# Evil\n```\n",
    "~~~",
    "# Evil",
    "\n\n## Evil\n\n",
    "- item",
    "1. item",
    "Evil\n===",
    "{{ 7 * 7 }}{% raw %}",
    "{{ record.__class__ }}",
    "$$\\href{x}{y}$$",
    "\u202egnp.exe\u2066",
    "\ud800\x00\x1b[31m\x07",
    "&lt;b&gt; &#60;",
    "!!python/object/apply:os.system ['x']",
    TOKEN,
    "/home/jane/secret",
    "C:\\Users\\jane\\secret",
    "",
    "null",
    "../../etc",
]

hostile = st.lists(st.sampled_from(NASTY) | st.text(max_size=12), min_size=1, max_size=3).map("".join)


def hostile_details(texts: Iterator[str]) -> LicenseDetails:
    return LicenseDetails(next(texts), next(texts), next(texts), ((next(texts), "llama3.1"), (next(texts), None)))


@st.composite
def hostile_records(draw: st.DrawFn) -> MergeRecord:
    """A record of sound shape in which every text is somebody else's."""
    texts = cycle(draw(st.lists(hostile, min_size=7, max_size=7)))
    known, weighted = draw(st.booleans()), draw(st.booleans())
    names = [f"{next(texts)}{number}" for number in range(2)]
    parents = tuple(
        parent(
            name,
            model=next(texts),
            repo_id=None if known else next(texts),
            commit=next(texts),
            subfolder=next(texts),
            files=({"name": next(texts) + ".safetensors", "sha256": next(texts), "size": 1},),
            base_model=next(texts),
            license="other" if known else next(texts),
            license_details=hostile_details(texts),
            weight={next(texts): 0.5, next(texts): 1.0} if weighted else 1.0,
            task_type=next(texts),
        )
        for name in names
    )
    fields = ("severity", "code", "adapter", "where", "seen", "expected", "remedy")
    recipe = Recipe(
        "lego" if known else next(texts),
        tuple(Source(item.model, item.weight) for item in parents),
        base_model=next(texts),
        options={next(texts): next(texts)},
        dtype=next(texts),
        allow=(next(texts),),
    )
    return replace(
        RECORD,
        recipe=recipe,
        parents=parents,
        base_model=BASE if known else next(texts),
        base_license=next(texts),
        base_license_details=hostile_details(texts),
        output={
            **RECORD.output,
            "dtype": next(texts),
            "files": [{"name": next(texts) + ".safetensors", "sha256": next(texts), "size": 1}],
        },
        findings=({field: next(texts) for field in fields},),
        scores={**RECORD.scores, "adapters": names, "pairs": [pair(*names, a_rows=0.9)], "retention": [1.0, 1.0]},
        proof={
            **RECORD.proof,
            "worst_module": next(texts),
            "retention": [{"name": name, "measured": 1.0, "predicted": 1.0} for name in names],
            "checks": [{"name": next(texts), "passed": True, "detail": next(texts)}],
        },
        versions={"hub-merge": next(texts), next(texts): next(texts)},
    )


def tables(text: str) -> Iterator[list[str]]:
    for is_table, lines in groupby(text.splitlines(), key=lambda line: line.startswith("|")):
        if is_table:
            yield list(lines)


HEADINGS = re.findall(r"^## .*$", body(render_card(RECORD)), re.MULTILINE)
LICENSE_LINK = "|".join(re.escape(terms.url) for terms in TERMS.values())
ALLOWED_LINK = re.compile(
    rf"https://huggingface\.co/[\w.-]+|https://arxiv\.org/abs/|orthogonality\.png$|(?:{LICENSE_LINK})$"
)
LIVE_LINK = re.compile(r"(?:https?|ftp)://|\bwww\.|[\w.+-]+@[\w-]+\.\w", re.IGNORECASE)


@settings(max_examples=150, deadline=None)
@given(hostile_records())
def test_hostile_text_adds_no_key_tag_link_heading_or_column(record: MergeRecord) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    card = render_card(record, repo_id="me/composite", picture="orthogonality.png")

    found = metadata(card)
    assert found.keys() <= OUR_KEYS
    assert found["library_name"] == "peft"
    assert found.get("license", "other") in {*TERMS, "other"}
    assert card.splitlines().count(START) == card.splitlines().count(END) == 1

    text = body(card)
    tokens = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    inline = [child for token in tokens for child in token.children or ()]
    assert [token.content.strip() for token in tokens if token.type == "html_block"] == [START, END]
    assert not [child.content for child in inline if child.type == "html_inline"]
    links = [
        child.attrs.get("href", child.attrs.get("src")) for child in inline if child.type in ("link_open", "image")
    ]
    assert all(ALLOWED_LINK.match(link) for link in links)
    assert not [child.content for child in inline if child.type == "text" and LIVE_LINK.search(child.content)]
    assert [
        f"## {tokens[at + 1].content}" for at, token in enumerate(tokens) if token.tag == "h2" and token.nesting == 1
    ] == (HEADINGS)
    assert sum(token.tag in ("h1", "h3", "h4", "h5", "h6") and token.nesting == 1 for token in tokens) == 1
    for lines in tables(text):
        assert len({line.count("|") for line in lines}) == 1
    assert update_card(card, card) == card


@settings(max_examples=60, deadline=None)
@given(hostile_records())
def test_no_token_path_or_invisible_character_ever_gets_out(record: MergeRecord) -> None:
    card = render_card(record)

    assert "jane" not in card
    assert TOKEN not in card
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", card)


def test_upstream_text_is_never_run_as_a_template() -> None:
    card = render_card(replace(RECORD, parents=(parent("{{ 7 * 7 }}", repo_id=None),)))

    assert "`{{ 7 * 7 }}` (local folder)" in card


# --- an existing card -------------------------------------------------------------------------------------------------

NEW = render_card(RECORD, repo_id="me/composite")


def test_an_update_keeps_what_the_user_wrote_around_it() -> None:
    mine = NEW.replace(f"{START}\n", f"Read this first.\n\n{START}\n") + "\n## My notes\n\n---\n\nGood with rhymes.\n"
    mine = mine.replace("library_name: peft", "library_name: peft\nlanguage:\n- en\nmodel-index: []")
    mine = mine.replace("- lora\n", "- lora\n- medical\n- merged_from:gone/parent\n")
    mine = mine.replace("## Lineage", "## Lineage of an older merge")

    updated = update_card(mine, NEW)

    assert "Read this first.\n\n" + START in updated
    assert updated.endswith(f"{END}\n\n## My notes\n\n---\n\nGood with rhymes.\n")
    assert "older merge" not in updated
    assert metadata(updated).items() >= {"language": ["en"], "library_name": "peft"}.items()
    assert metadata(updated)["tags"] == [*metadata(NEW)["tags"], "medical"]
    assert update_card(updated, NEW) == updated


def test_updating_a_card_with_itself_changes_nothing() -> None:
    assert update_card(NEW, NEW) == NEW


def test_our_keys_win() -> None:
    old = "---\nbase_model: someone/else\nlicense: mit\ntags: chat\n---\nMine.\n"
    updated = metadata(update_card(old, NEW))

    assert (updated["base_model"], updated["license"]) == (BASE, "apache-2.0")
    assert updated["tags"] == [*metadata(NEW)["tags"], "chat"]


@pytest.mark.parametrize(
    "old",
    [
        "# Mine\n\nMy text.\n",
        "---\nlanguage: en\n---\n# Mine\n\nMy text.\n",
        "\ufeff---\r\nlanguage: en\r\n---\r\n# Mine\r\n\r\nMy text.\r\n",
        "---\n---\n# Mine\n\nMy text.",
        f"# Mine\n{END}\n\nMy text.\n{START}\n",
    ],
)
def test_a_card_without_our_markers_keeps_its_body_above(old: str) -> None:
    text = body(update_card(old, NEW))

    assert text.lstrip().startswith("# Mine\n")
    assert text.index("My text.") < text.index(START)
    assert text.count(START) == text.count(END) == 1
    assert update_card(update_card(old, NEW), NEW) == update_card(old, NEW)


def test_an_empty_card_becomes_the_new_one() -> None:
    assert update_card("", NEW) == NEW


def test_a_licence_of_ours_that_no_longer_holds_is_dropped_and_the_users_own_stays() -> None:
    unknown = render_card(replace(RECORD, base_license=None))
    other = render_card(replace(RECORD, base_license="gemma", parents=(parent("a", license="llama3.1"),)))

    assert "license" not in metadata(update_card(NEW, unknown))
    assert "license_name" not in metadata(update_card(other, NEW))
    chosen = unknown.replace("library_name: peft", "library_name: peft\nlicense: mit")
    assert metadata(update_card(chosen, unknown))["license"] == "mit"


def test_what_was_written_on_the_hub_stays_around_an_untouched_card() -> None:
    published = NEW.replace("library_name: peft", "library_name: peft\nlanguage: en") + "\nTheir notes.\n"
    newer = render_card(replace(RECORD, base_license="mit"), repo_id="me/composite")

    card = published_card(published, newer)
    assert card.endswith(f"{END}\n\nTheir notes.\n") and metadata(card)["language"] == "en"
    assert body(newer).strip() in card
    assert published_card(card, newer) == card


def test_what_was_written_around_the_local_card_is_published() -> None:
    published = NEW.replace("library_name: peft", "library_name: peft\nlanguage: en") + "\nOld notes.\n"
    local = NEW + "\nNew notes.\n"

    card = published_card(published, local)
    assert body(card) == body(local) and metadata(card)["language"] == "en"
    assert published_card(card, local) == card


@pytest.mark.parametrize("front", ["a: [", "- just\n- a list", "a: 1\n a: 2"])
def test_metadata_that_cannot_be_read_is_refused_with_a_remedy(front: str) -> None:
    with pytest.raises(HubMergeError, match=r"metadata of the existing README\.md") as caught:
        update_card(f"---\n{front}\n---\nMine.\n", NEW)
    assert caught.value.remedy


# --- what was measured ------------------------------------------------------------------------------------------------

MEASURED = (
    Measurement("openai/gsm8k", "test", "perplexity", 3.25, "answers only, float32", 200, (3.01, 3.5), config="main"),
    Measurement("openai/gsm8k", "test", "accuracy", 0.125, "greedy, 0 shots", 200, config="main"),
    Measurement("Idavidrein/gpqa", "", "accuracy", 0.25, "greedy", benchmark="gpqa_diamond", revision="ab" * 20),
    Measurement("openai/gsm8k", "test", "perplexity", 5.5, "answers only, float32", 200, subject="base", config="main"),
)


def test_a_composite_without_measured_results_says_so_and_states_none() -> None:
    card = render_card(RECORD)
    assert "Not evaluated." in card and "model-index" not in metadata(card)
    assert not benchmark_files(RECORD)


def test_measured_results_become_the_model_index_that_the_hub_reads() -> None:
    card = ModelCard(render_card(replace(RECORD, measured=MEASURED), repo_id="me/math-medicine"))
    assert card.data.model_name == "math-medicine"
    read = {
        (entry.dataset_type, entry.dataset_config, entry.dataset_split, entry.metric_type): entry.metric_value
        for entry in card.data.eval_results
    }
    assert read == {
        ("openai/gsm8k", "main", "test", "perplexity"): 3.25,
        ("openai/gsm8k", "main", "test", "accuracy"): 0.125,
        ("Idavidrein/gpqa", None, None, "accuracy"): 0.25,
    }
    assert {entry.task_type for entry in card.data.eval_results} == {"text-generation"}


def test_the_table_shows_what_was_measured_beside_the_composite_too() -> None:
    section = body(render_card(replace(RECORD, measured=MEASURED))).partition("## Evaluation")[2].partition("\n## ")[0]
    assert "| this one | `openai/gsm8k`, `main`, `test` | perplexity | 3.25 | 3.01 to 3.50 | 200 |" in section
    assert "| `base` | `openai/gsm8k`, `main`, `test` | perplexity | 5.50 | – | 200 |" in section
    assert "Not evaluated" not in section and "nobody else has confirmed it" in section


def test_results_on_registered_benchmarks_are_files_of_their_own() -> None:
    (name,) = files = benchmark_files(replace(RECORD, measured=MEASURED))
    assert name == ".eval_results/Idavidrein-gpqa.yaml"
    entry = EvalResultEntry("Idavidrein/gpqa", "gpqa_diamond", 0.25, dataset_revision="ab" * 20, notes="greedy")
    assert yaml.safe_load(files[name]) == eval_result_entries_to_yaml([entry])


def test_a_benchmark_that_is_no_id_of_the_hub_gets_no_file() -> None:
    for dataset in ("../../etc", "/data/gpqa", "two words"):
        assert not benchmark_files(replace(RECORD, measured=(replace(MEASURED[2], dataset=dataset),)))


def test_measured_results_survive_the_record() -> None:
    record = replace(RECORD, measured=MEASURED)
    assert MergeRecord.from_json(record.to_json()) == record
    assert "measured" not in json.loads(RECORD.to_json())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "high", None, True])
def test_a_result_that_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(RecipeError, match="perplexity on gsm8k is no finite number"):
        Measurement("gsm8k", "test", "perplexity", value, "somehow")


def test_results_that_the_user_added_stay_beside_ours() -> None:
    new = render_card(replace(RECORD, measured=MEASURED[:1]))
    ours = metadata(new)["model-index"][0]["results"][0]
    other = {**ours, "metrics": [{"type": "accuracy", "value": 1}]}
    theirs = {**other, "dataset": {"name": "mine", "type": "me/mine"}}
    older = {**ours, "metrics": [{"type": "perplexity", "value": 1}]}
    front = yaml.safe_dump({"model-index": [{"name": "x", "results": [older, other, theirs]}]})
    updated = update_card(f"---\n{front}---\nMine.\n", new)
    (index,) = metadata(updated)["model-index"]
    figures = [(result["dataset"]["type"], result["metrics"]) for result in index["results"]]  # by data set, as read
    assert figures == [("openai/gsm8k", [*ours["metrics"], *other["metrics"]]), ("me/mine", theirs["metrics"])]
    assert update_card(updated, new) == updated


if __name__ == "__main__":
    GOLDEN.write_text(render_card(RECORD, repo_id="me/math-medicine", picture="orthogonality.png"), encoding="utf-8")
