"""What becomes of each real adapter: a table in ``wild_verdicts.md`` that ``python -m tests.verdicts`` writes anew.

The adapters themselves are in the folder that HUB_MERGE_WILD names, as ``<owner>__<repository>/<folder>``, where ``__``
stands for a slash; only their names are here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from hub_merge.adapter import Adapter
from hub_merge.compat import check
from hub_merge.errors import HubMergeError

TABLE = Path(__file__).with_name("wild_verdicts.md")
CONFIG = "adapter_config.json"
HEAD = """# Verdicts on real adapters

Written by `python -m tests.verdicts` and kept true by `tests/test_wild.py`. Pickles are read as with `--allow-pickle`.
Reasons are codes of findings, or what the error says.

| Adapter | Format | Verdict | Reason |
|:--------|:-------|:--------|:-------|
"""


def places(root: Path) -> Iterator[Path]:
    """Yield every folder with a config, and every weight file of the folders without one, with its folder."""
    for group in ("adapters_real", "adapters_broken"):
        for folder in sorted(path for path in (root / group).glob("*/*") if path.is_dir()):
            yield folder
            if not (folder / CONFIG).is_file():
                files = sorted(folder.glob("*.safetensors"))
                yield from files if len(files) > 1 else []


def name_of(place: Path, root: Path) -> str:
    """Return ``owner/repository:folder/file`` as it was on the Hub or elsewhere."""
    _, repository, folder, *file = place.relative_to(root).parts
    inside = [part for part in (folder.replace("__", "/") if folder != "root" else "", *file) if part]
    return repository.replace("__", "/", 1) + (f":{'/'.join(inside)}" if inside else "")


def verdict(place: Path) -> tuple[str, str, str]:
    """Return format, verdict and reason of one adapter."""
    try:
        adapter = Adapter.from_pretrained(place, allow_pickle=True)
    except HubMergeError as error:
        said = error.problem.removeprefix(f"{place}: ").replace(f"{place}/", "")
        return "", "refused", f"{type(error).__name__}: {said}"
    report = check([adapter]).report
    found = report.problems or report.cautions
    codes = ", ".join(dict.fromkeys(finding.code for finding in found))
    return adapter.format, "refused" if report.problems else "accepted", codes


def table(root: Path) -> str:
    """Return the whole table."""
    rows = (f"| {name_of(place, root)} | {' | '.join(verdict(place))} |" for place in places(root))
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    TABLE.write_text(table(Path(os.environ["HUB_MERGE_WILD"])), encoding="utf-8")
