"""A file of rows that were measured, one a line, so that a run that was cut short goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

from hub_merge.adapter import LoraFactors
from hub_merge.errors import EvaluationError
from hub_merge.evaluate.losses import Encoded, Loss
from hub_merge.workspace import write_whole

__all__ = ["Journal", "digest_of_factors", "key_of"]


class Journal:
    """Losses by the key of what they were measured on; ``None`` as path keeps them in memory only.

    A line that a crash cut short at the end of the file is left out and measured again.

    Args:
        path: File to read and to write on; it is created if it is not there.

    Raises:
        EvaluationError: The file holds something else.
    """

    def __init__(self, path: Path | None) -> None:
        self._losses: dict[str, Loss] = {}
        self._file: IO[str] | None = None
        if path is not None:
            self._read(path)
            self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def get(self, key: str) -> Loss | None:
        """Return what was measured under ``key``, ``None`` if nothing was."""
        return self._losses.get(key)

    def add(self, key: str, loss: Loss) -> None:
        """Keep a loss, in the file at once."""
        self._losses[key] = loss
        if self._file is not None:
            entry = [key, loss.answer, loss.answer_tokens, loss.text, loss.text_tokens]
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()

    def _read(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole, _, rest = text.rpartition("\n")
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                key, answer, answer_tokens, text_nats, text_tokens = json.loads(line)
            except (ValueError, TypeError) as error:
                raise EvaluationError(
                    f"{path.name}, line {number}, is no row that was measured.", remedy="Give a new file to --resume."
                ) from error
            self._losses[key] = Loss(answer, answer_tokens, text_nats, text_tokens)
        if rest:
            write_whole(path, f"{whole}\n" if whole else "")


def digest_of_factors(factors: Mapping[str, LoraFactors]) -> str:
    """Return a digest of the numbers that are worn; one of nothing for the plain base."""
    digest = hashlib.sha256()
    for name, part in sorted(factors.items()):
        digest.update(f"{name} {part.scaling!r} {part.A.shape} {part.B.shape} {part.A.dtype} {part.B.dtype}".encode())
        digest.update(part.A.tobytes())
        digest.update(part.B.tobytes())
    return digest.hexdigest()


def key_of(model: str, worn: str, row: Encoded) -> str:
    """Return what identifies a measurement: the model, what it wears, and the tokens with the start of the answer."""
    text = f"{model} {worn} {row.start} {row.tokens}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]
