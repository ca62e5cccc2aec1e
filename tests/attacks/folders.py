"""Hostile folders: what each holds, and the refusal it must get."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.attacks.files import CONFIG, INDEX, MODULE, SOUND, WEIGHTS, config_of, grow, put, safetensors_of, weights_of

NAMES = [f"base_model.model.layers.{number}.q_proj" for number in range(2000)]


@dataclass(frozen=True)
class Attack:
    """A hostile folder.

    Attributes:
        build: Writes it.
        error: Name of the error that opening and checking it must raise; ``finding`` if a problem must be reported.
        says: Part of the message, or the code of the finding.
        allow_pickle: Whether pickles are let in.
    """

    build: Callable[[Path], None]
    error: str
    says: str
    allow_pickle: bool = False


ATTACKS: dict[str, Attack] = {}


def attack(
    error: str, says: str, *, allow_pickle: bool = False
) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Register a builder under its own name."""

    def register(build: Callable[[Path], None]) -> Callable[[Path], None]:
        ATTACKS[build.__name__] = Attack(build, error, says, allow_pickle)
        return build

    return register


# --- safetensors ------------------------------------------------------------------------------------------------------


@attack("AdapterFormatError", "claims 1000000000 bytes")
def header_of_a_gigabyte(folder: Path) -> None:
    put(folder, weights=(10**9).to_bytes(8, "little") + b"{}")
    grow(folder / WEIGHTS, 2 * 10**9)


@attack("AdapterFormatError", "does not parse")
def header_of_empty_lists(folder: Path) -> None:
    """Twenty-five megabytes that would be half a gigabyte of Python lists."""
    put(folder, weights=safetensors_of(b'{"x":[' + b"[]," * 8_000_000 + b"[]]}"))


@attack("AdapterFormatError", "claims 100000000 bytes")
def header_of_a_hundred_megabytes(folder: Path) -> None:
    """All of them are there, so that the length alone refuses it."""
    put(folder, weights=(10**8).to_bytes(8, "little") + b'{"x":')
    grow(folder / WEIGHTS, 10**8 + 100)


@attack("AdapterFormatError", "does not parse")
def header_of_empty_objects(folder: Path) -> None:
    put(folder, weights=safetensors_of(b'{"x":[' + b"{}," * 8_000_000 + b"{}]}"))


@attack("AdapterFormatError", "does not parse")
def header_of_small_numbers(folder: Path) -> None:
    put(folder, weights=safetensors_of(b'{"x":[' + b"1e9," * 6_000_000 + b"1]}"))


@attack("AdapterFormatError", "more parts than 100000 tensors")
def header_of_many_tensors(folder: Path) -> None:
    entry = b':{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    put(folder, weights=safetensors_of(b"{" + b",".join(b'"%d"' % i + entry for i in range(200_001)) + b"}"))


@attack("AdapterFormatError", "expected 40")
def tensors_that_overlap(folder: Path) -> None:
    put(folder, weights=safetensors_of(SOUND[8:-88].replace(b"[40, 88]", b"[32, 80]"), b"\0" * 80))


@attack("AdapterFormatError", "expected 40")
def a_gap_that_hides_bytes(folder: Path) -> None:
    put(folder, weights=safetensors_of(SOUND[8:-88].replace(b"[40, 88]", b"[44, 92]"), b"\0" * 92))


@attack("AdapterFormatError", "a name occurs twice")
def one_tensor_twice(folder: Path) -> None:
    entry = b'"%s.lora_A.weight":{"dtype":"F32","shape":[2,5],"data_offsets":[0,40]}' % MODULE.encode()
    put(folder, weights=safetensors_of(b"{" + entry + b"," + entry + b"}", b"\0" * 40))


@attack("AdapterFormatError", "dimensions")
def a_shape_of_a_million_dimensions(folder: Path) -> None:
    shape = ",".join(["1"] * 1_000_000).encode()
    put(folder, weights=safetensors_of(b'{"x":{"dtype":"U8","shape":[' + shape + b'],"data_offsets":[0,1]}}', b"1"))


@attack("AdapterFormatError", "does not take 88 bytes")
def a_shape_larger_than_the_world(folder: Path) -> None:
    header = {f"{MODULE}.lora_A.weight": {"dtype": "F32", "shape": [10**30, 10**30], "data_offsets": [0, 88]}}
    put(folder, weights=safetensors_of(header, b"\0" * 88))


@attack("finding", "factor_shape")
def factors_of_no_rank(folder: Path) -> None:
    put(folder, weights=weights_of({MODULE: (0, (10**15, 10**15))}))


@attack("BudgetExceeded", "rank 100000")
def a_rank_of_a_hundred_thousand(folder: Path) -> None:
    put(folder, config=config_of(r=100_000), weights=weights_of({MODULE: (100_000, (1, 1))}))


