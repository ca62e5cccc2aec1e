"""The scan that every test ends with finds what is planted, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub_double import HubDouble
from tests.leaks import Witness, leaks_in, published_to, secrets_of, written_below


@pytest.mark.leaks_on_purpose
@pytest.mark.parametrize("name", ["README.md", "hub_merge.json", "recipe.yaml", "adapter_config.json", "x.safetensors"])
def test_a_planted_path_or_token_is_found_in_what_we_wrote(name: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "hub_merge.json").write_text("{}")
    for secret in (str(tmp_path), "hf_alice", "hf_" + "a" * 30):
        text = f'{{"x": "{secret}"}}'.encode()
        weights = len(text).to_bytes(8, "little") + text
        (tmp_path / "out" / name).write_bytes(weights if name == "x.safetensors" else text)
        found = [leak for _, content in written_below(tmp_path) for leak in leaks_in(content, secrets_of(tmp_path))]
        assert secret in found


@pytest.mark.leaks_on_purpose
def test_a_planted_path_is_found_in_what_was_published(hub_lfs: HubDouble, tmp_path: Path) -> None:
    hub_lfs.add_repo("alice/out", {"hub_merge.json": b"{}", "README.md": str(tmp_path).encode()})
    hub_lfs.api("alice").model_info("alice/out")
    found = [(name, leak) for name, text in published_to(hub_lfs) for leak in leaks_in(text, secrets_of(tmp_path))]
    assert ("README.md", str(tmp_path)) in found
    assert {name for name, _ in found} == {"README.md"}  # the header that logs in is no leak


def test_harmless_words_are_no_leak(tmp_path: Path) -> None:
    assert not list(leaks_in(b"hf_merge hf_hub/2.4.0 hf_xet (path removed) ./math alice/math", secrets_of(tmp_path)))


@pytest.mark.leaks_on_purpose
def test_what_is_printed_and_sent_to_a_double_of_the_test_itself_is_seen(
    witnessed: Witness, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    print("hf_alice")
    capsys.readouterr()
    assert [leak for text in witnessed.printed for leak in leaks_in(text, ())] == ["hf_alice"]
    with HubDouble(xet=False) as hub:
        hub.add_repo("alice/out", {"hub_merge.json": b"{}", "README.md": str(tmp_path).encode()})
    found = [leak for _, text in witnessed.sent() for leak in leaks_in(text, secrets_of(tmp_path))]
    assert str(tmp_path) in found


@pytest.mark.leaks_on_purpose
def test_what_a_command_prints_is_seen(witnessed: Witness) -> None:
    subprocess.run([sys.executable, "-c", "print('Bearer hf_' + 'alice')"], capture_output=True, text=True, check=True)
    assert [leak for text in witnessed.printed for leak in leaks_in(text, ())] == ["hf_alice"]
