"""Perplexities against a loop written by hand, and adapters worn against PEFT."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
pytest.importorskip("transformers")

from hub_merge.adapter import Adapter, LoraFactors  # noqa: E402
from hub_merge.errors import EvaluationError, UnsupportedAdapter  # noqa: E402
from hub_merge.evaluate import (  # noqa: E402
    LanguageModel,
    Loss,
    Question,
    QuestionFormat,
    QuestionSet,
    evaluate,
    perplexity,
    read_questions,
)
from hub_merge.pipeline import merge  # noqa: E402
from tests.tiny_models import TEXTS, by_hand, tiny_gemma3, tiny_gpt2, tiny_llama, tiny_tokenizer, trained  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def language_model(model: Any = None, **settings: Any) -> LanguageModel:
    tokenizer = tiny_tokenizer()
    return LanguageModel(model or tiny_llama(len(tokenizer)), tokenizer, label="tiny", **settings)


def questions() -> list[Question]:
    return [QuestionFormat()({"question": question, "answer": answer}) for question, answer in TEXTS]


@pytest.mark.parametrize("batch_tokens", [40, 60, 4096])
def test_perplexities_equal_a_loop_written_by_hand(batch_tokens: int) -> None:
    model = language_model(batch_tokens=batch_tokens)
    losses = model.losses(questions())
    answer, text = by_hand(model.model, model.tokenizer, TEXTS)
    assert perplexity(losses).value == pytest.approx(answer, rel=1e-6)
    assert perplexity(losses, "text").value == pytest.approx(text, rel=1e-6)


def test_the_order_of_the_rows_is_kept() -> None:
    model = language_model(batch_tokens=60)
    together = model.losses(questions())
    alone = [model.losses([question])[0] for question in questions()]
    for one, other in zip(together, alone, strict=True):
        assert one.text == pytest.approx(other.text, rel=1e-5)
        assert (one.answer_tokens, one.text_tokens) == (other.answer_tokens, other.text_tokens)


def test_the_head_sees_no_position_that_is_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    model = language_model()
    seen = []
    head = model.model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape)))
    losses = model.losses(questions())
    assert seen == [(sum(loss.text_tokens for loss in losses), 24)]


def test_what_the_model_does_to_its_logits_is_kept() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    tokenizer = tiny_tokenizer()
    torch.manual_seed(3)
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0, initializer_range=0.5, sliding_window=8,
    )  # fmt: skip
    model = LanguageModel(Gemma2ForCausalLM(config), tokenizer, label="gemma")
    answer, text = by_hand(model.model, tokenizer, TEXTS)
    losses = model.losses(questions())
    assert perplexity(losses).value == pytest.approx(answer, rel=1e-6)
    assert perplexity(losses, "text").value == pytest.approx(text, rel=1e-6)


CASES = {
    "llama": (tiny_llama, {"target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "llama, rsLoRA": (tiny_llama, {"target_modules": ["k_proj"], "use_rslora": True, "r": 3}),
    "llama, embedding": (tiny_llama, {"target_modules": ["embed_tokens", "o_proj"]}),
    "gpt2": (tiny_gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_worn_adapter_gives_the_losses_of_peft(case: str, tmp_path: Path) -> None:
    make, config = CASES[case]
    base = make(len(tiny_tokenizer()))
    folder = trained(base, tmp_path / "one", 1, **config)
    model = language_model(base)
    plain = model.losses(questions())
    with model.wearing(Adapter.from_pretrained(folder)):
        worn = model.losses(questions())
    assert model.losses(questions()) == plain
    answer, text = by_hand(peft.PeftModel.from_pretrained(base, folder).eval(), model.tokenizer, TEXTS)
    assert perplexity(worn).value == pytest.approx(answer, rel=1e-6)
    assert perplexity(worn, "text").value == pytest.approx(text, rel=1e-6)
    assert perplexity(plain, "text").value != pytest.approx(text, rel=1e-3)


def test_a_composite_gives_the_losses_of_the_weights_with_the_deltas_added(tmp_path: Path) -> None:
    base = tiny_llama(len(tiny_tokenizer()))
    folders = [trained(base, tmp_path / str(seed), seed, target_modules=["q_proj", "o_proj"]) for seed in (1, 2, 3)]
    adapters = [Adapter.from_pretrained(folder) for folder in folders]
    dense = copy.deepcopy(base)
    for adapter, weight in zip(adapters, (1.0, -0.5, 2.0), strict=True):
        for module in adapter.modules:
            delta = torch.from_numpy(weight * adapter.factors(module).delta()).float()
            dense.get_submodule(module).weight.data += delta
    model = language_model(base)
    with model.wearing(merge(adapters, "sum", weights=[1.0, -0.5, 2.0], base="tiny/llama")):
        worn = model.losses(questions())
    answer, text = by_hand(dense, model.tokenizer, TEXTS)
    assert perplexity(worn).value == pytest.approx(answer, rel=1e-5)
    assert perplexity(worn, "text").value == pytest.approx(text, rel=1e-5)


def test_a_worn_delta_of_a_scaled_embedding_is_scaled_too(tmp_path: Path) -> None:
    base = tiny_gemma3(len(tiny_tokenizer()))
    folder = trained(base, tmp_path / "one", 1, target_modules=["embed_tokens", "q_proj"])
    adapter = Adapter.from_pretrained(folder)
    dense = copy.deepcopy(base)
    for name in adapter.modules:
        delta = torch.from_numpy(adapter.factors(name).delta()).float()
        weight = dense.get_submodule(name).weight.data
        weight += delta.T if name.endswith("embed_tokens") else delta
    model = language_model(base)
    with model.wearing(adapter):
        worn = perplexity(model.losses(questions()), "text").value
    for other in (dense, peft.PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()):
        assert worn == pytest.approx(by_hand(other, model.tokenizer, TEXTS)[1], rel=1e-5)


def test_an_adapter_of_another_base_is_told_so() -> None:
    model = language_model()
    factors = LoraFactors(np.zeros((1, 24)), np.zeros((25, 1)))
    with (
        pytest.raises(EvaluationError, match=r"\(25, 24\).*\(24, 24\)"),
        model.wearing({"model.layers.0.self_attn.q_proj": factors}),
    ):
        pass
    with pytest.raises(EvaluationError, match=r"no module h\.0"), model.wearing({"h.0": factors}):
        pass
    assert not model.model.get_submodule("model.layers.0.self_attn.q_proj")._forward_hooks


def test_an_adapter_that_is_more_than_factors_is_refused(tmp_path: Path) -> None:
    base = tiny_llama(len(tiny_tokenizer()))
    folder = trained(base, tmp_path / "one", 1, target_modules=["q_proj"], modules_to_save=["lm_head"])
    with (
        pytest.raises(UnsupportedAdapter, match="lm_head"),
        language_model(base).wearing(Adapter.from_pretrained(folder)),
    ):
        pass


def sets() -> list[QuestionSet]:
    return [QuestionSet("first", questions()[:2]), QuestionSet("second", questions()[2:])]


def factors(seed: int) -> dict[str, LoraFactors]:
    rng = np.random.default_rng(seed)
    return {"model.layers.1.self_attn.o_proj": LoraFactors(rng.normal(size=(2, 24)), rng.normal(size=(24, 2)))}


def test_rows_that_were_measured_are_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = tmp_path / "rows.jsonl"
    model = language_model(batch_tokens=60)
    whole = evaluate(model, {"base": None, "one": factors(1)}, sets(), journal=journal)
    lines = journal.read_text().splitlines()
    assert len(lines) == 8
    journal.write_text("\n".join(lines[:5]) + "\n" + lines[5][:20])  # as a crash leaves it
    measured: list[int] = []
    monkeypatch.setattr(
        model, "losses", lambda rows, done: measured.append(len(rows)) or LanguageModel.losses(model, rows, done)
    )
    again = evaluate(model, {"base": None, "one": factors(1)}, sets(), journal=journal)
    assert measured == [3]
    for name in ("base", "one"):
        for domain in ("first", "second"):
            value = whole.perplexity(name, domain).value
            assert again.perplexity(name, domain).value == pytest.approx(value, rel=1e-6)
    measured.clear()
    evaluate(model, {"base": None, "one": factors(1)}, sets(), journal=journal)
    assert measured == []
    evaluate(model, {"two": factors(2)}, sets(), journal=journal)
    assert measured == [4]


def test_a_file_that_is_no_journal_is_not_written_on(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("my notes\n")
    with pytest.raises(EvaluationError, match="line 1"):
        evaluate(language_model(), {"base": None}, sets(), journal=other)
    assert other.read_text() == "my notes\n"


def test_progress_counts_every_row() -> None:
    told: list[tuple[str, int, int]] = []
    evaluate(language_model(), {"base": None}, sets(), progress=lambda *step: told.append(step))
    assert told == [("base", done, 4) for done in (1, 2, 3, 4)]


def test_long_texts_are_cut_and_counted() -> None:
    model = language_model(most_tokens=25)
    found = evaluate(model, {"base": None}, sets())
    assert found.cut == {"first": 2, "second": 1}
    assert all(loss.text_tokens <= 24 for loss in found.losses["base"]["first"])


def test_domains_need_names_of_their_own() -> None:
    with pytest.raises(EvaluationError, match="first, first"):
        evaluate(language_model(), {"base": None}, [sets()[0], sets()[0]])


def test_questions_are_read_from_lines_of_json(tmp_path: Path) -> None:
    file = tmp_path / "riddles" / "test.jsonl"
    file.parent.mkdir()
    file.write_text("\n".join(json.dumps({"ask": f"{{{n}}}", "reply": n}) for n in range(5)) + "\n\n")
    found = read_questions(file, limit=3, format=QuestionFormat("Q {ask} A ", "{reply}!"))
    assert found.name == "riddles"
    assert found.questions == [Question(f"Q {{{n}}} A ", f"{n}!") for n in range(3)]
    assert len(read_questions(file, name="r", format=QuestionFormat("{ask}", "{reply}")).questions) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "no rows"), ("[1]\n", "line 1"), ("{]\n", "line 1"), ('{"question": "q"}\n', "no field 'answer'")],
)
def test_a_file_without_questions_is_told_so(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(content)
    with pytest.raises(EvaluationError, match=message):
        read_questions(file)


def test_rows_without_a_token_to_score_are_an_error() -> None:
    with pytest.raises(EvaluationError, match="no token"):
        perplexity([Loss(0.0, 0, 3.0, 2)])
