"""Our part of the work that PEFT's merge does too, as a process of its own; see ``--help``."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.stopwatch import stopwatch
from hub_merge.adapter import Origin
from hub_merge.formats.peft import open_folder, write_folder
from hub_merge.pipeline import merge


def main() -> None:
    """Open adapters, merge them and write the result, without proof, record and card; print what that took."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("job", metavar="JOB", help="a merge method, `score`, or `copy` for their files as they are")
    parser.add_argument("output", type=Path, help="new folder")
    parser.add_argument("adapters", type=Path, nargs="+")
    parser.add_argument("--settings", type=json.loads, default={}, help="arguments of merge or score as JSON")
    asked = parser.parse_args()
    asked.output.mkdir()
    job = _prepared(asked.job, asked.adapters, asked.output, asked.settings)
    with stopwatch() as took:
        job()
    print(json.dumps(took))


def _prepared(name: str, folders: Sequence[Path], output: Path, settings: dict[str, Any]) -> Callable[[], object]:
    """Return the work itself; adapters have been opened and checked."""
    if name == "copy":
        return partial(_copy, folders, output)
    adapters = [open_folder(folder, name=folder.name, origin=Origin(folder=folder)) for folder in folders]
    if name == "score":
        from hub_merge.scores import score  # a merge does without

        return partial(score, adapters, **settings)
    composite = merge(adapters, name, **settings)
    return partial(
        write_folder,
        composite,
        output,
        base_model=composite.base_model,
        dtype=composite.dtype,
        rank=composite.uniform_rank,
        progress=lambda module: None,
    )


def _copy(folders: Sequence[Path], output: Path) -> None:
    for folder in folders:
        (output / folder.name).mkdir()
        for file in folder.iterdir():
            shutil.copyfile(file, output / folder.name / file.name)


if __name__ == "__main__":
    main()
