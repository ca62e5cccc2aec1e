"""The Space: widgets and their wiring. Every decision is made in ``hub_merge.studio``; nothing here reads an adapter.

Run it with ``hub-merge ui``, ``make space``, or ``python app.py``.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder

from hub_merge.errors import HubMergeError
from hub_merge.methods import list_methods
from hub_merge.patience import bound_transfers
from hub_merge.studio import api, assets, catalog, looking, making, samples
from hub_merge.studio.controls import Control, Settings, controls_of, recipe_of, settings_of
from hub_merge.studio.failures import failure_of
from hub_merge.studio.limits import limits
from hub_merge.studio.links import from_query, to_query
from hub_merge.studio.sessions import address, own_token, signs_in
from hub_merge.studio.views import charts, judgement, lists, outcome, texts
from hub_merge.studio.visits import tidy_up, visiting

bound_transfers()
LIMITS = limits()
METHODS = list_methods()
with visiting(None, offline=True) as nobody:
    SAMPLES = catalog.sample_rows(nobody)
HOUR = 3600
HEAVY: dict[str, Any] = {"concurrency_id": "heavy", "concurrency_limit": os.cpu_count() or 1}
"""Measuring and merging share one queue, a job a core; visitors see their place in it."""
LIGHT: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "trigger_mode": "always_last"}
"""What answers at once; of many in a row, as a slider sends them, the last counts."""
CLICKS: dict[str, Any] = {"concurrency_limit": 1, "show_progress": "hidden", "trigger_mode": "multiple"}
"""Every click counts, one after the other."""
HIDDEN: dict[str, Any] = {"api_visibility": "private"}

Token = gr.OAuthToken | None
PROGRESS = gr.Progress()
"""Gradio puts the progress of one request in its place."""


def secret(token: Token) -> str | None:
    """Return the visitor's token, ``None`` for an anonymous visitor."""
    return own_token(token.token) if token else None


def told(error: BaseException) -> gr.Error:
    """Return ``error`` for a program: the same words, nothing of this machine."""
    return gr.Error(str(failure_of(error)), print_exception=False)


# --- for programs -----------------------------------------------------------------------------------------------------


