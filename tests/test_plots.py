"""The picture of the scores."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from hub_merge.adapter import Adapter, LoraFactors
from hub_merge.errors import HubMergeError
from hub_merge.plots import heat_map
from hub_merge.scores import Scores, score
from tests.helpers import adapter_of, fill_disk, random_factors

pytest.importorskip("matplotlib.figure")

LAYERS = [f"model.layers.{layer}.self_attn.{side}_proj" for layer in range(4) for side in "qv"]
SHAPE = (12, 10)

Drawn = Callable[..., Adapter]


@pytest.fixture
def adapter(rng: np.random.Generator) -> Drawn:
    """Return a builder of random adapters."""

    def build(name: str, modules: list[str] = LAYERS) -> Adapter:
        return adapter_of(name, {module: random_factors(rng, SHAPE, 2) for module in modules})

    return build


def zero(name: str) -> Adapter:
    """Return an adapter that was never trained."""
    untrained = LoraFactors(np.ones((2, SHAPE[1])), np.zeros((SHAPE[0], 2)))
    return adapter_of(name, dict.fromkeys(LAYERS, untrained))


def draw(scores: Scores, path: Path) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        heat_map(scores, path)
    return path.read_bytes()


def size_of(png: bytes) -> tuple[int, int]:
    """Return width and height as the header of a PNG tells them."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
def test_any_number_of_adapters_makes_a_wide_picture(adapter: Drawn, tmp_path: Path, count: int) -> None:
    picture = draw(score([adapter(f"adapter-{number}") for number in range(count)]), tmp_path / "scores.png")

    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = size_of(picture)
    assert width in {1839, 1840}  # 9.2 inches at 200 dots, which older versions of matplotlib round down
    assert 750 < height < 1300


