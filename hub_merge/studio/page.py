"""The file that draws the page with Gradio, wherever it was installed."""

from __future__ import annotations

import atexit
import importlib.util
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

from hub_merge.errors import HubMergeError
from hub_merge.workspace import workspace

__all__ = ["load_page", "page_file"]

PLACES = (Path(__file__).with_name("app.py"), Path(__file__).parents[2] / "spaces" / "hub-merge" / "app.py")
"""Where a wheel and where a clone keep it."""

MODULE = "hub_merge_page"


def page_file() -> Path:
    """Return the file.

    Raises:
        HubMergeError: This installation lacks it.
    """
    for place in PLACES:
        if place.is_file():
            return place
    raise HubMergeError("This installation has no page.", remedy="Install again: pip install 'hub-merge[space]'")


def load_page() -> ModuleType:
    """Return the page's module, which has ``launch``; nothing of it is reported to anybody.

    Raises:
        HubMergeError: Gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    if importlib.util.find_spec("gradio") is None:
        raise HubMergeError("The page needs gradio.", remedy="pip install 'hub-merge[space]'")
    if not os.environ.get("GRADIO_TEMP_DIR"):
        os.environ["GRADIO_TEMP_DIR"] = str(_room_for_downloads() / "gradio")
    spec = importlib.util.spec_from_file_location(MODULE, page_file())
    if spec is None or spec.loader is None:
        raise HubMergeError("The page cannot be loaded.", remedy="Install again: pip install 'hub-merge[space]'")
    module = sys.modules[MODULE] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _room_for_downloads() -> Path:
    """Return a folder that vanishes with this process, or with the next page if this one is killed."""
    room = ExitStack()
    atexit.register(room.close)
    return room.enter_context(workspace())
