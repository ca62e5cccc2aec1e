"""Measure what merging costs, beside PEFT, and write tables and a picture to ``benchmarks/results``."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks import zoo
from benchmarks.parts import PARTS, Workshop
from benchmarks.picture import draw
from benchmarks.report import Measured, read, render

RESULTS = Path(__file__).resolve().parent / "results"
REPORT, PICTURE = "README.md", "costs.png"


def main() -> None:
    """Measure the parts that are asked for; the report has the earlier figures of the others."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(PARTS)}, or zoo; all but zoo by default")
    parser.add_argument("--runs", type=int, default=3, help="turns that count (default: %(default)s)")
    asked = parser.parse_args()
    if asked.parts == ["zoo"]:
        RESULTS.mkdir(exist_ok=True)
        zoo.main(RESULTS)
        return
    if unknown := set(asked.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    RESULTS.mkdir(exist_ok=True)
    for part in asked.parts or PARTS:
        print(f"{part} …", flush=True)
        with tempfile.TemporaryDirectory() as root:
            measured = Measured.now(asked.runs, PARTS[part](Workshop(Path(root), asked.runs)))
        measured.write(RESULTS / f"{part}.json")
        write_report(RESULTS)
    print((RESULTS / REPORT).read_text(encoding="utf-8"))


def write_report(folder: Path) -> None:
    """Write the report on all parts whose figures are in ``folder``."""
    parts = read(folder)
    draw(parts, folder / PICTURE)
    (folder / REPORT).write_text(render(parts, PICTURE), encoding="utf-8")


if __name__ == "__main__":
    main()
