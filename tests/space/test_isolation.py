"""Several visitors at once: nobody sees what is another's, and nothing of anybody is left behind."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.space.serving import Space

SECRET = "bob/secret-lora"


def made_in(space: Space) -> set[Path]:
    """Return the folders of the composites that visitors have made and not left yet."""
    return {record.parents[1] for record in (space.home / "tmp").glob(".hub-merge.*/*/hub_merge.json")}


def test_two_people_at_once_see_only_what_is_theirs(space: Space, arrive: Any) -> None:
    before = len(space.hub.requests)
    bob = arrive(f"/?a={SECRET}&b=carol/math-lora", as_user="bob")
    anyone = arrive(f"/?a={SECRET}&b=carol/math-lora")
    alice = arrive(f"/?a={SECRET}&b=carol/math-lora", as_user="alice")
    bob.fits()
    bob.measure()
    bob.merge()
    for stranger in (anyone, alice):
        assert SECRET in stranger.alert()
        assert stranger.page.locator("#heat .hm-heat").count() == 0
        assert stranger.page.locator("#fit .hm-verdict").count() == 0
    assert "Sign out (bob)" in bob.text("#hm-login")
    assert "Sign out (alice)" in alice.text("#hm-login")
    assert "bob" not in anyone.text("#hm-login")
    files = [request for request in space.hub.requests[before:] if f"{SECRET}/resolve" in request.path]
    assert files
    assert {request.headers.get("authorization") for request in files if request.status in (200, 206, 302, 307)} == {
        f"Bearer {space.hub.token('bob')}"
    }
    for visitor in (bob, anyone, alice):
        assert not [user for user in ("alice", "bob") if space.hub.token(user) in visitor.page.content()]
    assert not list(space.home.rglob("*bob--secret-lora*"))
    assert set((space.home / "tmp").glob(".hub-merge.*")) == made_in(space)


def test_a_gated_adapter_of_one_visitor_is_not_read_from_a_cache_by_another(space: Space, arrive: Any) -> None:
    space.hub.grant("frank/gated-lora", "bob")
    bob = arrive("/?a=frank/gated-lora&b=carol/math-lora", as_user="bob")
    bob.fits()
    bob.measure()
    bob.merge()
    assert bob.page.get_by_label("New, private").is_checked()
    alice = arrive("/?a=frank/gated-lora&b=carol/math-lora", as_user="alice")
    assert "frank/gated-lora" in alice.alert()
    assert not list(space.home.rglob("*frank--gated-lora*"))


def test_a_merge_that_is_made_again_or_left_leaves_no_folder(space: Space, arrive: Any) -> None:
    before = made_in(space)
    visitor = arrive("/?a=examples/zoo/math&b=examples/zoo/medicine")
    visitor.fits()
    visitor.merge()
    first = made_in(space) - before
    visitor.page.click("#merge")
    visitor.page.wait_for_function("!document.querySelector('#proof .wrap:not(.hide)')")
    for _ in range(100):
        if len(second := made_in(space) - before) == 1 and second != first:
            break
        visitor.page.wait_for_timeout(100)
    assert len(second) == 1 and second != first


def test_ten_at_once_lose_nothing(space: Space) -> None:
    from gradio_client import Client

    pairs = [("carol/math-lora", "dave/medicine-lora"), ("dave/medicine-lora", "erin/finance-lora")]

    def visit(number: int) -> tuple[bool, float]:
        client = Client(space.url, verbose=False)
        adapters = list(pairs[number % 2])
        checked = client.predict(adapters=adapters, api_name="/check")
        scored = client.predict(adapters=adapters, api_name="/score")
        return checked["compatible"], round(scored["rms_cosine"], 6)

    with ThreadPoolExecutor(10) as visitors:
        seen = list(visitors.map(visit, range(10), timeout=100))
    assert all(compatible for compatible, _ in seen)
    assert {seen[n][1] for n in range(0, 10, 2)} != {seen[n][1] for n in range(1, 10, 2)}
    assert len({seen[n][1] for n in range(0, 10, 2)}) == len({seen[n][1] for n in range(1, 10, 2)}) == 1


def test_the_log_names_no_token(space: Space) -> None:
    assert not re.search(r"hf_\w", space.log.read_text(errors="replace"))
