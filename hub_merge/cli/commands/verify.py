"""Anybody's check that a composite or fused model is what it says it is."""

from __future__ import annotations

import click

from hub_merge.cli.framework import command
from hub_merge.cli.options import client, output_options, pickle_option, token_option
from hub_merge.cli.output import Output

__all__ = ["verify"]


@command(examples=["verify someone/math-medicine", "verify ./math-medicine ./math ./medicine", "verify ./fused ./base"])
@click.argument("result", metavar="COMPOSITE")
@click.argument("parents", nargs=-1, metavar="[PARENT]...")
@pickle_option
@token_option
@output_options
def verify(out: Output, result: str, parents: tuple[str, ...], token: str | None, allow_pickle: bool) -> None:
    """Prove that a composite is the merge its record tells of.

    Its parents are fetched at their recorded commits, compared with the recorded hashes and merged again: bit by bit
    for a sum, to a stated tolerance elsewhere. A fused model is compared with base and adapter, number by number.
    PARENT is the folder or file of a parent that was local. The verdict is reproduced, differs (with the parent, file
    and tensors) or parents gone; the exit code is 0 for reproduced only, else 1.
    """
    from hub_merge.cli.show.verification import print_verification
    from hub_merge.fusion import verify as verify_any

    hub = client(out, token, allow_pickle=allow_pickle)
    found = verify_any(result, parents=parents, hub=hub, progress=out.progress())
    print_verification(out, result, parents, found)
    if not found.passed:
        raise click.exceptions.Exit(1)