@pytest.mark.parametrize(
    ("suffix", "opening"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF"), ("PNG", b"\x89PNG")]
)
def test_the_suffix_decides_the_format_and_the_bytes_repeat(
    adapter: Drawn, tmp_path: Path, suffix: str, opening: bytes
) -> None:
    scores = score([adapter("math"), adapter("medicine"), adapter("finance")])
    first = draw(scores, tmp_path / f"a.{suffix}")

    assert first.startswith(opening)
    assert first == draw(scores, tmp_path / f"b.{suffix}")
    assert b"matplotlib v" not in first.lower()
    assert b"CreationDate" not in first


def test_another_process_draws_the_same_bytes(adapter: Drawn, tmp_path: Path) -> None:
    script = (
        "import sys, pickle; from pathlib import Path; from hub_merge.plots import heat_map\n"
        "heat_map(pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]))"
    )
    import pickle

    scores = score([adapter("math"), adapter("medicine")])
    (tmp_path / "scores").write_bytes(pickle.dumps(scores))
    subprocess.run([sys.executable, "-c", script, tmp_path / "scores", tmp_path / "there.svg"], check=True)

    assert draw(scores, tmp_path / "here.svg") == (tmp_path / "there.svg").read_bytes()


def test_a_picture_on_a_full_disk_leaves_the_old_one(
    adapter: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scores.svg"
    before = draw(score([adapter("math")]), path)
    fill_disk(monkeypatch)
    with pytest.raises(OSError, match="No space"):
        heat_map(score([adapter("medicine")]), path)
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]


def text_of(scores: Scores, tmp_path: Path) -> str:
    """Return the texts of the picture; matplotlib writes each as a comment beside its outline."""
    return draw(scores, tmp_path / "scores.svg").decode("utf-8")


def test_the_picture_says_what_it_shows(adapter: Drawn, tmp_path: Path) -> None:
    scores = score([adapter("math"), adapter("medicine")])
    text = text_of(scores, tmp_path)

    for phrase in (
        "orthogonality score: RMS cosine of deltas",
        "describes geometry, does not predict quality",
        "level of chance",
        "math – medicine",
        f"{scores.pairs[0].rms_cosine:#.2g}",
        "layer (dots",
    ):
        assert f"<!-- {phrase}" in text
    assert "no shared module" not in text


def test_pairs_without_a_score_are_marked(adapter: Drawn, tmp_path: Path) -> None:
    text = text_of(score([adapter("math"), adapter("heads", ["lm_head"]), zero("empty")]), tmp_path)

    assert "no shared module, or a delta of zero" in text
    assert "no pair has a module in common" in text


def test_one_adapter_says_that_there_is_no_pair(adapter: Drawn, tmp_path: Path) -> None:
    assert "one adapter: there is no pair to compare" in text_of(score([adapter("math")]), tmp_path)


def test_modules_without_a_number_stand_in_order(adapter: Drawn, tmp_path: Path) -> None:
    text = text_of(score([adapter("a", ["q", "v", "lm_head"]), adapter("b", ["q", "v", "h.0.x"])]), tmp_path)

    assert "|cosine| by module" in text
    assert "layer (dots" not in text


def test_exactly_orthogonal_adapters_have_no_place_on_a_log_axis_and_break_nothing(tmp_path: Path) -> None:
    eye = np.eye(4)
    apart = [LoraFactors(eye[:2], eye[:, :2]), LoraFactors(eye[2:], eye[:, 2:])]
    adapters = [adapter_of(name, {"h.0.q": part}) for name, part in zip("ab", apart, strict=True)]

    assert draw(score(adapters), tmp_path / "scores.png")


def test_identical_adapters_reach_the_top(adapter: Drawn, tmp_path: Path) -> None:
    math = adapter("math")
    same = adapter_of("copy", {module: math.factors(module) for module in math.modules})

    assert "<!-- 1.0 -->" in text_of(score([math, same]), tmp_path)


def test_strange_and_long_names_are_shown_and_not_interpreted(adapter: Drawn, tmp_path: Path) -> None:
    names = ["$\\frac{", "line\nbreak", "someone-with-a-very-long-name/and-adapter", "日本語", "<b>&amp;"]
    text = text_of(score([adapter(name) for name in names]), tmp_path)

    assert "someone-…-adapter" in text
    assert "line�break" in text
    assert "<b>" not in text.replace("<!-- <b>", "")


def test_the_users_settings_of_matplotlib_neither_change_the_picture_nor_are_changed(
    adapter: Drawn, tmp_path: Path
) -> None:
    import matplotlib as mpl

    scores = score([adapter("math"), adapter("medicine")])
    plain = draw(scores, tmp_path / "plain.png")
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 30}):
        before = dict(mpl.rcParams)
        assert draw(scores, tmp_path / "styled.png") == plain
        assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", ["scores.jpg", "scores", "scores.png.txt"])
def test_another_suffix_is_refused_and_nothing_is_written(adapter: Drawn, tmp_path: Path, name: str) -> None:
    with pytest.raises(HubMergeError, match=r"\.png, \.svg or \.pdf"):
        heat_map(score([adapter("math")]), tmp_path / name)
    assert not list(tmp_path.iterdir())


MISSING: Mapping[str, str] = {"matplotlib": "the whole", "matplotlib.figure": "a part"}


@pytest.mark.parametrize("absent", MISSING)
def test_without_matplotlib_the_remedy_is_to_install_it(tmp_path: Path, absent: str) -> None:
    script = f"""
import sys
sys.modules[{absent!r}] = None
from pathlib import Path
from hub_merge.errors import HubMergeError
from hub_merge.plots import heat_map
from hub_merge.scores import Scores
try:
    heat_map(Scores(("a",), (1.0,), None, (1.0,), ()), Path(sys.argv[1]))
except HubMergeError as error:
    print(error.remedy)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "scores.png"], check=True, capture_output=True, text=True
    )

    assert done.stdout.strip() == "pip install 'hub-merge[plot]'"
    assert not (tmp_path / "scores.png").exists()
