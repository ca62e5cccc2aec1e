"""The table of merge methods and the contract each declares."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from hub_merge.adapter import LoraFactors
from hub_merge.errors import MergeError, UnknownMethod

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "PROMISES",
    "Bounds",
    "Coefficients",
    "DefaultRank",
    "Kernel",
    "Method",
    "MethodName",
    "Option",
    "Promise",
    "get_method",
    "list_methods",
    "merge_method",
]

ENTRY_POINTS = "hub_merge.methods"

RESERVED = frozenset(
    "adapters allow base canonical dtype energy extras method mixture mixtures original preset".split()
    + "profile rank rng seed tuning weights".split()
)
"""What ``merge`` and recipes call other things, so that no option can have the name."""

GIVEN = ("rank", "rng", "mixture")
"""Arguments of a method that are no options of it; it need not take a mixture."""

DefaultRank = Literal["total", "largest"]
"""Rank of the result when none is asked for: the sum of the ranks of a module's parts, or the largest of them."""


Promise = Literal["identity", "inputs", "seed", "order", "absent", "untrained", "precision", "memory", "rank"]

PROMISES: Mapping[Promise, str] = types.MappingProxyType(
    {
        "identity": "an adapter that is alone in a module comes back times its weight",
        "inputs": "the adapters' own factors are never written to",
        "seed": "the same seed gives the same bytes",
        "order": "the order of the adapters does not matter",
        "absent": "an adapter without a module, or of weight zero, changes nothing there",
        "untrained": "zero and rank-deficient factors give no NaN",
        "precision": "factors of low precision are computed in float32 or better",
        "memory": "no module is ever made dense",
        "rank": "the result has at most the rank that was asked for",
    }
)
"""What every method promises unless it declares that it breaks it; the test suite holds each method to each."""


Coefficients = Callable[[Sequence[float], Sequence[bool]], Sequence[float]]


Kernel = Callable[..., LoraFactors]
"""``(parts, weights, *, rank, rng, **options) -> LoraFactors``; the signature is checked when it is registered."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Closed range of an option; attach it with ``Annotated``."""

    low: float
    high: float = float("inf")


@dataclass(frozen=True, slots=True)
class MethodName:
    """Says that an option of kind ``str`` is the name of a merge method; attach it with ``Annotated``."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a method, read from its signature."""

    name: str
    kind: type
    default: Any
    choices: tuple[str, ...] = ()
    bounds: Bounds | None = None
    optional: bool = False
    is_method: bool = False

    def parse(self, value: Any) -> Any:
        """Return ``value`` (text or a number) as what the method expects.

        Raises:
            MergeError: It is of the wrong kind, none of the choices, or out of range.
        """
        if self.optional and value in (None, "none"):
            return None
        try:
            parsed: Any = get_method(str(value)).name if self.is_method else _as_kind(self.kind, value)
        except (ValueError, TypeError, KeyError, OverflowError, UnknownMethod) as error:
            raise self._refusal(value) from error
        out_of_range = self.bounds is not None and not self.bounds.low <= parsed <= self.bounds.high
        if out_of_range or (self.choices and parsed not in self.choices):
            raise self._refusal(value)
        return parsed

    def _refusal(self, value: Any) -> MergeError:
        return MergeError(f"Option {self.name} is {value!r}.", remedy=f"It takes {self.describe()}.")

    def describe(self) -> str:
        """Return what the option takes, in words."""
        if self.is_method:
            return "the name of a merge method"
        if self.choices:
            return " | ".join(self.choices)
        if self.bounds is not None:
            high = "" if self.bounds.high == float("inf") else f" to {self.bounds.high:g}"
            return f"{self.kind.__name__} from {self.bounds.low:g}{high}"
        return self.kind.__name__


def _as_kind(kind: type, value: Any) -> Any:
    if kind is bool:
        return {"true": True, "false": False}[str(value).lower()] if not isinstance(value, bool) else value
    if kind is int and float(value) != int(float(value)):
        raise ValueError(value)
    if kind is float and not math.isfinite(float(value)):
        raise ValueError(value)
    return kind(float(value)) if kind is int else kind(value)


