"""Runs attacks, each in a fork of one process that has imported the package: time and memory are those of the attack.

Started as ``python -m tests.attacks.arena FOLDER``; reads names of attacks and prints how each ended as JSON, a line an
attack.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from hub_merge.compat import check
from hub_merge.hub import Hub
from hub_merge.sources import open_adapter
from tests.attacks.formats import ATTACKS

MOST_MEMORY = 300 * 2**20
MOST_SECONDS = 10
"""Where an attack that succeeds is stopped."""


def refused(folder: Path, hub: Hub) -> tuple[str, str]:
    """Return the name of the error that the folder gets, and what it says."""
    target = folder / "adapter"
    try:
        result = check([open_adapter(target if target.is_dir() else folder, hub=hub)])
    except Exception as error:
        return type(error).__name__, str(error)
    return "finding", " ".join(found.code for found in result.report.problems)


def status(name: str) -> int:
    """Return a number of bytes from this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def fight(folder: Path, hub: Hub) -> dict[str, Any]:
    """Open and check the folder in a limited process; return how that ended."""
    before = sorted(folder.rglob("*"))
    reading, writing = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + MOST_MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS))
        error, says = refused(folder, hub)
        with os.fdopen(writing, "w") as answer:
            json.dump({"error": error, "says": says}, answer)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    usage = os.wait4(child, 0)[2]
    ended = json.loads(text) if text else {"error": "killed", "says": ""}
    wrote = sorted(folder.rglob("*")) != before
    return {**ended, "cpu": usage.ru_utime + usage.ru_stime, "wall": time.monotonic() - started, "wrote": wrote}


def main() -> None:
    """Build and fight each attack whose name comes in."""
    root = Path(sys.argv[1])
    for name in map(str.strip, sys.stdin):
        attack = ATTACKS[name]
        attack.build(root / name)
        hub = Hub(token=False, endpoint="http://127.0.0.1:9", offline=True, allow_pickle=attack.allow_pickle)
        print(json.dumps({"attack": name, **fight(root / name, hub)}), flush=True)


if __name__ == "__main__":
    main()
