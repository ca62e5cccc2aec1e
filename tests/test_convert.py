"""Adapters of other formats from the command line and from the Hub: one file is as good as a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save, save_file

from hub_merge.adapter import Adapter
from hub_merge.choice import Choice, choose
from hub_merge.cli.app import cli
from hub_merge.errors import (
    AdapterFormatError,
    AdapterNotFound,
    HubUnavailable,
    MergeError,
    RecipeError,
    UnsupportedAdapter,
)
from hub_merge.formats.output import FORMATS
from hub_merge.hub import Hub, parse_reference
from hub_merge.layout import FILE_FORMATS
from hub_merge.pipeline import merge, run, verify
from hub_merge.pipeline import save as save_adapter
from hub_merge.recipe import Recipe
from hub_merge.sources import open_adapter, open_headers
from tests.helpers import adapter_of, peft_config, peft_tensors, random_factors, relative_error, write_adapter
from tests.hub_double import HubDouble

LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT = "lora_" + LAYER.replace(".", "_")

Tensors = dict[str, NDArray[Any]]


@pytest.fixture
def style(rng: np.random.Generator) -> Tensors:
    """A kohya file of one module of rank 3, scaling 2/3."""
    return {
        f"{FLAT}.lora_down.weight": rng.standard_normal((3, 5)).astype(np.float32),
        f"{FLAT}.lora_up.weight": rng.standard_normal((6, 3)).astype(np.float32),
        f"{FLAT}.alpha": np.asarray(2.0, np.float32),
    }


def delta(style: Tensors) -> NDArray[np.float64]:
    return 2 / 3 * style[f"{FLAT}.lora_up.weight"].astype(np.float64) @ style[f"{FLAT}.lora_down.weight"]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run the command line in ``tmp_path``, without network; gives click's result."""
    from click.testing import CliRunner

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return lambda *words: CliRunner().invoke(cli, [str(word) for word in words])


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_formats_of_the_command_line_are_those_that_are_written() -> None:
    assert tuple(FORMATS) == FILE_FORMATS


@pytest.mark.parametrize("format", ["peft", "kohya", "diffusers"])
def test_a_conversion_says_what_it_wrote_and_how_far_it_is_from_what_it_read(
    tmp_path: Path, style: Tensors, command: Callable[..., Any], format: str
) -> None:
    save_file(style, tmp_path / "style.safetensors")
    done = command("convert", "style.safetensors", "-o", "out", "--format", format, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["output"], told["format"], told["modules"], told["rank"]) == ("out", format, 1, 3)
    assert told["files"] == list(FORMATS[format].files) and told["error"] < 1e-6
    assert told["proof"]["passed"]
    written = Adapter.from_pretrained(tmp_path / "out")
    assert written.format == format
    assert relative_error(written.factors(LAYER).delta(), delta(style)) < 1e-6
    proved = command("verify", "out", "style.safetensors", "-q")
    assert proved.stdout == "reproduced\n", proved.output


def test_a_truncated_conversion_states_the_least_error_there_is(
    tmp_path: Path, style: Tensors, command: Callable[..., Any]
) -> None:
    save_file(style, tmp_path / "style.safetensors")
    done = command("convert", "style.safetensors", "-o", "out", "--rank", "1", "--format", "kohya", "--json")
    values = np.linalg.svd(delta(style), compute_uv=False)
    least = np.sqrt((values[1:] ** 2).sum() / (values**2).sum())
    assert json.loads(done.stdout)["error"] == pytest.approx(least, rel=1e-5)
    assert load_file(tmp_path / "out" / "lora.safetensors")[f"{FLAT}.lora_down.weight"].shape == (1, 5)


def test_a_conversion_that_only_moves_numbers_has_no_error_at_all(
    tmp_path: Path, rng: np.random.Generator, command: Callable[..., Any]
) -> None:
    write_adapter(tmp_path / "math", peft_tensors(rng, {"model.layers.0.q_proj": 2}))  # scaling 2
    done = command("convert", "math", "-o", "out", "--format", "mlx")
    assert done.exit_code == 0 and "error:   0\n" in done.stdout


