"""The only part of the package that reads from the network: find, pin, pull, and header-only reads."""

from hub_merge.hub.client import Hub
from hub_merge.hub.listings import Listing, SortKey
from hub_merge.hub.ranges import RemoteHeaders
from hub_merge.hub.references import Reference, parse_reference
from hub_merge.hub.repositories import PinnedRepo, RemoteFile, RepoType

__all__ = [
    "Hub",
    "Listing",
    "PinnedRepo",
    "Reference",
    "RemoteFile",
    "RemoteHeaders",
    "RepoType",
    "SortKey",
    "parse_reference",
]
