"""The generated parts of the README; ``python -m tests.readme`` renews them."""

from __future__ import annotations

import re
from pathlib import Path

from hub_merge.methods import list_methods

README = Path(__file__).resolve().parent.parent / "README.md"
TABLE = re.compile(r"(?<=<!-- methods:start -->\n).*?(?=<!-- methods:end -->)", re.DOTALL)


def methods_table() -> str:
    """Return the table of the methods that this package brings."""
    rows = ["| method | what it gives | rank by default | paper |", "|---|---|---|---|"]
    for method in list_methods():
        if not method.kernel.__module__.startswith("hub_merge."):
            continue
        names = ", ".join(f"`{name}`" for name in (method.name, *method.aliases))
        rank = "sum of the ranks" if method.default_rank == "total" else "largest rank"
        paper = f"[{method.paper}](https://arxiv.org/abs/{method.paper})" if method.paper else ""
        summary = method.summary.removeprefix("Return ").rstrip(".")
        rows.append(f"| {names} | {summary} | {rank} | {paper} |")
    return "\n".join(rows) + "\n"


def blocks(language: str) -> list[str]:
    """Return the README's code blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


if __name__ == "__main__":
    README.write_text(TABLE.sub(lambda _: methods_table(), README.read_text(encoding="utf-8")), encoding="utf-8")
