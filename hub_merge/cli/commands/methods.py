"""The merge methods, told."""

from __future__ import annotations

import click

from hub_merge.cli.framework import command
from hub_merge.cli.options import output_options
from hub_merge.cli.output import Output

__all__ = ["methods"]


@command(examples=["methods", "methods lego", "methods --json"])
@click.argument("name", required=False)
@output_options
def methods(out: Output, name: str | None) -> None:
    """List the merge methods, or explain one."""
    from hub_merge.cli.show.methods import print_method, print_methods
    from hub_merge.methods import get_method, list_methods

    if name:
        print_method(out, get_method(name))
    else:
        print_methods(out, list_methods())
