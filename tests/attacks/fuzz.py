"""Coverage-guided fuzzing of the readers, for as long as you like: ``python -m tests.attacks.fuzz config``.

Needs atheris (``pip install atheris``). What follows the name of the target goes to libFuzzer, such as
``-max_total_time=600``. A crash is written to a file that the same command takes as an argument to run again.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Fuzz one target."""
    import atheris

    with atheris.instrument_imports(include=["hub_merge"]):
        from tests.attacks.targets import SEEDS, TARGETS

    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"Name a target: {', '.join(TARGETS)}")
    name = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as corpus:
        (Path(corpus) / "sound").write_bytes(SEEDS[name])
        atheris.Setup([*sys.argv, corpus], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
