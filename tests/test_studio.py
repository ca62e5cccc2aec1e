"""What the page decides, without a browser: links, commands, controls, limits, visits, failures and markup."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pytest

from hub_merge.errors import BudgetExceeded, HubMergeError, MergeError, RecipeError
from hub_merge.findings import Report, problem
from hub_merge.formats.tensors import WRITABLE
from hub_merge.methods import list_methods
from hub_merge.pipeline import merge
from hub_merge.recipe import Recipe, Source
from hub_merge.scores import Scoring, modules_of, parents_of
from hub_merge.studio import catalog, looking, making
from hub_merge.studio.commands import merge_command, merge_snippet
from hub_merge.studio.controls import Settings, controls_of, recipe_of, settings_of
from hub_merge.studio.failures import failure_of
from hub_merge.studio.limits import Limits, limits
from hub_merge.studio.links import from_query, to_query
from hub_merge.studio.samples import address_of, normal, samples
from hub_merge.studio.sessions import address, own_token
from hub_merge.studio.views import judgement, lists
from hub_merge.studio.views.markup import el
from hub_merge.studio.visits import tidy, visiting
from tests.helpers import adapter_of, dense_sum, random_factors
from tests.hub_double import HubDouble
from tests.space.serving import fill

ROOT = Path(__file__).parents[1]
PAIR = ["examples/zoo/math", "examples/zoo/medicine"]
RECIPE = Recipe("sum", (Source(PAIR[0]), Source(PAIR[1])))


# --- links, commands, controls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        replace(RECIPE, models=(Source("a/b@main:sub", -0.5), Source("c/d", 1e-3)), merge_method="ties"),
        replace(RECIPE, merge_method="lego", rank=4, options={"clustering": "ward", "starts": 3}, seed=7),
        replace(RECIPE, rank="auto", energy=0.9, dtype="bfloat16", base_model="x/y", allow=("a", "b"), extras="drop"),
    ],
)
def test_a_link_brings_a_recipe_back(recipe: Recipe) -> None:
    assert from_query(dict(parse_qsl(to_query(recipe)))) == recipe
    assert recipe_of([source.model for source in recipe.models], settings_of(recipe)) == recipe


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({"a": "/etc/passwd"}, "no files"),
        ({"a": "x/y", "weights": "1,2"}, "1 adapters and 2 weights"),
        ({"a": "x/y", "weights": "nan"}, "finite"),
        ({"a": "x/y", "rank": "-1"}, "whole number"),
        ({"a": "x/y", "method": "ties", "option.density": "9"}, "density"),
        ({"a": "x/y", "option.nothing": "1"}, "no option nothing"),
        ({"a": "x/y", "dtype": ""}, None),
    ],
)
def test_a_link_that_says_nonsense_is_refused(query: dict[str, str], told: str | None) -> None:
    if told is None:
        assert from_query(query) == Recipe("sum", (Source("x/y"),))
    else:
        with pytest.raises((RecipeError, MergeError), match=told):
            from_query(query)


def test_no_adapter_is_no_recipe() -> None:
    assert from_query({"method": "ties"}) is None
    assert to_query(None) == ""


def test_the_command_and_the_snippet_give_the_same_file_byte_for_byte(tmp_path: Path) -> None:
    recipe = recipe_of(
        PAIR,
        Settings(method="dare_ties", weights=(1.0, 0.5), seed=3, rank="fixed", rank_number=6, options={"density": 0.5}),
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    words = shlex.split(merge_command(recipe, str(tmp_path / "command")))
    snippet = merge_snippet(recipe, str(tmp_path / "snippet"))
    for command in ([sys.executable, "-m", "hub_merge", *words[1:]], [sys.executable, "-c", snippet]):
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=120)
    one, two = (tmp_path / name / "adapter_model.safetensors" for name in ("command", "snippet"))
    assert one.read_bytes() == two.read_bytes()


def test_every_option_of_every_method_has_a_control_that_gives_its_default_back() -> None:
    for method in list_methods():
        controls = controls_of(method)
        assert [control.name for control in controls] == [option.name for option in method.options]
        defaults = method.parse_options({control.name: control.default for control in controls})
        assert defaults == method.parse_options({})
        for control in controls:
            assert control.help, f"{method.name}.{control.name} is not explained"
            assert (control.kind == "slider") == (control.high is not None)


def test_dtypes_of_the_page_are_those_that_can_be_written() -> None:
    for dtype in WRITABLE:
        assert recipe_of(PAIR, Settings(dtype=dtype)).dtype == dtype


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["/etc", "./a/b", "../a", "~/x", "C:\\x", "\\\\host\\x", "a/../b", "examples/zoo/../math"]
)
def test_nothing_of_this_machine_has_an_address(text: str) -> None:
    with pytest.raises(RecipeError):
        address_of(text)


def test_a_name_of_the_hub_is_no_path_even_where_a_folder_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert address_of("owner/name") == "hf://owner/name"
    assert address_of("owner/name@refs/pr/1:sub") == "hf://owner/name@refs%2Fpr%2F1/sub"
    assert not Path(address_of("owner/name")).exists()
    assert normal(" https://huggingface.co/owner/name/tree/main/sub ") == "owner/name@main:sub"


def test_the_samples_are_there() -> None:
    assert list(samples()) == [f"examples/zoo/{name}" for name in ("finance", "math", "medicine")]


# --- geometry ---------------------------------------------------------------------------------------------------------


def test_retention_for_any_weights_is_that_of_the_dense_deltas(rng: np.random.Generator) -> None:
    shapes = {"h.0": (7, 5), "h.1": (6, 8)}
    adapters = [
        adapter_of("a", {name: random_factors(rng, shape, 2) for name, shape in shapes.items()}),
        adapter_of("b", {name: random_factors(rng, shape, 3, scaling=0.5) for name, shape in shapes.items()}),
        adapter_of("c", {"h.0": random_factors(rng, shapes["h.0"], 1)}),
    ]
    scoring = Scoring(adapters)
    for name in modules_of(adapters):
        scoring.add(scoring.measure(name, parents_of(adapters, name)))
    products = scoring.products()
    deltas = [
        np.concatenate([dense_sum([adapter.factors(name, shape)]).ravel() for name, shape in shapes.items()])
        for adapter in adapters
    ]
    weights = [0.7, -1.2, 2.0]
    merged = sum(weight * delta for weight, delta in zip(weights, deltas, strict=True))
    wanted = [float(merged @ delta / (delta @ delta)) for delta in deltas]
    assert products.retention(weights) == pytest.approx(wanted)
    split = shapes["h.0"][0] * shapes["h.0"][1]
    shares = np.concatenate([np.full(split, 1 / 3), np.full(len(deltas[0]) - split, 1 / 2)])
    mean = next(method for method in list_methods() if method.name == "mean")
    wanted = [float((shares * merged) @ delta / (delta @ delta)) for delta in deltas]
    assert products.retention(weights, mean.coefficients) == pytest.approx(wanted)
    composite = merge(adapters, "mean", weights=[0.7, 0.0, 2.0], base="org/base")
    merged = np.concatenate([composite.factors(name).delta().ravel() for name in shapes])
    wanted = [float(merged @ delta / (delta @ delta)) for delta in deltas]
    assert products.retention([0.7, 0.0, 2.0], mean.coefficients) == pytest.approx(wanted)


# --- one visitor ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_of(hub_lfs: HubDouble, monkeypatch: pytest.MonkeyPatch) -> HubDouble:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub_lfs.endpoint)
    template = f"{hub_lfs.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_TOKEN", hub_lfs.token("alice"))
    fill(hub_lfs)
    return hub_lfs


def test_an_anonymous_visit_sends_no_token_though_this_machine_has_one(hub_of: HubDouble) -> None:
    with visiting(None) as hub:
        catalog.find("math", hub=hub)
        looking.look(["carol/math-lora"], hub=hub, limits=Limits())
    assert hub_of.requests
    assert not [request for request in hub_of.requests if "authorization" in request.headers]


def test_what_is_closed_is_kept_apart_and_gone_after_the_visit(hub_of: HubDouble, tmp_path: Path) -> None:
    from huggingface_hub import constants

    pair = ["bob/secret-lora", "carol/math-lora"]
    with visiting(hub_of.token("bob")) as hub:
        measured = looking.measure(pair, hub=hub, limits=Limits())
        assert measured.scores.rms_cosine
    kept = [path.name for path in Path(constants.HF_HUB_CACHE).glob("models--*")]
    assert kept == ["models--carol--math-lora"]


def test_an_adapter_lists_itself_and_others_of_its_base(hub_of: HubDouble) -> None:
    with visiting(None) as hub:
        rows = catalog.detailed(catalog.find("carol/math-lora", hub=hub), hub=hub)
    assert rows[0].reference == "carol/math-lora"
    assert "dave/medicine-lora" in [row.reference for row in rows]
    broken = next(row for row in rows if row.reference == "ivan/broken")
    assert broken.trouble
    assert all(row.rank == 4 for row in rows if not row.trouble and not row.gated)


def test_limits_are_judged_before_anything_is_downloaded(hub_of: HubDouble) -> None:
    pair = ["carol/math-lora", "dave/medicine-lora"]
    with visiting(None) as hub:
        with pytest.raises(BudgetExceeded, match=r"3\.75 MB of weights together"):
            looking.measure(pair, hub=hub, limits=Limits(max_bytes=10**6))
        with pytest.raises(BudgetExceeded, match="merges at most 1"):
            making.make(recipe_of(pair, Settings()), hub=hub, limits=Limits(max_adapters=1))
    assert not [
        r for r in hub_of.requests if r.path.endswith("safetensors") and "range" not in r.headers and r.method == "GET"
    ]


def test_work_that_takes_too_long_ends_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with visiting(None, offline=True) as hub, pytest.raises(BudgetExceeded, match="longer than the 0 seconds"):
        making.make(recipe_of(PAIR, Settings()), hub=hub, limits=Limits(max_seconds=0))
    assert not list(tmp_path.iterdir())


def test_the_environment_raises_limits_and_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_MERGE_UI_MAX_ADAPTERS", "3")
    assert limits() == Limits(max_adapters=3)
    monkeypatch.setenv("HUB_MERGE_UI_MAX_BYTES", "lots")
    with pytest.raises(RecipeError, match="HUB_MERGE_UI_MAX_BYTES"):
        limits()


def test_the_cache_is_kept_small_but_for_what_may_be_in_use(tmp_path: Path) -> None:
    for name, age in (("old", 9000), ("older", 90000), ("new", 10)):
        blob = tmp_path / f"models--x--{name}" / "blobs" / "b"
        blob.parent.mkdir(parents=True)
        blob.write_bytes(bytes(100))
        os.utime(blob, (time.time() - age, time.time() - age))
    assert tidy(tmp_path, 250) == ["models--x--older"]
    assert tidy(tmp_path, 0) == ["models--x--old"]


def test_the_stand_in_of_a_local_login_is_never_taken_for_one_in_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    stand_in = "mock-oauth-token-for-local-dev"
    assert own_token(stand_in) == "hf_mine"
    assert own_token("hf_visitor") == "hf_visitor"
    monkeypatch.setenv("SYSTEM", "spaces")
    assert own_token(stand_in) == stand_in


def test_only_a_space_listens_to_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    monkeypatch.delenv("SYSTEM", raising=False)
    assert address() == "127.0.0.1"
    monkeypatch.setenv("SYSTEM", "spaces")
    assert address() is None


# --- words ------------------------------------------------------------------------------------------------------------


def test_an_expected_error_keeps_its_remedy_and_an_unexpected_one_tells_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    known = failure_of(HubMergeError("It is at /home/me/x.", remedy="Try this."))
    assert (known.problem, known.remedy) == ("It is at (path removed)", "Try this.")
    unknown = failure_of(KeyError("/home/me/secret hf_abcdefghijklmnopqrstuvwxyz"))
    assert "secret" not in str(unknown) and "hf_" not in str(unknown)
    number = str(unknown).partition("(error ")[2][:8]
    assert number in caplog.text


def test_all_that_comes_from_elsewhere_is_escaped() -> None:
    evil = '<img src=x onerror="alert(1)">'
    row = catalog.Row(evil, title=evil, base_model=evil, license=evil, trouble=evil)
    for markup in (lists.adapter_list([row], [], evil), lists.tray([evil]), el("a", evil, href=evil, data_x=evil)):
        assert "<img" not in markup
        assert "&lt;img" in markup
    found = Report.of([problem("x", evil, evil, evil, evil, adapter=evil)])
    compatibility: Any = SimpleNamespace(adapters=(evil, "b"), report=found, base_model=evil, total_rank=1, coverage=())
    assert "<img" not in judgement.fit(compatibility)


def test_the_verdict_says_how_much_stands_in_the_way() -> None:
    def verdict(*findings: Any) -> str:
        compatibility: Any = SimpleNamespace(
            adapters=("a", "b"), report=Report.of(findings), base_model="b", total_rank=1, coverage=()
        )
        return str(judgement.fit(compatibility))

    first, second = (problem(code, "m", "w", "s", "e", adapter="a") for code in ("x", "y"))
    assert "nothing to worry about" in verdict()
    assert "1 thing stands in the way" in verdict(first) and "nothing to worry" not in verdict(first)
    assert "2 things stand in the way" in verdict(first, second)


def test_what_no_button_sends_changes_nothing() -> None:
    assert lists.acted(["a/b"], "add", None) == ["a/b"]
    assert lists.acted(["a/b"], "explode", "a/b") == ["a/b"]
    with pytest.raises(RecipeError):
        lists.acted([], "add", "/etc")


def test_a_card_is_previewed_without_metadata_and_without_pictures_of_other_hosts() -> None:
    card = "---\nlicense: mit\n---\n# Mine\n![x](https://example.org/pixel.png)\n"
    assert making.card_body(card) == "# Mine\n*(picture: x)*\n"
    assert making.card_body("# Plain\n") == "# Plain\n"
    assert making.card_body("---\nno end") == "---\nno end"


def test_a_name_is_suggested_that_the_hub_takes() -> None:
    assert making.suggested_name(["a/math", "b/../x y@main:sub"]) == "math-x-y"
    assert making.suggested_name(["///"]) == "composite"
