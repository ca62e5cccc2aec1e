"""The page in the browser."""

from __future__ import annotations

import click

from hub_merge.cli.framework import command

__all__ = ["ui"]


@command(examples=["ui", "ui --port 8000 --no-browser"])
@click.option(
    "--port", metavar="N", type=click.IntRange(1, 65535), help="Port to listen on.  [default: a free one from 7860]"
)
@click.option("--browser/--no-browser", default=True, help="Open the page in the browser.  [default: browser]")
def ui(port: int | None, browser: bool) -> None:
    """Do it all on a page in the browser (needs gradio).

    It is served on this machine for you alone, and uses the login that is stored here when you sign in on it. It is the
    page of the Space, with the same limits, which HUB_MERGE_UI_MAX_ADAPTERS, _MAX_BYTES and _MAX_SECONDS raise.
    """
    from hub_merge.studio.page import load_page

    load_page().launch(port, open_browser=browser)
