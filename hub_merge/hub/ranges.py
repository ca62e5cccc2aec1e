"""Bounded reads of single files: a few bytes over the network, or from the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from hub_merge.errors import AdapterFormatError

__all__ = ["MOST_TEXT", "MOST_TOKENS", "ReadRange", "RemoteHeaders", "fetch_range", "read_header"]

MOST_TEXT = 1_000_000
"""Bytes of the largest text file (configuration, card) that is read."""
MOST_TOKENS = 4_000_000
"""Bytes of the largest tokenizer file that is read; Gemma's has 1.2 million."""
FIRST_READ = 100_000
MOST_HEADER = 25_000_000
LENGTH_BYTES = 8

ReadRange: TypeAlias = Callable[[int, int], bytes]
"""Return the bytes of a file from a start up to, not including, an end."""


@dataclass(frozen=True, slots=True)
class RemoteHeaders:
    """What tells an adapter's modules, shapes and settings, without its numbers.

    Attributes:
        config: Content of ``adapter_config.json``, ``None`` if the adapter has none.
        headers: Start of each weight file, by name: 8 bytes of length, then that many bytes of JSON.
        index: Content of the index of a sharded adapter.
        sizes: Bytes of each weight file, by name.
        bytes_read: Bytes that went over the network for this.
        tokens: Content of the files that name added tokens, by name; empty unless asked for.
    """

    config: bytes | None
    headers: Mapping[str, bytes]
    index: bytes | None
    sizes: Mapping[str, int]
    bytes_read: int
    tokens: Mapping[str, bytes] = field(default_factory=dict)


def fetch_range(url: str, headers: Mapping[str, str], start: int, end: int) -> bytes:
    """Return the bytes ``start`` to ``end`` of what is at ``url``, and never read more than ``end`` bytes.

    The client drops the token when it is sent on to another origin. What arrives is not unpacked, whatever the server
    says of it.
    """
    from httpx2 import RemoteProtocolError
    from huggingface_hub import get_session, hf_raise_for_status

    asked = {**headers, "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    with get_session().stream("GET", url, headers=asked, follow_redirects=True) as response:
        hf_raise_for_status(response)
        skipped = start if response.status_code == 200 else 0
        content = bytearray()
        for chunk in response.iter_raw():
            content += chunk
            if len(content) >= skipped + end - start:
                break
    if len(content) < skipped + end - start:
        raise RemoteProtocolError(f"the answer ended after {len(content)} bytes")
    return bytes(content[skipped : skipped + end - start])


def read_header(read: ReadRange, size: int, subject: str) -> bytes:
    """Return the start of a safetensors file: 8 bytes of length and the JSON header.

    Args:
        read: Reads a range of the file.
        size: Bytes of the file.
        subject: Names the file in messages.

    Raises:
        AdapterFormatError: The file cannot be safetensors, or its header is longer than any adapter needs.
    """
    start = read(0, min(size, LENGTH_BYTES + FIRST_READ))
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    end = LENGTH_BYTES + length
    if size < LENGTH_BYTES or end > size:
        raise AdapterFormatError(
            f"{subject} is not a safetensors file: it has {size} bytes and announces a header of {length}.",
            remedy="Take another revision, or ask its author to upload the file again.",
        )
    if length > MOST_HEADER:
        raise AdapterFormatError(
            f"{subject} announces a header of {length} bytes; {MOST_HEADER} are more than an adapter needs.",
            remedy="Take another adapter.",
        )
    return start[:end] if end <= len(start) else start + read(len(start), end)
