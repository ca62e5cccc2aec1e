"""Cards and publication."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hub_merge.cli.framework import command
from hub_merge.cli.options import accept_unknown_license_option, client, output_options, token_option
from hub_merge.cli.output import Output

__all__ = ["card", "push"]

composite_argument = click.argument("composite", type=click.Path(exists=True, file_okay=False, path_type=Path))


@command(examples=["card ./math-medicine", "card ./math-medicine --repo-id me/math-medicine --write"])
@composite_argument
@click.option("--repo-id", metavar="OWNER/NAME", help="Repository to name in the usage section.")
@click.option("--write", is_flag=True, help="Write it to README.md; text outside our markers stays.")
def card(composite: Path, repo_id: str | None, write: bool) -> None:
    """Print the model card that a composite's record gives."""
    from hub_merge.pipeline import card_of

    text = card_of(composite, repo_id=repo_id, write=write)
    if write:
        click.echo(f"Wrote {composite / 'README.md'}", err=True)
    else:
        click.echo(text, nl=False)


@command(
    examples=[
        "push ./math-medicine me/math-medicine --private",
        "push ./math-medicine org/lora --create-pr --dry-run",
        "push ./math-medicine me/math-medicine --branch rank-8 --tag v1.0 --collection 'My merges'",
    ]
)
@composite_argument
@click.argument("repo_id", metavar="OWNER/NAME")
@click.option(
    "--private/--no-private",
    default=None,
    help="Visibility of a new repository.  [default: private if a parent is gated or private]",
)
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--branch", metavar="NAME", help="Branch to commit to; created if there is none of that name.")
@click.option("--tag", metavar="NAME", help="Tag to give the commit.")
@click.option(
    "--collection",
    metavar="SLUG|TITLE",
    help="Collection that shall list the repository; one of a new title is created.",
)
@click.option("--commit-message", metavar="TEXT", help="Title of the commit.")
@accept_unknown_license_option
@click.option("--dry-run", is_flag=True, help="Show what would be sent; change nothing.")
@click.option("--force", is_flag=True, help="Write into a repository that hub-merge did not make.")
@token_option
@output_options
def push(out: Output, composite: Path, repo_id: str, token: str | None, **asked: Any) -> None:
    """Publish a composite, or a fused model, as one commit on the Hub.

    Everything is checked first, the licences of base and parents too, and a new repository is created last. What is
    there already is not sent again.
    """
    from hub_merge.cli.show.publication import print_published
    from hub_merge.fusion import is_fused, push_fused
    from hub_merge.pipeline import push_folder

    publish = push_fused if is_fused(composite) else push_folder
    published = publish(composite, repo_id, hub=client(out, token), **asked)
    print_published(out, published, dry_run=asked["dry_run"])
