"""What is shown when something is wrong: the words and the remedy of the command line, beside the step it is about."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from hub_merge.studio.page import load_page
from tests.space.conftest import need
from tests.space.serving import BASE, Space
from tests.space.visitors import SAMPLES


def test_nothing_of_that_name(arrive: Any) -> None:
    visitor = arrive()
    visitor.page.fill("#find textarea", "nobody/nothing")
    visitor.page.click("#search")
    told = visitor.alert()
    assert "nobody/nothing" in told and "sign in" in told


def test_no_file_of_this_machine_is_opened(arrive: Any) -> None:
    visitor = arrive()
    for path in ("/etc/passwd", "./secret", "../up/there"):
        visitor.page.fill("#find textarea", path)
        visitor.page.click("#search")
        visitor.page.wait_for_function("document.querySelector('[role=alert]')?.innerText.includes('no files')")
        assert "pip install hub-merge" in visitor.alert()


def test_a_search_without_a_hit_says_what_to_try(arrive: Any) -> None:
    visitor = arrive()
    visitor.find("zzzzqq")
    assert "Nothing found" in visitor.text("#results")


def test_other_bases_are_refused_with_the_finding_and_its_remedy(arrive: Any) -> None:
    visitor = arrive("/?a=carol/math-lora&b=gina/other-base")
    visitor.page.wait_for_selector("#fit .hm-verdict.hm-bad")
    told = visitor.text("#fit")
    assert "base_differs" in told and "openai-community/gpt2" in told
    visitor.page.click("#merge")
    visitor.page.wait_for_selector("#proof .hm-verdict.hm-bad")
    assert "cannot be merged" in visitor.text("#proof")


def test_what_a_finding_asks_for_can_be_answered_and_the_merge_goes_on(arrive: Any) -> None:
    visitor = arrive("/?a=carol/math-lora&b=gina/other-base")
    visitor.page.wait_for_selector("#fit .hm-verdict.hm-bad")
    field = visitor.page.get_by_label("Base model of all")
    field.fill(BASE)
    field.press("Enter")
    visitor.fits()
    visitor.page.get_by_text(f"--base {BASE}").first.wait_for()
    visitor.merge()


def test_a_broken_adapter_is_named(arrive: Any) -> None:
    visitor = arrive("/?a=carol/math-lora&b=ivan/broken")
    told = visitor.alert()
    assert "ivan/broken" in told and "safetensors" in told


def test_a_gated_adapter_says_where_to_ask(space: Space, arrive: Any) -> None:
    visitor = arrive("/?a=carol/math-lora&b=frank/gated-lora")
    told = visitor.alert()
    assert "frank/gated-lora" in told and "access" in told


def test_a_hub_that_does_not_answer(space: Space, arrive: Any) -> None:
    visitor = arrive()
    fault = space.hub.faults.add("GET /api/models", status=503, times=None)
    try:
        visitor.page.fill("#find textarea", "mathematics")
        visitor.page.click("#search")
        assert "503" in visitor.alert()
    finally:
        space.hub.faults.remove(fault)
    visitor.find("math")
    assert visitor.page.locator('[role="alert"]').count() == 0


def test_a_link_that_cannot_be_understood(arrive: Any) -> None:
    visitor = arrive("/?a=carol/math-lora&method=tyes")
    assert "Did you mean ties" in visitor.alert()
    visitor = arrive("/?a=carol/math-lora&weights=much")
    assert "must be a number" in visitor.alert()


def test_markup_in_what_strangers_wrote_stays_text(space: Space, arrive: Any) -> None:
    visitor = arrive()
    evil = "<img src=x onerror=alert(1)>"
    visitor.page.fill("#find textarea", evil)
    visitor.page.click("#search")
    visitor.page.get_by_text("Nothing found").wait_for()
    assert evil in visitor.text("#results h3")
    assert visitor.page.locator("#results img").count() == 0


def test_publishing_needs_a_login_and_a_known_licence(space: Space, arrive: Any) -> None:
    visitor = arrive("/?a=carol/math-lora&b=hugo/no-license")
    visitor.fits()
    assert "No licence is known for hugo/no-license" in visitor.text("#terms")
    visitor.merge()
    visitor.page.check("#accept-unknown input")
    visitor.page.click("#publish")
    assert "needs a login" in visitor.alert()
    signed_in = arrive("/?a=carol/math-lora&b=hugo/no-license", as_user="bob")
    signed_in.fits()
    signed_in.merge()
    signed_in.page.click("#publish")
    assert "license_unknown" in signed_in.alert()
    signed_in.page.check("#accept-unknown input")
    signed_in.page.click("#publish")
    signed_in.page.wait_for_selector("#published .hm-verdict.hm-good")
    record = json.loads(space.hub.file("bob/math-lora-no-license", "hub_merge.json"))
    assert record["proof"]["passed"]


def test_a_name_that_is_taken_is_not_overwritten(space: Space, arrive: Any) -> None:
    visitor = arrive(f"/?a={SAMPLES[0]}&b={SAMPLES[1]}", as_user="bob")
    visitor.fits()
    visitor.merge()
    visitor.page.fill("#repository textarea, #repository input", "dave/medicine-lora")
    visitor.page.click("#publish")
    assert "dave/medicine-lora" in visitor.alert()
    assert len(space.hub.commits("dave/medicine-lora")) == 2


@pytest.mark.parametrize("running", [True, False])
def test_a_page_that_is_slow_to_answer_itself_is_served_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, running: bool
) -> None:
    need("gradio")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    page = load_page()
    served: list[str] = []

    class Slow:
        is_running = running

        def launch(self, **settings: Any) -> None:
            raise ValueError("When localhost is not accessible, a shareable link must be created.")

        def block_thread(self) -> None:
            served.append("to the end")

    monkeypatch.setattr(page, "demo", Slow())
    with nullcontext() if running else pytest.raises(ValueError, match="localhost"):
        page.launch()
    assert served == ["to the end"] * running


def test_an_unexpected_error_tells_a_number_and_no_details(space: Space, arrive: Any) -> None:
    visitor = arrive(f"/?a={SAMPLES[0]}&b={SAMPLES[1]}")
    visitor.fits()
    visitor.merge()
    for place in (space.home / "tmp").glob(".hub-merge.*/*/hub_merge.json"):
        place.write_bytes(b"\xff")
    visitor.page.click("#publish")
    told = visitor.alert()
    assert str(space.home) not in told and "Traceback" not in told