@dataclass(frozen=True, slots=True)
class Method:
    """One merge method.

    Attributes:
        name: Name on the command line and in recipes.
        kernel: The function.
        formula: What it computes, as one line.
        aliases: Other names.
        paper: arXiv id, empty if there is none.
        default_rank: Rank of the result when none is asked for.
        options: Its options, in order.
        presets: Named settings of several options, chosen with ``preset=NAME``.
        coefficients: For a method that, without a rank, is a linear combination of the deltas: its coefficients, from
            the weights and from which adapters have the module.
        cautions: What to tell about a combination of weights and options before it runs.
        breaks: Promises that the method by its nature cannot keep; the tests expect exactly these to fail.
        most_adapters: Largest number of adapters that it can merge, ``None`` for any number.
    """

    name: str
    kernel: Kernel
    formula: str
    aliases: tuple[str, ...]
    paper: str
    default_rank: DefaultRank
    options: tuple[Option, ...]
    presets: Mapping[str, Mapping[str, Any]]
    coefficients: Coefficients | None
    cautions: Callable[[Sequence[float], Mapping[str, Any]], Sequence[str]] | None
    breaks: frozenset[Promise] = frozenset()
    most_adapters: int | None = None

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return inspect.getdoc(self.kernel).partition("\n")[0]  # type: ignore[union-attr]

    @property
    def takes_mixtures(self) -> bool:
        """Whether it merges with mixtures, by module."""
        return "mixture" in inspect.signature(self.kernel).parameters

    @property
    def promises(self) -> tuple[str, ...]:
        """What the method keeps, in words."""
        return tuple(text for name, text in PROMISES.items() if name not in self.breaks)

    @property
    def description(self) -> str:
        """The docstring up to its arguments."""
        return inspect.getdoc(self.kernel).partition("\nArgs:")[0].strip()  # type: ignore[union-attr]

    def parse_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return every option with its value, checked.

        Raises:
            MergeError: An option is unknown or has a wrong value.
        """
        known = {option.name: option for option in self.options}
        given = dict(given)
        if self.presets and (preset := given.pop("preset", None)) is not None:
            given = {**self._preset(str(preset)), **given}
        if unknown := [name for name in given if name not in known]:
            raise MergeError(
                f"Method {self.name} has no option {unknown[0]}.",
                remedy=f"Its options: {', '.join(known) or 'none'}; see hub-merge methods {self.name}.",
            )
        return {name: option.parse(given[name]) if name in given else option.default for name, option in known.items()}

    def _preset(self, name: str) -> Mapping[str, Any]:
        if name not in self.presets:
            raise MergeError(f"Method {self.name} has no preset {name!r}.", remedy=f"It has {', '.join(self.presets)}.")
        return self.presets[name]

    def combination(self, weights: Sequence[float], parts: Sequence[LoraFactors]) -> Sequence[float]:
        """Return the coefficients of the linear combination of deltas that a result is measured against.

        It is the one that the method makes if it makes one, else the weighted sum.
        """
        return weights if self.coefficients is None else self.coefficients(weights, [part.rank > 0 for part in parts])

    def output_rank(self, ranks: Sequence[int], rank: int | None) -> int:
        """Return the rank that a module whose parts have ``ranks`` has after the merge."""
        total = sum(ranks)
        wanted = rank if rank is not None else total if self.default_rank == "total" else max(ranks, default=0)
        return min(wanted, total)


_methods: dict[str, Method] = {}


def merge_method(
    name: str,
    *,
    formula: str,
    paper: str = "",
    aliases: tuple[str, ...] = (),
    default_rank: DefaultRank = "total",
    presets: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({}),
    coefficients: Coefficients | None = None,
    cautions: Callable[[Sequence[float], Mapping[str, Any]], Sequence[str]] | None = None,
    breaks: frozenset[Promise] = frozenset(),
    most_adapters: int | None = None,
) -> Callable[[Kernel], Kernel]:
    """Register the decorated function as the method ``name``; see ``Method`` for the arguments.

    Raises:
        ValueError: The name is taken, the signature is not that of a method, or the docstring is missing.
    """

    def register(kernel: Kernel) -> Kernel:
        for taken in (name, *aliases):
            if taken in _methods:
                raise ValueError(f"two merge methods are called {taken}")
        method = Method(
            name=name,
            kernel=kernel,
            formula=formula,
            aliases=aliases,
            paper=paper,
            default_rank=default_rank,
            options=_read_options(kernel),
            presets=presets,
            coefficients=coefficients,
            cautions=cautions,
            breaks=breaks,
            most_adapters=most_adapters,
        )
        if not inspect.getdoc(kernel):
            raise ValueError("a merge method needs a docstring, which is its help text")
        _methods.update(dict.fromkeys((name, *aliases), method))
        return kernel

    return register


def _read_options(kernel: Kernel) -> tuple[Option, ...]:
    hints = get_type_hints(kernel, include_extras=True)
    parameters = inspect.signature(kernel).parameters
    if not {"parts", "weights", "rank", "rng"} <= parameters.keys():
        raise ValueError("a merge method takes parts, weights, rank and rng")
    return tuple(
        _read_option(name, hints.get(name), parameter.default)
        for name, parameter in parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in GIVEN
    )


def _read_option(name: str, hint: Any, default: Any) -> Option:
    extras: list[Any] = []
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
    bounds = next((extra for extra in extras if isinstance(extra, Bounds)), None)
    optional = get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)
    if optional:
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    choices: tuple[str, ...] = get_args(hint) if get_origin(hint) is Literal else ()
    kind: type = str if choices else hint
    if name in RESERVED:
        raise ValueError(f"option {name} has a name that merge itself takes")
    if kind not in (bool, int, float, str) or default is inspect.Parameter.empty:
        raise ValueError(f"option {name} needs a default and one of the kinds bool, int, float, str, Literal")
    return Option(name, kind, default, choices, bounds, optional, MethodName() in extras)


@cache
def _load_own() -> None:
    """Import every file of this folder, once."""
    package = importlib.import_module("hub_merge.methods")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"hub_merge.methods.{module.name}")


@cache
def _load_all() -> Mapping[str, Method]:
    """Import every file of this folder and every entry point, once; what an entry point breaks is left out."""
    from importlib.metadata import entry_points  # slow to import, and most merges need no package's method

    _load_own()
    for entry_point in entry_points(group=ENTRY_POINTS):
        _load_package(entry_point)
    return _methods


def _load_package(entry_point: EntryPoint) -> None:
    """Import another package's methods: all of them, or none and a warning, so that the rest stays usable."""
    before = dict(_methods)
    try:
        entry_point.load()
    except Exception as error:
        _methods.clear()
        _methods.update(before)
        package = entry_point.dist.name if entry_point.dist else entry_point.value
        warnings.warn(
            f"The merge methods of package {package} are left out: {entry_point.value} failed with "
            f"{type(error).__name__}: {error}. Update or uninstall {package}; all other methods work.",
            RuntimeWarning,
            stacklevel=4,
        )


def list_methods() -> tuple[Method, ...]:
    """Return every method once, by name."""
    return tuple(sorted({method.name: method for method in _load_all().values()}.values(), key=lambda m: m.name))


def get_method(name: str) -> Method:
    """Return the method of that name or alias.

    Methods of other packages are looked for only if none here has the name, which they could not take anyway.

    Raises:
        UnknownMethod: There is none.
    """
    if name not in _methods and name.isidentifier() and find_spec(f"hub_merge.methods.{name}"):
        importlib.import_module(f"hub_merge.methods.{name}")  # the others stay unread
    if name not in _methods:
        _load_own()
    methods = _methods if name in _methods else _load_all()
    if name in methods:
        return methods[name]
    import difflib

    close = difflib.get_close_matches(name, methods, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    raise UnknownMethod(
        f"There is no merge method {name!r}.", remedy=f"{hint}Methods: {', '.join(m.name for m in list_methods())}."
    )