def test_both_meanings_of_format_go_together_and_only_one_of_each(
    tmp_path: Path, style: Tensors, command: Callable[..., Any]
) -> None:
    save_file(style, tmp_path / "style.safetensors")
    words = ("merge", "style.safetensors", "-o", "out", "--format", "kohya")
    done = command(*words, "--format", "json")
    assert json.loads(done.stdout)["output"] == "out"
    assert (tmp_path / "out" / "lora.safetensors").is_file()
    for extra in (("--format", "mlx"), ("--format", "json", "--format", "agent"), ("--format", "json", "-q")):
        assert command(*words, *extra).exit_code == 2


def test_what_a_format_cannot_hold_is_refused_before_anything_is_written(
    tmp_path: Path, rng: np.random.Generator, style: Tensors
) -> None:
    model = adapter_of("math", {"transformer.h.0.attn.c_attn": random_factors(rng, (6, 5), 2)})
    save_file(style, tmp_path / "style.safetensors")
    unet = Adapter.from_pretrained(tmp_path / "style.safetensors")
    for adapter, format, remedy in (
        (model, "kohya", "--format peft"),
        (model, "diffusers", "--format peft"),
        (unet, "mlx", "--format diffusers"),
    ):
        with pytest.raises(MergeError) as refused:
            adapter.save_pretrained(tmp_path / "out", format=format)
        assert remedy in (refused.value.remedy or "")
    with pytest.raises(MergeError, match="no format to write") as refused:
        unet.save_pretrained(tmp_path / "out", format="onnx")
    assert "kohya" in (refused.value.remedy or "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["kohya", "diffusers", "mlx"])
def test_a_rank_for_each_module_is_refused_by_formats_of_one_rank_before_anything_is_opened(
    format: str, command: Callable[..., Any]
) -> None:
    words = ("compress", "./not-there", "-o", "out", "--profile", "peft", "--rank", "4", "--format", format)
    done = command(*words)
    assert isinstance(done.exception, MergeError) and f"format {format} cannot hold" in done.exception.problem
    assert "--format peft" in (done.exception.remedy or "")


def test_ranks_of_a_pipelines_layers_are_named_as_peft_knows_them(
    tmp_path: Path, rng: np.random.Generator, style: Tensors
) -> None:
    wide, flat = LAYER.replace("to_q", "to_k"), FLAT.replace("to_q", "to_k")
    style[f"{flat}.lora_down.weight"] = 10 * rng.standard_normal((4, 7)).astype(np.float32)
    style[f"{flat}.lora_up.weight"] = rng.standard_normal((8, 4)).astype(np.float32)
    save_file(style, tmp_path / "style.safetensors")
    adapter = Adapter.from_pretrained(tmp_path / "style.safetensors")
    output = merge([adapter], "svd", rank="auto", energy=0.9999, profile="peft").save_pretrained(tmp_path / "out")
    config = json.loads((output / "adapter_config.json").read_text())
    again = Adapter.from_pretrained(output)
    ranks = {spec.local_name: spec.rank for spec in again.modules.values()}
    assert set(again.modules) == {LAYER, wide} and len(set(ranks.values())) == 2
    assert config["rank_pattern"] == {name: rank for name, rank in ranks.items() if rank != config["r"]}


def test_a_compression_writes_other_formats_too(tmp_path: Path, style: Tensors, command: Callable[..., Any]) -> None:
    save_file(style, tmp_path / "style.safetensors")
    done = command("compress", "style.safetensors", "-o", "out", "--rank", "1", "--format", "kohya", "--json")
    assert done.exit_code == 0, done.output
    assert load_file(tmp_path / "out" / "lora.safetensors")[f"{FLAT}.lora_down.weight"].shape == (1, 5)


def test_a_replaced_composite_leaves_nothing_of_its_former_format(tmp_path: Path, style: Tensors) -> None:
    save_file(style, tmp_path / "style.safetensors")
    adapter = Adapter.from_pretrained(tmp_path / "style.safetensors")
    for format in ("peft", "kohya", "diffusers", "peft"):
        output = adapter.save_pretrained(tmp_path / "out", format=format, force=True)
        weights = {path.name for path in output.glob("*.safetensors")}
        assert weights == {FORMATS[format].files[-1]}
        assert (output / "adapter_config.json").is_file() is (format == "peft")


def test_a_recipe_finds_its_local_file_again(tmp_path: Path, style: Tensors, command: Callable[..., Any]) -> None:
    save_file(style, tmp_path / "style.safetensors")
    save_file({key: 2 * value if value.ndim else value for key, value in style.items()}, tmp_path / "other.safetensors")
    words = ("style.safetensors", "other.safetensors", "--base", "acme/sd", "-o", "out")
    assert command("merge", *words).exit_code == 0
    recipe = Recipe.from_yaml((tmp_path / "out" / "recipe.yaml").read_text())
    assert [source.model for source in recipe.models] == ["./style.safetensors", "./other.safetensors"]
    hub = Hub(token=False, endpoint="http://127.0.0.1:9", offline=True)
    first = save_adapter(run(recipe, hub=hub, folder=tmp_path), tmp_path / "a")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "other.safetensors").rename(moved / "other.safetensors")
    with pytest.raises(AdapterNotFound, match=r"other\.safetensors: There is no such folder or file"):
        run(recipe, hub=hub, folder=tmp_path)
    by_name = run(recipe, hub=hub, folder=tmp_path, parents=[moved / "other.safetensors"])
    second = save_adapter(by_name, tmp_path / "b")
    weights = "adapter_model.safetensors"
    assert (
        (first / weights).read_bytes() == (second / weights).read_bytes() == (tmp_path / "out" / weights).read_bytes()
    )


