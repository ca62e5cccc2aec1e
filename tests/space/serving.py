"""The page as a process of its own, in front of a Hub double, as ``hub-merge ui`` serves it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hub_double import HubDouble

ROOT = Path(__file__).parents[2]
ZOO = ROOT / "examples" / "zoo"
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
READY = 90.0


@dataclass
class Space:
    """A running page.

    Attributes:
        url: Where it is.
        hub: The Hub it talks to.
        home: Its home folder, which holds its caches and nothing else.
        log: What it printed.
    """

    url: str
    hub: HubDouble
    home: Path
    log: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)


def serve(hub: HubDouble, home: Path, user: str | None = "alice", **variables: str) -> Space:
    """Start the page, logged in as ``user`` on its own machine, and wait until it answers."""
    port = free_port()
    log = home / "page.log"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUB_MERGE"))},
        **hub.environment(home, user),
        "TMPDIR": str(home / "tmp"),
        "GRADIO_TEMP_DIR": str(home / "tmp" / "gradio"),
        "PYTHONPATH": str(ROOT),
        **variables,
    }
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "hub_merge", "ui", "--port", str(port), "--no-browser"],
            cwd=home,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    space = Space(f"http://127.0.0.1:{port}", hub, home, log, process)
    wait_until_ready(space)
    return space


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until_ready(space: Space) -> None:
    end = time.monotonic() + READY
    while time.monotonic() < end:
        if space.process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{space.url}/config", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"the page did not start:\n{space.log.read_text(errors='replace')}")


def fill(hub: HubDouble) -> None:
    """Publish the example adapters on the double under several owners, one gated and one private."""
    hub.add_repo(BASE, {"README.md": b"---\nlicense: apache-2.0\n---\n", "config.json": b'{"model_type": "llama"}'})
    for repo_id, name, settings in [
        ("carol/math-lora", "math", {"downloads": 1234, "likes": 7}),
        ("dave/medicine-lora", "medicine", {"downloads": 321}),
        ("erin/finance-lora", "finance", {"downloads": 55}),
        ("frank/gated-lora", "finance", {"downloads": 3, "gated": "manual"}),
        ("bob/secret-lora", "medicine", {"private": True}),
    ]:
        hub.add_repo(repo_id, adapter_files(name), **settings)  # type: ignore[arg-type]
    other = adapter_files("math", {"base_model_name_or_path": "openai-community/gpt2"})
    hub.add_repo("gina/other-base", {**other, "README.md": b"---\nbase_model: openai-community/gpt2\n---\n"})
    hub.add_repo("openai-community/gpt2", {"README.md": b"---\nlicense: mit\n---\n"})
    hub.add_repo("hugo/no-license", {**adapter_files("finance"), "README.md": card(None)})
    hub.add_repo("ivan/broken", {**adapter_files("math"), "adapter_model.safetensors": b"version https://git-lfs"})


def adapter_files(name: str, config: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """Return the files of an example adapter, with some fields of its config replaced."""
    folder = ZOO / name
    stated = {**json.loads((folder / "adapter_config.json").read_text()), **(config or {})}
    return {
        "adapter_config.json": json.dumps(stated).encode(),
        "adapter_model.safetensors": (folder / "adapter_model.safetensors").read_bytes(),
        "README.md": card("apache-2.0"),
    }


def card(license: str | None) -> bytes:
    stated = f"license: {license}\n" if license else ""
    return f"---\nbase_model: {BASE}\nlibrary_name: peft\n{stated}---\n# An adapter\n".encode()