@attack("BudgetExceeded", "bytes")
def weights_of_a_terabyte(folder: Path) -> None:
    size = 10**12
    entry = {"dtype": "F32", "shape": [size // 4 // 2, 2], "data_offsets": [0, size]}
    put(folder, weights=safetensors_of({f"{MODULE}.lora_A.weight": entry}))
    grow(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size + size)


@attack("AdapterFormatError", "a zip archive")
def zip_in_disguise(folder: Path) -> None:
    put(folder, weights=None)
    with zipfile.ZipFile(folder / WEIGHTS, "w") as archive:
        archive.writestr("archive/data.pkl", b"cos\nsystem\n(S'touch pwned'\ntR.")


@attack("AdapterFormatError", "a pickle")
def pickle_in_disguise(folder: Path) -> None:
    put(folder, weights=b"\x80\x04\x95" + b"cos\nsystem\n(S'touch pwned'\ntR.")


@attack("UnsupportedAdapter", "a pickle")
def pickle_alone(folder: Path) -> None:
    put(folder, weights=None, adapter_model__bin=b"cos\nsystem\n(S'touch pwned'\ntR.")


@attack("finding", "not_finite")
def numbers_that_are_nan(folder: Path) -> None:
    put(folder, weights=weights_of({MODULE: (2, (6, 5))}, fill=b"\xff"))


@attack("finding", "not_finite")
def numbers_that_are_infinite(folder: Path) -> None:
    put(folder, weights=weights_of({MODULE: (2, (6, 5))}, fill=b"\0\0\x80\x7f"))


# --- config -----------------------------------------------------------------------------------------------------------


@attack("AdapterFormatError", "expected at most")
def config_of_a_hundred_megabytes(folder: Path) -> None:
    put(folder)
    grow(folder / CONFIG, 100_000_000)


@attack("AdapterFormatError", "not valid JSON")
def config_nested_without_end(folder: Path) -> None:
    put(folder, config=b'{"peft_type":"LORA","r":' + b"[" * 400_000 + b"]" * 400_000 + b"}")


@attack("AdapterFormatError", "nested deeper")
def config_nested_as_deep_as_the_parser_allows(folder: Path) -> None:
    put(folder, config=config_of(use_dora=json.loads("[" * 900 + "1" + "]" * 900)))


@attack("AdapterFormatError", "a name occurs twice")
def config_that_says_two_things(folder: Path) -> None:
    put(folder, config=config_of()[:-1] + b', "lora_alpha": 4000}')


@attack("AdapterFormatError", "not valid JSON")
def config_with_half_a_character(folder: Path) -> None:
    """Text that can be read but never written: the record of a merge would break."""
    put(folder, config=config_of(base_model_name_or_path="\ud800/home"))


@attack("AdapterFormatError", "lora_alpha")
def config_whose_alpha_is_beyond_every_float(folder: Path) -> None:
    put(folder, config=config_of(lora_alpha=10**400))


@attack("AdapterFormatError", "lora_alpha")
def config_whose_alpha_is_nan_behind_a_byte_order_mark(folder: Path) -> None:
    put(folder, config=b"\xef\xbb\xbf" + config_of(lora_alpha=float("nan")))


@attack("finding", "rank_mismatch")
def config_whose_rank_has_three_hundred_digits(folder: Path) -> None:
    put(folder, config=config_of(r=1e300))


@attack("AdapterFormatError", "no safe regular expression")
def regex_of_optional_letters(folder: Path) -> None:
    put(folder, config=config_of(alpha_pattern={"a?" * 40 + "a" * 40: 2}), weights=weights_of({"a" * 40: (2, (6, 5))}))


@attack("AdapterFormatError", "no safe regular expression")
def regex_of_bounded_repeats(folder: Path) -> None:
    put(folder, config=config_of(rank_pattern={".{0,500}" * 4 + "x": 2}), weights=weights_of({"a" * 450: (2, (6, 5))}))


@attack("AdapterFormatError", "could take very long")
def regex_of_alternatives_that_mean_the_same(folder: Path) -> None:
    put(folder, config=config_of(rank_pattern={"(a|a)" * 40 + "x": 2}), weights=weights_of({"a" * 41: (2, (6, 5))}))


@attack("AdapterFormatError", "could take very long")
def regex_that_takes_a_second_a_name(folder: Path) -> None:
    names = {f"{'a.' * 240}{number}": (1, (1, 1)) for number in range(1000)}
    put(folder, config=config_of(r=1, alpha_pattern={".*.*.*x": 2}), weights=weights_of(names))


@attack("AdapterFormatError", "more than 20000 characters")
def regexes_by_the_thousand(folder: Path) -> None:
    patterns = {f"^layers{number}[abc]": 2 for number in range(20_000)}
    put(folder, config=config_of(rank_pattern=patterns), weights=weights_of({MODULE: (2, (6, 5))}))


@attack("AdapterFormatError", "could take very long")
def patterns_times_modules(folder: Path) -> None:
    patterns = {f"{number}.q_proj": 2 for number in range(2000, 40_000)}
    put(folder, config=config_of(r=1, alpha_pattern=patterns), weights=weights_of(dict.fromkeys(NAMES, (1, (1, 1)))))


@attack("finding", "rank_mismatch")
def targets_whose_regex_takes_for_ever(folder: Path) -> None:
    """Which modules were trained is told by the tensors; nobody asks the expression."""
    names = {f"base_model.model.{'a' * 60}b": (3, (6, 5))}
    evil = {"target_modules": "(a+)+$|(a|a)*x", "exclude_modules": "(.*)*y", "layers_pattern": "(a+)+$"}
    put(folder, config=config_of(layers_to_transform=[0], **evil), weights=weights_of(names))


@attack("AdapterFormatError", "500000 experts")
def experts_by_the_hundred_thousand(folder: Path) -> None:
    """Four megabytes that would be half a million modules."""
    config = config_of(r=1, target_modules=[], target_parameters=["experts.up"])
    put(folder, config=config, weights=weights_of({"base_model.model.experts": (500_000, (1, 1))}))


@attack("finding", "module_name")
def targets_times_modules(folder: Path) -> None:
    """A hundred thousand targets and two thousand modules; the last one has a name that no module can have."""
    modules = dict.fromkeys([*NAMES, "base_model.model.a b"], (1, (1, 1)))
    put(folder, config=config_of(r=1, target_modules=[f"{n:x}" for n in range(100_000)]), weights=weights_of(modules))


# --- names and places -------------------------------------------------------------------------------------------------


@attack("finding", "module_name")
def module_called_like_a_path(folder: Path) -> None:
    put(folder, weights=weights_of({"base_model.model.../../etc/passwd": (2, (6, 5))}))


@attack("finding", "module_name")
def module_with_an_empty_part(folder: Path) -> None:
    put(folder, weights=weights_of({"base_model.model.h..q_proj": (2, (6, 5))}))


@attack("finding", "module_name")
def module_that_turns_the_text_around(folder: Path) -> None:
    put(folder, weights=weights_of({"base_model.model.h.\u202eq_proj <script>": (2, (6, 5))}))


@attack("AdapterFormatError", "out of its folder")
def index_that_points_out_of_the_folder(folder: Path) -> None:
    put(folder / "adapter", weights=None)
    put(folder)
    (folder / "adapter" / INDEX).write_text(json.dumps({"weight_map": {"x": f"../{WEIGHTS}"}}))


@attack("AdapterFormatError", "expected at most")
def index_of_a_hundred_megabytes(folder: Path) -> None:
    put(folder, weights=None)
    grow(folder / INDEX, 100_000_000)


@attack("AdapterFormatError", "leads out of its folder")
def weights_that_are_a_link_to_elsewhere(folder: Path) -> None:
    put(folder / "elsewhere")
    put(folder / "adapter", weights=None)
    (folder / "adapter" / WEIGHTS).symlink_to(folder / "elsewhere" / WEIGHTS)


@attack("AdapterFormatError", "leads out of its folder")
def config_that_is_a_link_to_elsewhere(folder: Path) -> None:
    put(folder / "adapter")
    (folder / "secret.json").write_bytes(config_of())
    (folder / "adapter" / CONFIG).unlink()
    (folder / "adapter" / CONFIG).symlink_to("../secret.json")


@attack("AdapterFormatError", "leads out of its folder")
def tokenizer_that_is_a_link_to_elsewhere(folder: Path) -> None:
    put(folder / "adapter")
    (folder / "secret.json").write_text("{}")
    (folder / "adapter" / "added_tokens.json").symlink_to("../secret.json")


@attack("AdapterNotFound", "holds no adapter_config.json")
def config_that_waits_for_ever(folder: Path) -> None:
    put(folder)
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)


@attack("AdapterFormatError", "There is no adapter_model.safetensors")
def weights_without_end(folder: Path) -> None:
    put(folder, weights=None)
    (folder / WEIGHTS).symlink_to("/dev/zero")


# --- tokenizer and card -----------------------------------------------------------------------------------------------


@attack("AdapterFormatError", "expected at most")
def tokenizer_of_a_hundred_megabytes(folder: Path) -> None:
    put(folder, added_tokens__json=b"{}")
    grow(folder / "added_tokens.json", 100_000_000)


@attack("AdapterFormatError", "a name occurs twice")
def one_token_with_two_ids(folder: Path) -> None:
    put(folder, added_tokens__json=b'{"<go>": 5, "<go>": 6}')


@attack("finding", "dora")
def card_of_nested_lists(folder: Path) -> None:
    """The card says nothing that counts, so the adapter is judged without it."""
    put(folder, config=config_of(use_dora=True), README__md=b"---\nlicense: " + b"[" * 40_000 + b"\n---\n")


@attack("finding", "dora")
def card_of_a_hundred_megabytes(folder: Path) -> None:
    put(folder, config=config_of(use_dora=True), README__md=b"---\nlicense: mit\n")
    grow(folder / "README.md", 100_000_000)


@attack("finding", "dora")
def card_of_aliases_of_aliases(folder: Path) -> None:
    rows = [b"a: &a [x, x]"] + [b"%c: &%c [*%c, *%c]" % (c, c, c - 1, c - 1) for c in range(ord("b"), ord("z"))]
    put(folder, config=config_of(use_dora=True), README__md=b"---\n" + b"\n".join(rows) + b"\nlicense: *y\n---\n")