def test_half_precision_sources_stay_half_and_the_rounding_is_stated(tmp_path: Path, style: Tensors) -> None:
    half = {key: value.astype(np.float16) if value.ndim else value for key, value in style.items()}
    save_file(half, tmp_path / "style.safetensors")
    adapter = Adapter.from_pretrained(tmp_path / "style.safetensors")
    output = adapter.save_pretrained(tmp_path / "out", format="diffusers")
    tensors = load_file(output / "pytorch_lora_weights.safetensors")
    assert {tensor.dtype.name for tensor in tensors.values()} == {"float16"}
    error = json.loads((output / "hub_merge.json").read_text())["proof"]["distance_to_sum"]
    B, A = (tensors[f"{LAYER}.lora_{side}.weight"].astype(np.float64) for side in "BA")
    assert error == pytest.approx(relative_error(B @ A, adapter.factors(LAYER).delta()), rel=1e-6)
    assert 0 < error < 1e-3


# --- which file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "file", "chosen"),
    [
        (["adapter_config.json", "adapter_model.safetensors", "style.safetensors"], "", Choice(True)),
        (["adapter_config.json", "adapter_model.bin", "style.safetensors"], "", Choice(True)),
        (["adapter_config.json", "adapter_model-00001-of-00002.safetensors"], "", Choice(True)),
        (["adapter_config.json", "adapters.safetensors", "0000100_adapters.safetensors"], "",
         Choice(False, "adapters.safetensors", True)),
        (["style.safetensors", "README.md", "model.safetensors"], "", Choice(False, "style.safetensors")),
        (["diffusion_pytorch_model.safetensors", "a.gguf"], "", Choice(False, "a.gguf")),
        (["a.safetensors", "b.safetensors"], "b.safetensors", Choice(False, "b.safetensors")),
        (["adapter_config.json", "adapter_model.safetensors"], "adapter_model.safetensors", Choice(True)),
        (["adapter_config.json"], "adapter_config.json", Choice(True)),
        (["notes.txt"], "", Choice(True)),
        ([], "", Choice(True)),
    ],
)  # fmt: skip
def test_the_files_of_a_folder_say_which_make_the_adapter(names: list[str], file: str, chosen: Choice) -> None:
    assert choose(names, file) == chosen


