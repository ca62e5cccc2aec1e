"""The command line: parse, one call, print. Every decision is made in the package, none here."""

from hub_merge.cli.app import main

__all__ = ["main"]
