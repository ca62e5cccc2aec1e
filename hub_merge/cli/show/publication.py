"""How a publication is printed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from hub_merge.cli.output import Output
from hub_merge.cli.show.words import human_size

if TYPE_CHECKING:
    from hub_merge.licenses import LicenseVerdict
    from hub_merge.publish import Published

__all__ = ["hint_push", "print_published"]


def print_published(out: Output, published: Published, *, dry_run: bool, verifiable: bool = True) -> None:
    """Print what a push did or would do, and how what is ``verifiable`` is verified."""
    files = [{"file": name, "size": size, "action": action} for name, size, action in published.files]
    values = {
        "url": published.pr_url or published.url,
        "repo_id": published.repo_id,
        "commit": published.commit,
        "created": published.created,
        "changed": published.changed,
        "branch": published.branch,
        "tag": published.tag,
        "collection": published.collection,
    }
    if out.mode == "json":
        out.document({**values, "pr_url": published.pr_url, "dry_run": dry_run, "files": files})
    else:
        if out.human:
            out.table(files, ["file", "size", "action"], formats={"size": human_size})
        out.fields(values, title=_publishing(published, dry_run))
    if dry_run:
        out.hint("nothing was sent; leave out --dry-run to publish")
    elif verifiable and not published.pr_url:
        out.hint(f"hub-merge verify {published.repo_id}")


def _publishing(published: Published, dry_run: bool) -> str:
    if not published.changed:
        return "✓ Nothing to change: the repository holds these files already"
    return "Would publish" if dry_run else "✓ Opened a pull request" if published.pr_url else "✓ Published"


def hint_push(out: Output, folder: Path, verdict: LicenseVerdict, *, unasked_base: str | None = None) -> None:
    """Hint at the command that publishes ``folder``, or at what stands in its way.

    The licence of ``unasked_base`` was not asked for yet, so that publishing asks for it.
    """
    prefix = f"{verdict.prefixes[0].replace(' ', '-')}-" if verdict.prefixes else ""
    command = f"hub-merge push {shlex.quote(str(folder))} OWNER/{prefix}NAME --private"
    if not verdict.blockers:
        out.hint(command)
    elif verdict.lacks_only(unasked_base):
        out.hint(f"the licence of {unasked_base} is not known; {command} asks the Hub for it")
    else:
        for found in verdict.blockers:
            out.hint(f"before it can be published: {found.problem} {found.remedy}")