def public(function: Callable[..., Any]) -> Callable[..., Any]:
    """Tell the errors of an endpoint as the command line does."""

    @functools.wraps(function)
    def endpoint(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            raise told(error) from None

    return endpoint


@public
def search(text: str = "", license: str = "", limit: int = 12, token: Token = None) -> list[dict]:
    """Find LoRA adapters of the Hugging Face Hub that could be merged.

    Args:
        text: Id of a base model (lists its adapters), words, or an adapter (lists it and its siblings). Empty lists
            three samples.
        license: Licence identifier that all have to state, such as apache-2.0. Empty for any.
        limit: Most adapters to return, 1 to 50.

    Returns:
        One entry an adapter: reference, base_model, license, rank, size in bytes, downloads, and trouble: why it cannot
        be merged, if it cannot.
    """
    return api.search(text, license or None, limit, secret(token))


@public
def check(adapters: list[str], base_model: str = "", allow: list[str] | None = None, token: Token = None) -> dict:
    """Tell whether LoRA adapters fit together and what their licences allow. Reads kilobytes, no weights.

    Args:
        adapters: Two or more, as owner/name or owner/name@revision:subfolder.
        base_model: Base model that you assert to be that of all. Empty to believe the adapters.
        allow: Codes of findings that you accept knowingly.

    Returns:
        compatible, findings with a remedy each, base_model, total_rank, bytes, and the licence verdict.
    """
    return api.check(adapters, base_model or None, allow or (), secret(token))


@public
def score(adapters: list[str], weights: list[float] | None = None, token: Token = None) -> dict:
    """Score how much the deltas of LoRA adapters overlap. Downloads their weights; no base model is needed.

    Args:
        adapters: Two or more, as owner/name or owner/name@revision:subfolder.
        weights: One number an adapter for the sum that retention speaks of. 1 each if left out.

    Returns:
        rms_cosine (0 is orthogonal, 1 parallel), every pair, norms, and the retention of each adapter in the sum.
    """
    return api.score(adapters, weights, secret(token))


@public
def plan(
    adapters: list[str],
    method: str = "",
    weights: list[float] | None = None,
    base_model: str = "",
    allow: list[str] | None = None,
    token: Token = None,
) -> dict:
    """Plan a merge of LoRA adapters without merging: findings, licence, advice, recipe, predicted retention.

    Args:
        adapters: Two or more, as owner/name or owner/name@revision:subfolder.
        method: Merge method. Empty takes the one that the geometry suggests.
        weights: One number an adapter. Left out, those that the geometry suggests.
        base_model: Base model that you assert to be that of all. Empty to believe the adapters.
        allow: Codes of findings that you accept knowingly.

    Returns:
        check, advice, recipe, retention, and the command, the Python lines and the link that carry it out.
    """
    return api.plan(adapters, method or None, weights, base_model or None, allow or (), secret(token))


@public
def merge(
    adapters: list[str],
    method: str = "sum",
    weights: list[float] | None = None,
    rank: int = 0,
    options: dict | None = None,
    base_model: str = "",
    allow: list[str] | None = None,
    token: Token = None,
) -> gr.FileData:
    """Merge LoRA adapters into one, prove the written file, and return it as a zip. Publishes nothing.

    Args:
        adapters: Two or more, as owner/name or owner/name@revision:subfolder.
        method: Merge method, such as sum, mean, ties, svd or lego.
        weights: One number an adapter. 1 each if left out.
        rank: Rank of the result. 0 leaves it to the method.
        options: Options of the method by name.
        base_model: Base model that you assert to be that of all. Empty to believe the adapters.
        allow: Codes of findings that you accept knowingly.

    Returns:
        A zip with the adapter in PEFT's format, its model card, record, recipe and proof.
    """
    made = api.merge(
        adapters, method, weights, rank or None, options or {}, base_model or None, allow or (), secret(token)
    )
    try:
        return gr.FileData(
            path=save_file_to_cache(made.archive, cache_dir=get_upload_folder()), orig_name=made.archive.name
        )
    finally:
        made.discard()


# --- the page ---------------------------------------------------------------------------------------------------------


def widget(control: Control) -> gr.components.Component:
    """Return the widget that asks for one option of a method."""
    shared: dict[str, Any] = {"label": control.label, "info": control.help, "value": control.default}
    if control.kind == "switch":
        return gr.Checkbox(**shared)
    if control.kind == "choice":
        return gr.Dropdown(list(control.choices), **shared)
    if control.kind == "slider":
        return gr.Slider(control.low, control.high, step=control.step, **shared)
    return gr.Number(minimum=control.low, step=control.step, **shared)


def markup(value: str = "", **settings: Any) -> gr.HTML:
    """Return a place for markup of our own, which brings its own style."""
    return gr.HTML(value, apply_default_css=False, **settings)


def status() -> gr.HTML:
    """Return a place for failures, which takes no room while there is none."""
    return markup(elem_classes="hm-status")


def heading(number: int, title: str, about: str) -> gr.HTML:
    """Return the head of a step."""
    return markup(texts.heading(number, title, about))


THEME = gr.themes.Base(
    primary_hue=gr.themes.colors.teal,
    neutral_hue=gr.themes.colors.slate,
    font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
    font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
    radius_size=gr.themes.sizes.radius_lg,
).set(**texts.THEME)

with gr.Blocks(title=texts.TITLE, analytics_enabled=False, delete_cache=(HOUR, HOUR), fill_width=True) as demo:
    chosen = gr.State([], time_to_live=HOUR)
    rows = gr.State(SAMPLES, time_to_live=HOUR)
    seen = gr.State(None, time_to_live=HOUR)
    measured = gr.State(None, time_to_live=HOUR)
    made = gr.State(None, time_to_live=HOUR, delete_callback=lambda result: result and result.discard())
    query = gr.Textbox("", visible=False)

    with gr.Row(elem_id="hm-head"):
        markup(texts.HERO)
        if signs_in():
            login = gr.LoginButton(elem_id="hm-login", size="md", logout_value="Sign out ({})")
            login.click(None, js=assets.LEAVING, **HIDDEN)

    with gr.Column(elem_classes="hm-step", elem_id="step-choose"):
        heading(1, "Choose adapters", f"Two or more of one base model. {LIMITS.told()}")
        link_status = status()
        with gr.Row(elem_id="hm-find"):
            text = gr.Textbox(
                "",
                label="Base model, words, or the link of an adapter",
                placeholder="HuggingFaceTB/SmolLM2-135M-Instruct",
                scale=5,
                elem_id="find",
            )
            find = gr.Button("Search", variant="primary", scale=1, min_width=110, elem_id="search")
        with gr.Accordion("Filter and order", open=False), gr.Row():
            license = gr.Textbox("", label="Licence", placeholder="any, or an identifier such as apache-2.0")
            sort = gr.Dropdown(list(texts.ORDERS), value="downloads", label="Order by")
        find_status = status()
        results = markup(lists.adapter_list(SAMPLES, [], texts.found("")), js_on_load=assets.ACTIONS, elem_id="results")
        basket = markup(lists.tray([]), js_on_load=assets.ACTIONS, elem_id="tray")

    with gr.Column(elem_classes="hm-step", elem_id="step-look"):
        heading(2, "Look how they fit", texts.LOOK)
        look_status = status()
        fit = markup(judgement.waiting(texts.NOTHING_YET), elem_id="fit")
        terms = markup(elem_id="terms", elem_classes="hm-status")
        with gr.Accordion("Decide what the findings ask", open=False, visible=False) as deciding:
            allow = gr.CheckboxGroup([], label="Accept knowingly", info="Findings that you may overrule.")
            with gr.Row():
                base = gr.Textbox("", label="Base model of all", info="Where the adapters do not prove it.")
                extras = gr.Dropdown(
                    ["refuse", "average", "drop"],
                    value="refuse",
                    allow_custom_value=True,
                    label="Heads, biases and token rows",
                    info="Or keep:NAME for those of one adapter.",
                )
        measuring = gr.Button(texts.measure_label(None), variant="primary", interactive=False, elem_id="measure")
        measure_status = status()
        with gr.Row(visible=False, elem_id="charts") as charted:
            heat = markup(elem_id="heat", min_width=300)
            layers = markup(js_on_load=assets.CHART, elem_id="layers", min_width=300)

    with gr.Column(elem_classes="hm-step", elem_id="step-merge"):
        heading(3, "Merge", texts.MERGE)
        waiting = markup(judgement.waiting(texts.NOTHING_YET))
        with gr.Column(visible=False) as merging:
            advice = markup(elem_id="advice", elem_classes="hm-status")
            method = gr.Dropdown([found.name for found in METHODS], value="sum", label="Method", elem_id="method")
            about = markup(outcome.method_panel("sum"), elem_id="about")
            groups: dict[str, gr.Column] = {}
            asked: dict[tuple[str, str], gr.components.Component] = {}
            for found in METHODS:
                with gr.Column(visible=False, elem_id=f"options-{found.name}") as groups[found.name]:
                    for control in controls_of(found):
                        asked[found.name, control.name] = widget(control)
            with gr.Row():
                weights = [
                    gr.Slider(-1, 2, value=1, step=0.05, label=f"Weight {n + 1}", visible=False, elem_id=f"weight-{n}")
                    for n in range(LIMITS.max_adapters)
                ]
            kept = markup(elem_id="kept")
            with gr.Accordion("Rank, precision, seed", open=False), gr.Row():
                rank = gr.Radio(
                    [("the method's own", "own"), ("automatic", "auto"), ("a number", "fixed")],
                    value="own",
                    label="Rank of the result",
                )
                rank_number = gr.Number(8, label="Number", minimum=1, precision=0, min_width=100)
                energy = gr.Slider(0.5, 1, value=0.99, step=0.01, label="Energy that automatic keeps")
                dtype = gr.Dropdown(["widest", "float32", "bfloat16", "float16"], value="widest", label="Precision")
                seed = gr.Number(0, label="Seed", minimum=0, precision=0, min_width=100)
            go = gr.Button("Merge and prove", variant="primary", elem_id="merge")
        merge_status = markup(elem_id="proof", elem_classes="hm-status")
        with gr.Column(visible=False) as finished:
            with gr.Row(elem_id="downloads"):
                download = gr.DownloadButton(
                    "Download all (.zip)", variant="primary", elem_id="download", min_width=180
                )
                download_weights = gr.DownloadButton("Weights only", min_width=140)
                download_recipe = gr.DownloadButton("Recipe only", min_width=140)
            with gr.Tabs():
                with gr.Tab("Model card"):
                    preview = gr.Markdown(elem_id="card-preview", container=True, max_height=420)
                with gr.Tab("Edit"):
                    card = gr.Textbox(label="Model card (Markdown)", lines=16, max_lines=24, elem_id="card")

    with gr.Column(elem_classes="hm-step", elem_id="step-publish"):
        heading(4, "Publish", texts.PUBLISH if signs_in() else texts.NO_LOGIN)
        unpublished = markup(judgement.waiting("Merge first."))
        with gr.Column(visible=False) as publishing:
            with gr.Row():
                name = gr.Textbox(label="Repository", info="name, or owner/name", elem_id="repository")
                place = gr.Radio(
                    [("New, private", "private"), ("New, public", "public"), ("Pull request", "pull request")],
                    value="private",
                    label="As",
                )
            unknown = gr.Checkbox(label=texts.ACCEPT_UNKNOWN, visible=False, elem_id="accept-unknown")
            publish = gr.Button("Publish", variant="primary", elem_id="publish")
        publish_status = markup(elem_id="published", elem_classes="hm-status")

    with gr.Column(elem_classes="hm-step", elem_id="step-repeat"):
        markup(texts.REPEAT)
        repeated = markup(texts.repeated(None), js_on_load=assets.COPY, elem_id="repeated")

    # --- what happens when -------------------------------------------------------------------------------------------

    settings = [method, *weights, rank, rank_number, energy, seed, dtype, base, allow, extras, *asked.values()]

    def read(count: int, values: tuple[Any, ...]) -> Settings:
        """Return the answers of the widgets in ``settings``."""
        given = dict(zip(settings, values, strict=True))
        return Settings(
            method=given[method],
            weights=tuple(float(given[slider]) for slider in weights[:count]),
            **{
                key: given[component]
                for key, component in {
                    "rank": rank,
                    "rank_number": rank_number,
                    "energy": energy,
                    "seed": seed,
                    "dtype": dtype,
                    "base_model": base,
                    "extras": extras,
                }.items()
            },
            allow=tuple(given[allow] or ()),
            options={option: given[ask] for (owner, option), ask in asked.items() if owner == given[method]},
        )

    def shown(status: gr.HTML) -> Callable[..., Any]:
        """Show what fails in ``status``, in words and with the remedy, and clear it where nothing does."""

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(function)
            def step(*args: Any, **kwargs: Any) -> Any:
                try:
                    return {status: "", **function(*args, **kwargs)}
                except Exception as error:
                    return {status: outcome.failure_panel(failure_of(error))}

            return step

        return decorate

    @shown(find_status)
    def on_find(text: str, license: str, sort: str, picked: list[str], token: Token = None) -> dict:
        with visiting(secret(token), offline=not text.strip()) as hub:
            found = catalog.detailed(catalog.find(text, hub=hub, license=license.strip() or None, sort=sort), hub=hub)
        return {rows: found, results: lists.adapter_list(found, picked, texts.found(text))}

    def on_act(event: gr.EventData, picked: list[str]) -> list[str]:
        return lists.acted(picked, event._data["action"], event._data["reference"])

    def on_chosen(picked: list[str], found: list[catalog.Row], text: str) -> dict:
        """Show what is chosen now, and take away what was measured of others."""
        return {
            basket: lists.tray(picked),
            results: lists.adapter_list(found, picked, texts.found(text)),
            measuring: gr.Button(interactive=False),
            charted: gr.Row(visible=False),
            measured: None,
            advice: "",
        }

    @shown(look_status)
    def on_look(picked: list[str], allowed: list[str], base: str, token: Token = None) -> dict:
        if not picked:
            return {
                seen: None,
                fit: judgement.waiting(texts.NOTHING_YET),
                terms: "",
                measuring: gr.Button(texts.measure_label(None), interactive=False),
            }
        with visiting(secret(token), offline=samples.all_samples(picked)) as hub:
            look = looking.look(picked, hub=hub, limits=LIMITS, base=base.strip() or None, allow=allowed or ())
        codes = judgement.allowable(look, allowed or ())
        return {
            seen: look,
            fit: judgement.fit(look.compatibility, look.ranks),
            terms: judgement.license_panel(look.licenses),
            deciding: gr.Accordion(
                visible=judgement.has_questions(look, allowed or ()), open=not look.compatibility.compatible
            ),
            allow: gr.CheckboxGroup(codes, value=[code for code in allowed or () if code in codes]),
            measuring: gr.Button(texts.measure_label(look), interactive=len(picked) > 1),
        }

    def on_looked(picked: list[str], look: looking.Look | None) -> dict:
        """Show the sliders of those that are chosen."""
        current = look is not None and list(look.references) == picked
        names = look.names if look and current else picked
        return {
            waiting: gr.HTML(visible=not current),
            merging: gr.Column(visible=current),
            **{
                slider: gr.Slider(
                    visible=place < len(names), label=f"Weight of {names[place]}" if place < len(names) else None
                )
                for place, slider in enumerate(weights)
            },
        }

    def on_settings(picked: list[str], last: looking.Measured | None, *values: Any) -> dict:
        """Show method, retention, command, Python and link of what is set."""
        answers = read(len(picked), values)
        parts: dict[Any, Any] = {
            about: outcome.method_panel(answers.method),
            **{group: gr.Column(visible=owner == answers.method) for owner, group in groups.items()},
        }
        try:
            recipe = recipe_of(picked, answers) if picked else None
        except HubMergeError as error:
            return {**parts, kept: outcome.failure_panel(failure_of(error))}
        return {
            **parts,
            kept: outcome.kept(last, answers),
            repeated: texts.repeated(recipe),
            query: to_query(recipe),
        }

    @shown(measure_status)
    def on_measure(
        picked: list[str], allowed: list[str], base: str, token: Token = None, progress: gr.Progress = PROGRESS
    ) -> dict:
        with visiting(secret(token), offline=samples.all_samples(picked)) as hub:
            last = looking.measure(
                picked,
                hub=hub,
                limits=LIMITS,
                base=base.strip() or None,
                allow=allowed or (),
                progress=lambda step, done, total: progress((done, total), desc=texts.STEPS[step]),
            )
        tidy_up()
        suggested = last.advice
        return {
            measured: last,
            fit: judgement.fit(last.compatibility, last.ranks),
            heat: charts.heat_map(last.scores),
            layers: charts.depth(last.scores),
            charted: gr.Row(visible=True),
            **(
                {
                    advice: outcome.advice_panel(suggested),
                    method: suggested.method,
                    rank: "own" if suggested.rank is None else "fixed",
                    **({} if suggested.rank is None else {rank_number: suggested.rank}),
                    **{
                        slider: gr.Slider(value=weight)
                        for slider, weight in zip(weights, suggested.weights, strict=False)
                    },
                }
                if suggested
                else {}
            ),
        }

    @shown(merge_status)
    def on_merge(
        token: Token = None,
        progress: gr.Progress = PROGRESS,
        picked: tuple[str, ...] = (),
        before: making.Made | None = None,
        look: looking.Look | None = None,
        *values: Any,
    ) -> dict:
        with visiting(secret(token), offline=samples.all_samples(picked)) as hub:
            result = making.make(
                recipe_of(picked, read(len(picked), values)),
                hub=hub,
                limits=LIMITS,
                progress=lambda step, done, total: progress((done, total), desc=texts.STEPS[step]),
            )
        if before:
            before.discard()
        tidy_up()
        return {
            made: result,
            merge_status: outcome.proof_panel(result.record),
            finished: gr.Column(visible=True),
            download: str(result.archive),
            download_weights: str(result.weights),
            download_recipe: str(result.recipe),
            card: result.card,
            preview: making.card_body(result.card),
            unpublished: gr.HTML(visible=False),
            publishing: gr.Column(visible=signs_in()),
            name: outcome.repository_name(result),
            unknown: gr.Checkbox(visible=judgement.asks_for_unknown(look), value=False),
            publish_status: "" if signs_in() else outcome.push_hint(),
        }

    def on_card(text: str) -> str:
        return making.card_body(text)

    @shown(publish_status)
    def on_publish(
        result: making.Made | None, name: str, place: making.Place, card: str, unknown: bool, token: Token = None
    ) -> dict:
        with visiting(secret(token)) as hub:
            published = making.publish(result, name, place, card=card, hub=hub, accept_unknown_license=unknown)
        return {publish_status: outcome.published_panel(published)}

    @shown(link_status)
    def on_load(address: str) -> dict:
        """Restore what the link of the page describes."""
        recipe = from_query(dict(parse_qsl(address.removeprefix("?"))))
        if recipe is None:
            return {}
        LIMITS.require_adapters(len(recipe.models))
        answers = settings_of(recipe)
        return {
            chosen: [source.model for source in recipe.models],
            method: answers.method,
            rank: answers.rank,
            rank_number: answers.rank_number or 8,
            energy: answers.energy,
            seed: answers.seed,
            dtype: answers.dtype,
            base: answers.base_model,
            allow: gr.CheckboxGroup(list(answers.allow), value=list(answers.allow)),
            extras: answers.extras,
            **{
                slider: gr.Slider(value=weight, minimum=min(-1, weight), maximum=max(2, weight))
                for slider, weight in zip(weights, answers.weights, strict=False)
            },
            **{asked[answers.method, option]: value for option, value in (answers.options or {}).items()},
        }

    searched = {
        "fn": on_find,
        "inputs": [text, license, sort, chosen],
        "outputs": [find_status, rows, results],
        "concurrency_limit": 4,
        **HIDDEN,
    }
    shown_again = {
        "fn": on_settings,
        "inputs": [chosen, measured, *settings],
        "outputs": [about, *groups.values(), kept, repeated, query],
        **LIGHT,
        **HIDDEN,
    }
    addressed = {"fn": None, "inputs": [query], "js": assets.ADDRESS, "trigger_mode": "always_last", **HIDDEN}
    looked = {
        "fn": on_look,
        "inputs": [chosen, allow, base],
        "outputs": [look_status, seen, fit, terms, deciding, allow, measuring],
        "concurrency_limit": 4,
        "trigger_mode": "always_last",
        **HIDDEN,
    }
    weighed = {
        "fn": on_looked,
        "inputs": [chosen, seen],
        "outputs": [waiting, merging, *weights],
        **LIGHT,
        **HIDDEN,
    }
    restored = [link_status, chosen, *settings]

    gr.on([find.click, text.submit], **searched)
    for view in (results, basket):
        view.act(on_act, chosen, chosen, **CLICKS, **HIDDEN)
    chosen.change(
        on_chosen, [chosen, rows, text], [basket, results, measuring, charted, measured, advice], **LIGHT, **HIDDEN
    ).then(**looked).then(**weighed).then(**shown_again).then(**addressed)
    gr.on([allow.input, base.submit, base.blur], **looked).then(**shown_again).then(**addressed)
    gr.on(
        [component.input for component in settings if component not in (base, allow)],
        **shown_again,
    ).then(**addressed)
    measuring.click(
        on_measure,
        [chosen, allow, base],
        [measure_status, measured, fit, heat, layers, charted, advice, method, rank, rank_number, *weights],
        show_progress_on=measure_status,
        **HEAVY,
        **HIDDEN,
    ).then(**shown_again).then(**addressed)
    go.click(
        on_merge,
        [chosen, made, seen, *settings],
        [
            *(
                merge_status,
                made,
                finished,
                download,
                download_weights,
                download_recipe,
                card,
                preview,
                unpublished,
                publishing,
            ),
            *(name, unknown, publish_status),
        ],
        show_progress_on=merge_status,
        **HEAVY,
        **HIDDEN,
    )
    card.blur(on_card, card, preview, **LIGHT, **HIDDEN)
    publish.click(
        on_publish,
        [made, name, place, card, unknown],
        publish_status,
        show_progress_on=publish_status,
        concurrency_limit=4,
        **HIDDEN,
    )
    demo.load(on_load, query, restored, js=assets.OWN_QUERY, **LIGHT, **HIDDEN)

    for endpoint in (search, check):
        gr.api(endpoint, concurrency_limit=4)
    for endpoint in (score, plan, merge):
        gr.api(endpoint, **HEAVY)

for event in demo.fns.values():  # Gradio looks who is signed in, which is nobody's endpoint
    if event.api_name == "_check_login_status":
        event.api_visibility = "private"

demo.queue(default_concurrency_limit=4, max_size=60)


def launch(port: int | None = None, *, open_browser: bool = False) -> None:
    """Serve the page until the process is stopped; outside a Space on this machine only."""
    try:
        demo.launch(
            server_name=address(),
            share=False,
            server_port=port,
            inbrowser=open_browser,
            theme=THEME,
            head=assets.STYLE,
            footer_links=["api"],
            run_history=False,
            quiet=True,
            ssr_mode=False,
            max_file_size="1mb",
            mcp_server=importlib.util.find_spec("mcp") is not None,
            favicon_path=str(icon) if (icon := Path(__file__).with_name("icon.svg")).is_file() else None,
        )
    except ValueError:  # Gradio gives up a page that does not answer itself in three seconds, as on a busy machine
        if not demo.is_running:
            raise
        demo.block_thread()


if __name__ == "__main__":
    launch()
