"""Our part of the work that PEFT's merge does too, as a process of its own; see ``--help``."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import stopwatch
from hub_merge.adapter import Adapter, Origin
from hub_merge.formats.peft import open_folder, write_portable
from hub_merge.pipeline import merge
from hub_merge.scores import score


def main() -> None:
    """Open adapters, merge them and write the result, without proof, record and card; print what that took."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("job", metavar="JOB", help="a merge method, `score`, or `copy` for their files as they are")
    parser.add_argument("output", type=Path, help="new folder")
    parser.add_argument("adapters", type=Path, nargs="+")
    parser.add_argument("--settings", type=json.loads, default={}, help="arguments of merge or score as JSON")
    asked = parser.parse_args()
    asked.output.mkdir()
    with stopwatch() as took:
        if asked.job == "copy":
            _copy(asked.adapters, asked.output)
        elif asked.job == "score":
            score(_opened(asked.adapters), **asked.settings)
        else:
            _merge(asked.adapters, asked.output, asked.job, asked.settings)
    print(json.dumps(took))


def _copy(folders: Sequence[Path], output: Path) -> None:
    for folder in folders:
        (output / folder.name).mkdir()
        for file in folder.iterdir():
            shutil.copyfile(file, output / folder.name / file.name)


def _merge(folders: Sequence[Path], output: Path, method: str, settings: dict[str, Any]) -> None:
    composite = merge(_opened(folders), method, **settings)
    write_portable(
        composite,
        output,
        base_model=composite.base_model,
        dtype=composite.dtype,
        rank=composite.rank,
        progress=lambda module: None,
    )


def _opened(folders: Sequence[Path]) -> list[Adapter]:
    return [open_folder(folder, name=folder.name, origin=Origin(folder=folder)) for folder in folders]


if __name__ == "__main__":
    main()
