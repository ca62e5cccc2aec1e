"""One causal language model in memory, which wears one adapter after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub_merge.bases import read_base
from hub_merge.errors import CheckpointError, EvaluationError
from hub_merge.evaluate.losses import Encoded, Loss, batches, encode, score_batch
from hub_merge.evaluate.questions import Question
from hub_merge.evaluate.wearing import Wearable, wear

if TYPE_CHECKING:
    import torch

__all__ = ["LanguageModel"]

LOGITS = 2**26
"""Most logits at once: a quarter of a gigabyte in float32."""
MOST_BATCH, LEAST_BATCH = 4096, 256
"""Tokens a batch, padding among them."""


class LanguageModel:
    """A causal language model of transformers with its tokenizer.

    Args:
        model: The model. It is put into evaluation mode.
        tokenizer: Its tokenizer.
        label: What it is called in results: a Hub id, or the last part of a path.
        most_tokens: Longer texts are cut at their end; ``None`` takes what the model has positions for.
        batch_tokens: Tokens a batch; ``None`` takes what memory for logits allows.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        label: str,
        most_tokens: int | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.label = label
        vocabulary = model.get_output_embeddings().weight.shape[0]
        self.most_tokens = most_tokens or getattr(model.config, "max_position_embeddings", None) or 2048
        self.batch_tokens = batch_tokens or max(LEAST_BATCH, min(MOST_BATCH, LOGITS // vocabulary))

    @classmethod
    def load(
        cls,
        base: str | Path,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        token: str | bool | None = None,
        **settings: Any,
    ) -> LanguageModel:
        """Load a model once, to evaluate any number of adapters on it.

        Args:
            base: Hub id, folder in transformers' format, or GGUF file.
            revision: Branch, tag or commit of a Hub id.
            dtype: ``float32``, ``bfloat16`` or ``float16``; ``auto`` takes bfloat16 where the processor computes in it.
            device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; ``auto`` takes a GPU if there is one.
            token: Hub token; ``None`` takes the stored login.
            **settings: ``most_tokens`` and ``batch_tokens``; see the class.

        Raises:
            CheckpointError: There is no such model, or transformers cannot load it as a causal language model.
            EvaluationError: torch or transformers are missing, or there is no such device or dtype.
        """
        transformers = _libraries()
        where = _device(device)
        kind = _dtype(dtype, where)
        file = Path(base)
        local = file.is_file()
        place: dict[str, Any] = {"gguf_file": file.name} if local else {"revision": revision, "token": token}
        source = str(file.parent) if local else str(base)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **place)
            model = transformers.AutoModelForCausalLM.from_pretrained(source, **place, dtype=kind)
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise CheckpointError(
                f"{read_base(str(base)).label} cannot be loaded as a causal language model: {str(error)[:300]}",
                remedy="Give a Hub id, a folder that transformers reads, or a GGUF file.",
            ) from error
        return cls(model.to(where), tokenizer, label=read_base(str(base)).label, **settings)

    @property
    def dtype(self) -> str:
        """Name of the dtype that the model computes in."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        """Name of the device that the model is on."""
        return str(self.model.device)

    @cached_property
    def digest(self) -> str:
        """What tells this model from others of its name: its dtype and the first numbers of every weight."""
        digest = hashlib.sha256(self.dtype.encode())
        for name, weight in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(weight.shape)} {weight.flatten()[:64].tolist()}".encode())
        return digest.hexdigest()

    def wearing(self, adapter: Wearable) -> AbstractContextManager[None]:
        """Return a context in which the model computes with ``adapter``; see ``wear``."""
        return wear(self.model, adapter)

    def encode(self, questions: Sequence[Question]) -> list[Encoded]:
        """Return the tokens of each question."""
        return [encode(question, self.tokenizer, self.most_tokens) for question in questions]

    def losses(
        self, questions: Sequence[Question | Encoded], done: Callable[[int, Loss], None] | None = None
    ) -> list[Loss]:
        """Return the loss of each question with what the model wears now, in the order given.

        Args:
            questions: Questions, or their tokens if they were encoded before.
            done: Called with the place and the loss of each row as it is done, which is in another order.
        """
        rows = [
            encode(row, self.tokenizer, self.most_tokens) if isinstance(row, Question) else row for row in questions
        ]
        found: dict[int, Loss] = {}
        for places in batches(rows, self.batch_tokens):
            for place, loss in zip(places, self._scored([rows[place] for place in places]), strict=True):
                found[place] = loss
                if done is not None:
                    done(place, loss)
        return [found[place] for place in range(len(rows))]

    def _scored(self, rows: Sequence[Encoded]) -> list[Loss]:
        import torch

        with torch.inference_mode():
            return score_batch(rows, self.logits_at)

    def logits_at(self, tokens: torch.Tensor, mask: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Return the logits at the positions that ``wanted`` marks, ``(positions, vocabulary)``, and no others.

        The head sees these positions only, so whatever the model does to its logits behind the head is done to them.
        """
        device = self.model.device
        wanted = wanted.to(device)

        def select(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (inputs[0][wanted], *inputs[1:])

        hook = self.model.get_output_embeddings().register_forward_pre_hook(select)
        try:
            done = self.model(input_ids=tokens.to(device), attention_mask=mask.to(device), use_cache=False)
        finally:
            hook.remove()
        return done.logits  # type: ignore[no-any-return]


def _libraries() -> Any:
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise EvaluationError(
            "Evaluating needs torch and transformers.", remedy="pip install 'hub-merge[eval]'"
        ) from error
    return transformers


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EvaluationError(f"There is no device {name!r} here: {error}", remedy="Use --device cpu.") from error
    return device


def _dtype(name: str, device: Any) -> Any:
    """Return the dtype of ``name``; bfloat16 halves the time where processors compute in it and costs elsewhere."""
    import torch

    if name == "auto":
        native = torch.cpu._is_avx512_bf16_supported() if device.type == "cpu" else device.type == "cuda"
        name = "bfloat16" if native else "float32"
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise EvaluationError(f"There is no dtype {name!r}.", remedy="Use float32, bfloat16 or float16.")
    return dtype
