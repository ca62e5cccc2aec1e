"""The commands, in the order of the work."""

from __future__ import annotations

from typing import NoReturn

import click

from hub_merge.cli.framework import Group, run_cli
from hub_merge.patience import bound_transfers

__all__ = ["cli", "main"]

COMMANDS = {
    "find": ("search", "inspect", "check", "score", "advise"),
    "merge": ("merge", "compress", "convert"),
    "verify": ("verify",),
    "models": ("fuse", "extract"),
    "measure": ("eval",),
    "publish": ("card", "push"),
    "zoo": ("zoo",),
    "ui": ("ui",),
    "methods": ("methods",),
}
"""The commands of each module in ``hub_merge.cli.commands``."""


@click.group(
    cls=Group,
    modules={f"hub_merge.cli.commands.{module}": names for module, names in COMMANDS.items()},
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="hub-merge", message="%(prog)s %(version)s")
def cli() -> None:
    """Find, check, score, merge, prove and publish LoRA adapters, without loading a base model.

    An adapter is a Hub id (owner/name, owner/name@revision:subfolder), the address of its page, a folder, or a file.
    It may be in the format of PEFT, kohya and LyCORIS, diffusers, MLX-LM or llama.cpp.
    """


def main() -> NoReturn:
    """Run the command line."""
    bound_transfers()
    run_cli(cli)