def test_several_files_are_named_with_how_to_choose_one(tmp_path: Path, style: Tensors) -> None:
    for name in ("one", "two"):
        save_file(style, tmp_path / f"{name}.safetensors")
    with pytest.raises(AdapterFormatError, match="2 files could be meant") as refused:
        Adapter.from_pretrained(tmp_path)
    assert f"{tmp_path}/one.safetensors, {tmp_path}/two.safetensors" in (refused.value.remedy or "")
    assert Adapter.from_pretrained(tmp_path / "two.safetensors").name == "two"
    with pytest.raises(AdapterNotFound, match="no such folder or file"):
        Adapter.from_pretrained(tmp_path / "three.safetensors")


@pytest.mark.parametrize(
    ("text", "subfolder", "file"),
    [
        ("a/b:style.safetensors", "", "style.safetensors"),
        ("a/b@v1:deep/er/style.gguf", "deep/er", "style.gguf"),
        ("a/b:deep/adapter_model.safetensors", "deep", ""),
        ("a/b:deep/adapter_config.json", "deep", ""),
        ("hf://a/b/deep/style.safetensors", "deep", "style.safetensors"),
        ("https://huggingface.co/a/b/blob/main/style.safetensors", "", "style.safetensors"),
        ("https://huggingface.co/a/b/resolve/main/x/pytorch_lora_weights.safetensors", "x",
         "pytorch_lora_weights.safetensors"),
        ("a/b:folder", "folder", ""),
    ],
)  # fmt: skip
def test_a_reference_may_name_a_file(text: str, subfolder: str, file: str) -> None:
    reference = parse_reference(text)
    assert (reference.subfolder, reference.file) == (subfolder, file)
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize("text", ["a/b:../style.safetensors", "a/b:/style.safetensors", "a/b:x//style.safetensors"])
def test_a_file_outside_the_repository_is_no_reference(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_reference(text)


# --- the Hub ----------------------------------------------------------------------------------------------------------


def connect(hub: HubDouble, tmp_path: Path, **options: Any) -> Hub:
    return Hub(token=False, endpoint=hub.endpoint, cache_dir=tmp_path / "cache", retries=0, **options)


def test_one_file_of_a_repository_is_opened_pinned_merged_and_verified(
    hub_lfs: HubDouble, tmp_path: Path, style: Tensors
) -> None:
    twice = {key: 2 * value if value.ndim else value for key, value in style.items()}
    commit = hub_lfs.add_repo("alice/styles", {"v1/one.safetensors": save(style), "v1/two.safetensors": save(twice)})
    client = connect(hub_lfs, tmp_path)
    one, two = (open_adapter(f"alice/styles:v1/{name}.safetensors", hub=client) for name in ("one", "two"))
    assert (one.name, one.origin.commit, one.origin.subfolder, one.origin.file) == (
        "one",
        commit,
        "v1",
        "one.safetensors",
    )
    output = merge([one, two], base="acme/sd").save_pretrained(tmp_path / "out")
    recipe = Recipe.from_yaml((output / "recipe.yaml").read_text())
    assert [source.model for source in recipe.models] == [
        f"alice/styles@{commit}:v1/one.safetensors",
        f"alice/styles@{commit}:v1/two.safetensors",
    ]
    assert verify(output, hub=client).passed
    assert verify(output, hub=Hub(token=False, cache_dir=tmp_path / "cache", offline=True)).passed
    assert relative_error(Adapter.from_pretrained(output).factors(LAYER).delta(), (1 + 2 * 2) * delta(style)) < 1e-6
    with pytest.raises(AdapterFormatError, match="2 files could be meant"):
        open_adapter("alice/styles:v1", hub=client)
    with pytest.raises(HubUnavailable):
        open_adapter(
            "alice/styles:v1/three.safetensors", hub=Hub(token=False, cache_dir=tmp_path / "cache", offline=True)
        )


def test_headers_of_a_kohya_file_tell_all_but_the_scaling(hub_lfs: HubDouble, tmp_path: Path, style: Tensors) -> None:
    hub_lfs.add_repo("alice/style", {"style.safetensors": save(style)})
    opened = open_headers("alice/style", hub=connect(hub_lfs, tmp_path))
    spec = opened.adapter.modules[LAYER]
    assert (spec.shape, spec.rank, opened.adapter.format, opened.adapter.has_values) == ((6, 5), 3, "kohya", False)
    assert np.isnan(spec.scaling)
    assert [(found.code, found.severity) for found in opened.adapter.findings] == [("scaling_unread", "caution")]
    assert not list((tmp_path / "cache").glob("**/snapshots/*/*"))


def test_headers_of_an_mlx_adapter_come_with_its_config(
    hub_lfs: HubDouble, tmp_path: Path, rng: np.random.Generator
) -> None:
    tensors = {"q.lora_a": rng.standard_normal((5, 2)).astype(np.float32), "q.lora_b": np.ones((2, 6), np.float32)}
    config = json.dumps({"lora_parameters": {"rank": 2, "scale": 3.0}, "model": "acme/base"}).encode()
    hub_lfs.add_repo("alice/mlx", {"adapters.safetensors": save(tensors), "adapter_config.json": config})
    client = connect(hub_lfs, tmp_path)
    opened, whole = open_headers("alice/mlx", hub=client), open_adapter("alice/mlx", hub=client)
    assert opened.adapter.modules == whole.modules
    assert (whole.name, whole.format, whole.modules["q"].scaling) == ("mlx", "mlx", 3.0)


def test_a_large_file_that_is_no_adapter_is_not_downloaded(hub_lfs: HubDouble, tmp_path: Path) -> None:
    tensors = {"model.diffusion_model.out.weight": np.zeros((700, 700), np.float32)}
    gguf = b"GGUF" + (3).to_bytes(4, "little") + bytes(16) + b"general.architecture" + bytes(1_000_000)
    hub_lfs.add_repo("alice/checkpoint", {"sd15.safetensors": save(tensors)})
    hub_lfs.add_repo("alice/gguf", {"model-Q4.gguf": gguf})
    client = connect(hub_lfs, tmp_path)
    for reference, says in (
        ("alice/checkpoint", "no LoRA layers"),
        ("alice/gguf", r"model-Q4\.gguf is no LoRA adapter"),
    ):
        for opening in (open_adapter, open_headers):
            with pytest.raises(UnsupportedAdapter, match=says) as refused:
                opening(reference, hub=client)
            assert refused.value.problem.startswith(reference)
    assert not list((tmp_path / "cache").glob("**/snapshots/*/*"))


def test_a_pickle_of_the_hub_is_only_fetched_where_that_is_allowed(
    hub_lfs: HubDouble, tmp_path: Path, rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch")
    import io

    tensors = peft_tensors(rng, {"h.0.c_attn": 2})
    content = io.BytesIO()
    torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, content)
    files = {"adapter_config.json": json.dumps(peft_config()).encode(), "adapter_model.bin": content.getvalue()}
    hub_lfs.add_repo("alice/old", files)
    with pytest.raises(UnsupportedAdapter, match="pickle only") as refused:
        open_adapter("alice/old", hub=connect(hub_lfs, tmp_path))
    assert "--allow-pickle" in (refused.value.remedy or "")
    allowed = connect(hub_lfs, tmp_path, allow_pickle=True)
    adapter = open_adapter("alice/old", hub=allowed)
    twin = Adapter.from_pretrained(write_adapter(tmp_path / "twin", tensors))
    assert np.array_equal(adapter.factors("h.0.c_attn").delta(), twin.factors("h.0.c_attn").delta())
    opened = open_headers("alice/old", hub=allowed)
    assert opened.adapter.modules == twin.modules
    with pytest.raises(UnsupportedAdapter, match="no header that can be read alone"):
        open_headers("alice/old", hub=allowed, download=False)
    assert opened.bytes_total == sum(map(len, files.values()))
