"""The advice, the method in words, the proof, the link of a publication, and failures."""

from __future__ import annotations

import math
from typing import Any

from hub_merge.advise import Advice
from hub_merge.methods import get_method
from hub_merge.publish import Published
from hub_merge.recipe import MergeRecord
from hub_merge.studio.controls import Settings
from hub_merge.studio.failures import Failure
from hub_merge.studio.looking import Measured, predicted
from hub_merge.studio.making import Made
from hub_merge.studio.views.charts import retention_bars
from hub_merge.studio.views.markup import Markup, el, icon, joined, number, percent

__all__ = [
    "advice_panel",
    "failure_panel",
    "kept",
    "method_panel",
    "proof_panel",
    "published_panel",
    "push_hint",
    "repository_name",
]


def advice_panel(advice: Advice) -> Markup:
    """Return what the geometry suggests, with its reasons and with what it does not know."""
    rank = "" if advice.rank is None else f" at rank {advice.rank}"
    beside = f" Worth measuring beside it: {', '.join(advice.alternatives)}." if advice.alternatives else ""
    return el(
        "div",
        el(
            "p",
            el("strong", f"Suggested: {advice.method}{rank}. "),
            advice.reasons[0] if advice.reasons else "",
            beside,
        ),
        el(
            "details",
            el("summary", "Reasons and doubts"),
            el("ul", *(el("li", text) for text in (*advice.reasons[1:], *advice.caveats)), class_="hm-plain"),
        ),
        class_="hm-advice",
    )


def method_panel(name: str) -> Markup:
    """Return what a method does, in its own words, with its formula and paper."""
    method = get_method(name)
    headline, _, rest = method.description.partition("\n")
    address = f"https://arxiv.org/abs/{method.paper}"
    return el(
        "div",
        el("p", headline.replace("Return ", "Gives ").replace("``", "")),
        el(
            "details",
            el("summary", "How it works"),
            el("p", rest.replace("``", "")),
            el("p", el("code", method.formula)),
            el("p", el("a", f"arXiv {method.paper}", href=address, target="_blank", rel="noopener noreferrer"))
            if method.paper
            else None,
        ),
        class_="hm-method",
    )


def proof_panel(record: MergeRecord) -> Markup:
    """Return what reading the written file again has shown."""
    proof = record.proof
    passed = bool(proof["passed"])
    facts = [
        ("Largest error", "none" if proof["max_error"] is None else f"{proof['max_error']:.1e}"),
        ("Accepted", f"{proof['tolerance']:.0e}"),
        ("Modules", str(proof["modules"])),
        ("Rank", str(record.output["rank"])),
        ("Energy kept", percent(proof["energy_kept"])),
        ("Dtype", str(record.output["dtype"])),
    ]
    line = "Merged, and proved" if passed else "The proof failed"
    return joined(
        el(
            "div",
            icon("good" if passed else "bad"),
            el("div", el("strong", line), el("span", "the written file was read again and compared with its parents")),
            class_=f"hm-verdict hm-{'good' if passed else 'bad'}",
        ),
        el("dl", *(el("div", el("dt", name), el("dd", value)) for name, value in facts), class_="hm-facts hm-wide"),
        el(
            "details",
            el("summary", "Everything that was checked"),
            el("ul", *map(_check, proof["checks"]), class_="hm-findings"),
            class_="hm-details",
        ),
        _kept(proof["retention"]),
    )


def _check(check: dict[str, Any]) -> Markup:
    return el(
        "li",
        icon("good" if check["passed"] else "bad"),
        el("div", el("p", el("strong", check["name"]), f" {check['detail']}")),
    )


def _kept(retention: Any) -> Markup:
    rows = [
        el(
            "tr",
            el("th", entry["name"], scope="row"),
            el("td", number(entry["predicted"], 3)),
            el("td", number(entry["measured"], 3)),
        )
        for entry in retention
    ]
    head = el("tr", *(el("th", text, scope="col") for text in ("Kept of", "predicted", "measured")))
    return el(
        "div",
        el("table", el("thead", head), el("tbody", *rows), class_="hm-table"),
        class_="hm-scroll",
        tabindex="0",
        role="region",
        aria_label="Kept of each adapter",
    )


def published_panel(published: Published) -> Markup:
    """Return where it is now."""
    address = published.pr_url or published.url
    what = "Pull request opened" if published.pr_url else "Published" if published.changed else "Nothing to change"
    size = math.fsum(file.size for file in published.files)
    return el(
        "div",
        icon("good"),
        el(
            "div",
            el("strong", what),
            el("a", address, href=address, target="_blank", rel="noopener noreferrer"),
            el("span", f"{len(published.files)} files, {size / 1e6:.2f} MB, commit {(published.commit or '')[:10]}"),
        ),
        class_="hm-verdict hm-good",
        role="status",
    )


def failure_panel(failure: Failure) -> Markup:
    """Return a failure with its remedy."""
    lines = [line for line in failure.problem.splitlines() if line.strip()]
    return el(
        "div",
        icon("bad"),
        el(
            "div",
            el("strong", lines[0] if lines else "It failed."),
            el("ul", *(el("li", line.strip().removeprefix("- ")) for line in lines[1:])) if lines[1:] else None,
            el("span", failure.remedy, class_="hm-remedy") if failure.remedy else None,
        ),
        class_="hm-verdict hm-bad",
        role="alert",
    )


def kept(measured: Measured | None, settings: Settings) -> Markup:
    """Return what the merge that is set would keep of each adapter."""
    if measured is None:
        return el("p", "Measure first to see what is kept of each adapter, live.", class_="hm-note")
    values, exact = predicted(measured, settings.method, settings.weights)
    note = "1 means whole: above, the others add to it; below, part of it is lost."
    if not exact:
        note = f"{note} This is what the weighted sum keeps; {settings.method} bends it, and the proof will measure it."
    elif settings.rank != "own":
        note = f"{note} Before the rank is cut; the proof will measure it."
    return retention_bars(measured.compatibility.adapters, values, note)


def repository_name(made: Made) -> str:
    """Return a name to publish under, as the licences ask for it."""
    name = made.folder.name
    prefix = next((found.replace(" ", "-") for found in made.licenses.prefixes), "")
    return f"{prefix}-{name}" if prefix and not name.lower().startswith(prefix.lower()) else name


def push_hint() -> Markup:
    """Return how to publish a download."""
    return el(
        "p", "Unpack the download, then: ", el("code", "hub-merge push FOLDER OWNER/NAME --private"), class_="hm-note"
    )
