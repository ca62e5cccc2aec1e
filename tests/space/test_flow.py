"""From the first look to a commit, and to a download, as people do it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from hub_merge import Adapter
from tests.space.serving import BASE, Space
from tests.space.visitors import SAMPLES


def test_signed_in_from_search_to_a_commit(space: Space, arrive: Any) -> None:
    visitor = arrive()
    page = visitor.page
    visitor.find(BASE)
    row = page.locator('.hm-row:has([data-reference="carol/math-lora"])')
    row.get_by_text("Rank").wait_for()  # read from headers after the list came
    assert "apache-2.0" in row.inner_text() and "1,234" in row.inner_text() and "1.88 MB" in row.inner_text()
    visitor.add("carol/math-lora", "dave/medicine-lora")
    visitor.fits()
    page.click("#hm-login")
    page.get_by_text("Sign out (alice)").wait_for()
    visitor.fits()  # what was chosen came back
    assert page.locator("#tray .hm-chip").count() == 2
    visitor.measure()
    visitor.merge()
    page.get_by_role("tab", name="Edit").click()
    card = page.locator("#card textarea")
    card.fill(card.input_value() + "\n## Mine\n\nWords of alice.\n")
    page.fill("#repository textarea, #repository input", "space-made")
    page.click("#publish")
    page.wait_for_selector("#published .hm-verdict.hm-good")
    assert f"{space.hub.endpoint}/alice/space-made" in visitor.text("#published")
    repo = space.hub.repo("alice/space-made")
    assert repo.private
    assert len(space.hub.commits("alice/space-made")) == 2  # the Hub's own, and ours
    text = space.hub.file("alice/space-made", "README.md").decode()
    assert "Words of alice." in text and "alice/space-made" in text
    record = json.loads(space.hub.file("alice/space-made", "hub_merge.json"))
    assert [parent["repo_id"] for parent in record["parents"]] == ["carol/math-lora", "dave/medicine-lora"]
    assert record["proof"]["passed"]


def test_a_pull_request_to_a_repository_of_somebody_else(space: Space, arrive: Any) -> None:
    visitor = arrive(f"/?a={SAMPLES[0]}&b={SAMPLES[1]}", as_user="bob")
    visitor.fits()
    visitor.merge()
    visitor.page.fill("#repository textarea, #repository input", "dave/medicine-lora")
    visitor.page.get_by_label("Pull request").check()
    visitor.page.click("#publish")
    visitor.page.wait_for_selector("#published .hm-verdict.hm-good")
    assert "Pull request opened" in visitor.text("#published")
    assert len(space.hub.commits("dave/medicine-lora")) == 2  # as before


def test_anonymous_from_a_pasted_link_to_a_download(space: Space, arrive: Any, tmp_path: Path) -> None:
    visitor = arrive()
    before = len(space.hub.requests)
    visitor.find(f"{space.hub.endpoint}/carol/math-lora")
    visitor.add("carol/math-lora", "erin/finance-lora")  # the adapter itself, and one of its base
    visitor.fits()
    visitor.measure()
    visitor.merge()
    with visitor.page.expect_download() as waiting:
        visitor.page.click("#download")
    waiting.value.save_as(tmp_path / "all.zip")
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "math-lora-finance-lora"
    assert Adapter.from_pretrained(folder).rank == 8
    asked = space.hub.requests[before:]
    assert asked and not [request for request in asked if "authorization" in request.headers]


def test_the_samples_need_no_hub_and_the_link_brings_everything_back(space: Space, arrive: Any) -> None:
    visitor = arrive()
    visitor.add(*SAMPLES[:2])
    visitor.fits()
    visitor.measure()
    page = visitor.page
    page.fill("#method input", "ties")
    page.get_by_role("option", name="ties", exact=True).click()
    page.locator("#options-ties").get_by_label("number input for Density").fill("0.5")
    page.locator("#weight-1").get_by_label("number input").fill("0.5")
    page.locator("#weight-1").get_by_label("number input").press("Enter")
    page.wait_for_function("location.search.includes('density') && location.search.includes('weights')")
    asked = parse_qs(urlsplit(page.url).query)
    assert (asked["method"], asked["weights"], asked["option.density"]) == (["ties"], ["1,0.5"], ["0.5"])
    command = visitor.text("#repeated pre >> nth=0")
    assert "--method ties --weights=1,0.5 --option density=0.5" in command
    again = arrive(f"/?{urlsplit(page.url).query}")
    again.fits()
    again.page.wait_for_selector("#options-ties")
    again.page.get_by_text("--option density=0.5").wait_for()
    assert again.text("#repeated pre >> nth=0") == command


def test_what_is_kept_follows_the_sliders(arrive: Any) -> None:
    visitor = arrive(f"/?a={SAMPLES[0]}&b={SAMPLES[1]}")
    visitor.fits()
    visitor.measure()
    before = visitor.kept()
    field = visitor.page.locator("#weight-0").get_by_label("number input")
    field.fill("2")
    field.press("Enter")
    visitor.page.wait_for_function(
        "old => parseFloat(document.querySelector('#kept .hm-bar-value').innerText) > 1.5 * old", arg=before[0]
    )
    after = visitor.kept()
    assert after[0] == pytest.approx(before[0] + 0.5, abs=0.011)  # the mean takes half of one more math


def test_keyboard_alone_adds_removes_and_reads_the_chart(arrive: Any) -> None:
    visitor = arrive(f"/?a={SAMPLES[0]}")
    page = visitor.page
    page.wait_for_selector("#tray .hm-chip")
    page.focus(f'#results [data-reference="{SAMPLES[1]}"]')
    page.keyboard.press("Enter")
    page.wait_for_selector(f'#tray [data-reference="{SAMPLES[1]}"]')
    visitor.fits()
    visitor.measure()
    page.focus("#layers svg")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#layers .hm-readout").startswith("Layer 0: math + medicine 0.")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#layers .hm-readout").startswith("Layer 1:")
    page.focus(f'#tray [data-reference="{SAMPLES[1]}"]')
    page.keyboard.press("Enter")
    page.wait_for_selector(f'#tray [data-reference="{SAMPLES[1]}"]', state="detached")


def test_a_phone_shows_all_of_it_without_scrolling_sideways(arrive: Any) -> None:
    visitor = arrive(f"/?a={SAMPLES[0]}&b={SAMPLES[1]}", width=375, has_touch=True, is_mobile=True)
    visitor.fits()
    visitor.measure()
    visitor.merge()
    wide = visitor.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 375
    for selector in ("#search", "#measure", "#merge", "#download"):
        box = visitor.page.locator(selector).bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= 375, selector
