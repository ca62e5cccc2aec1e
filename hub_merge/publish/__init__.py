"""Publishing: a folder becomes one commit, on a branch, as a pull request, tagged, in a collection."""

from hub_merge.publish.folder import publish_folder
from hub_merge.publish.job import Published, PublishedFile

__all__ = ["Published", "PublishedFile", "publish_folder"]
