"""Pictures of every step in both themes, for people to look at, and axe-core's eye on each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.space.serving import BASE
from tests.space.visitors import SAMPLES, Visitor

SERIOUS = ("serious", "critical")


def require_accessible(visitor: Visitor, axe: str, where: str) -> None:
    """Fail on what axe-core finds serious in the page as it is."""
    page = visitor.page
    if not page.evaluate("typeof window.axe === 'object'"):
        page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    told = [
        f"{where}: {entry['id']} {[(node['target'], node['failureSummary']) for node in entry['nodes'][:4]]}"
        for entry in found
        if entry["impact"] in SERIOUS
    ]
    assert not told, "\n".join(told)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1180, 375])
def test_every_step(arrive: Any, axe: str, screens: Path, theme: str, width: int) -> None:
    visitor = arrive(f"/?__theme={theme}", width=width, as_user="alice")

    def step(name: str) -> None:
        visitor.shoot(screens / f"{name}-{theme}-{width}.png")
        require_accessible(visitor, axe, name)

    step("1-first-sight")
    visitor.find(BASE)
    visitor.page.locator(".hm-row dt", has_text="Rank").first.wait_for()
    visitor.add("carol/math-lora", "dave/medicine-lora", "erin/finance-lora")
    visitor.fits()
    step("2-look")
    visitor.measure()
    visitor.page.hover("#layers svg")
    step("3-measured")
    visitor.merge()
    visitor.page.get_by_text("Everything that was checked").click()
    step("4-merged")
    visitor.page.fill("#repository textarea, #repository input", f"looks-{theme}-{width}")
    visitor.page.click("#publish")
    visitor.page.wait_for_selector("#published .hm-verdict.hm-good")
    visitor.page.get_by_role("tab", name="Edit").click()
    step("5-published")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_stands_in_the_way(arrive: Any, axe: str, screens: Path, theme: str) -> None:
    visitor = arrive(f"/?a={SAMPLES[0]}&b=gina/other-base&c=hugo/no-license&method=lego&__theme={theme}")
    visitor.page.wait_for_selector("#fit .hm-verdict.hm-bad")
    visitor.page.wait_for_selector("#options-lego")
    visitor.page.click("#merge")
    visitor.page.wait_for_selector("#proof .hm-verdict.hm-bad")
    visitor.page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    visitor.shoot(screens / f"6-refused-{theme}-1180.png")
    require_accessible(visitor, axe, "refused")
