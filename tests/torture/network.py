"""A network that fails at each kind of request: the right error in bounded time, nothing partial, no storm of requests.

A row of ``KINDS`` is a kind of request with a call that needs it, a row of ``FAULTS`` what may happen to it; every pair
is tried. To torture another request or fault, add a row.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.utils import _xet

from hub_merge.errors import (
    AdapterFormatError,
    AdapterNotFound,
    HubMergeError,
    HubUnavailable,
    PublishError,
)
from hub_merge.hub import Hub, parse_reference
from hub_merge.pipeline import merge_to_folder, push_folder
from hub_merge.recipe import Recipe, Source
from hub_merge.sources import open_adapter, open_headers
from hub_merge.zoo import reading
from hub_merge.zoo.building import build
from hub_merge.zoo.index import MARK_FILE, Index
from tests.hub_double import HubDouble
from tests.hub_double.server import Request
from tests.torture.tally import Outcome
from tests.torture.world import BASE, MATH, MEDICINE, WEIGHTS, adapter_files, clean_environment, furnish

TIMEOUT, RETRIES, PATIENCE = 0.8, 1, 6.0
HURRY: dict[str, Any] = {"timeout": TIMEOUT, "retries": RETRIES, "patience": PATIENCE}
MOST_SECONDS = 45.0
"""The client of huggingface_hub announces and uploads files six times, with pauses of 23 seconds in all."""
MOST_SECONDS_OF_XET = 75.0
"""What ``hub_merge.patience`` leaves to hf_xet, and some seconds for the rest."""
MOST_REQUESTS = 22
"""The redirects that the HTTP client follows; nothing else comes near it."""
NUMBERS = itertools.count()


@dataclass(frozen=True)
class Kind:
    """A kind of request.

    Attributes:
        name: Name in messages.
        pattern: What its ``METHOD /path?query`` looks like.
        call: Does what needs it.
        store: Which way of large files it belongs to, if to one: ``lfs`` or ``xet``.
        checked: Whether a wrong byte in the answer is found out.
        json: Whether the answer is JSON.
    """

    name: str
    pattern: str
    call: Callable[[Hub, Path, str], object]
    store: str = ""
    checked: bool = False
    json: bool = False

    @property
    def writes(self) -> bool:
        return self.call is publish

    @property
    def builds(self) -> bool:
        return self.call is index

    @property
    def skipped(self) -> str:
        """Why it cannot be tried here; empty if it can."""
        return "needs pyarrow" if self.builds and importlib.util.find_spec("pyarrow") is None else ""


@dataclass(frozen=True)
class Fault:
    """What happens to a request, and what may come of it.

    Attributes:
        name: Name in messages.
        what: Attributes of the double's fault.
        errors: Errors that may tell of it while reading; publishing tells by ``PublishError`` or ``HubUnavailable``.
        passes: Whether what is read is to be asked for again.
        only: Which kinds it can happen to.
    """

    name: str
    what: dict[str, Any]
    errors: tuple[type[HubMergeError], ...]
    passes: bool = False
    only: Callable[[Kind], bool] = field(default=lambda kind: True)


def describe(hub: Hub, composite: Path, target: str) -> object:
    return hub.describe(parse_reference(MATH))


def search(hub: Hub, composite: Path, target: str) -> object:
    return hub.search(BASE)


def headers(hub: Hub, composite: Path, target: str) -> object:
    return open_headers(MATH, hub=hub)


def download(hub: Hub, composite: Path, target: str) -> object:
    return open_adapter(MATH, hub=hub)


def publish(hub: Hub, composite: Path, target: str) -> object:
    return push_folder(composite, target, hub=hub, branch="side", tag="v1", collection="Merges")


class Hurried(reading.Access):
    """Access of a build that is as impatient as the other calls."""

    def connect(self, gate: Any = None, cache_dir: Path | None = None) -> Hub:
        return Hub(token=self.token, endpoint=self.endpoint, cache_dir=cache_dir, gate=gate, **HURRY)


def index(hub: Hub, composite: Path, target: str) -> object:
    access = reading.Access if hub._patience > PATIENCE else Hurried
    folder = index_of(composite, target)
    return build(folder, BASE, access=access(endpoint=hub.endpoint, token=hub.api.token), retry=True)


def index_of(composite: Path, target: str) -> Path:
    return composite.with_name(target.rpartition("/")[2])


KINDS = (
    Kind("description of a repository", rf"GET /api/models/{MATH}(/revision/\w+)?\?", describe, json=True),
    Kind("list of models", r"GET /api/models\?", search, json=True),
    Kind("small file, part", rf"GET /api/resolve-cache/models/{MATH}.*config", headers, checked=True),
    Kind("large file, part", r"GET /objects/", headers),
    Kind("address of a file", rf"HEAD /{MATH}/resolve/.*safetensors", download),
    Kind("small file", rf"GET /api/resolve-cache/models/{MATH}.*config", download, checked=True),
    Kind("large file", r"GET /objects/", download, "lfs", checked=True),
    Kind("Xet token to read", r"GET .*/xet-read-token/", download, "xet", json=True),
    Kind("who am I", r"GET /api/whoami", publish, json=True),
    Kind("card check", r"POST /api/validate-yaml", publish, json=True),
    Kind("creation of a repository", r"POST /api/repos/create", publish, json=True),
    Kind("creation of a branch", r"POST .*/branch/", publish),
    Kind("announcement of files", r"POST .*/preupload/", publish, json=True),
    Kind("announcement of large files", r"POST .*/objects/batch", publish, "lfs", json=True),
    Kind("upload of a large file", r"PUT ", publish, "lfs"),
    Kind("Xet token to write", r"GET .*/xet-write-token/", publish, "xet", json=True),
    Kind("commit", r"POST .*/commit/", publish, json=True),
    Kind("creation of a tag", r"POST .*/tag/", publish),
    Kind("creation of a collection", r"POST /api/collections$", publish, json=True),
    Kind("entry in a collection", r"POST /api/collections/.*/items", publish, json=True),
    Kind("zoo: list of models", r"GET /api/models\?", index, "lfs", json=True),
    Kind("zoo: base model", rf"GET /api/models/{BASE}\?", index, "lfs", json=True),
    Kind("zoo: description of a repository", rf"GET /api/models/{MATH}/revision", index, "lfs", json=True),
    Kind("zoo: small file", rf"GET /api/resolve-cache/models/{MATH}.*config", index, "lfs", checked=True),
    Kind("zoo: large file", r"GET /objects/", index, "lfs", checked=True),
    Kind("zoo: Xet token to read", r"GET .*/xet-read-token/", index, "xet", json=True),
)

GONE = (HubUnavailable,)
REFUSED = (AdapterNotFound,)
BROKEN = (HubUnavailable, AdapterFormatError)

FAULTS = (
    Fault("no answer", {"cut": "request"}, GONE, True),
    Fault("answer lost", {"cut": "response"}, GONE, True),
    Fault("too late", {"delay": 3 * TIMEOUT}, GONE, True, lambda kind: not kind.writes),
    Fault("reset amid the body", {"cut": "reset"}, BROKEN, True),
    Fault("cut amid the body", {"cut": "body"}, BROKEN, True),
    Fault("drips", {"drip": TIMEOUT / 4}, GONE, True, lambda kind: not kind.writes),
    Fault("wrong length", {"length": 3}, BROKEN),
    Fault("wrong byte", {"garbled": True}, BROKEN, False, lambda kind: kind.checked),
    *(Fault(f"status {status}", {"status": status}, REFUSED) for status in (401, 403, 404, 409, 412)),
    *(Fault(f"status {status}", {"status": status}, GONE, True) for status in (429, 500, 503)),
    Fault("status 429 for long", {"status": 429, "headers": {"RateLimit": '"api";r=0;t=280'}}, GONE),
    Fault("redirects for ever", {"loop": True}, GONE),
    Fault("a page of HTML", {"status": 200, "body": b"<html>Log in to the hotel</html>"}, BROKEN),
    Fault(
        "expired token",
        {"headers": {"X-Xet-Token-Expiration": "1"}},
        GONE,
        False,
        lambda kind: "Xet token" in kind.name,
    ),
)


def failing(hub: HubDouble, folder: Path, pairs: Sequence[tuple[Kind, Fault, int | None]]) -> Iterator[Outcome]:
    """Try faults of kinds of requests, each so many times (``None`` is for ever), on a Hub of their own."""
    furnish(hub)
    composite = folder / "composite"
    recipe = Recipe("sum", (Source(MATH), Source(MEDICINE)))
    merge_to_folder(recipe, composite, hub=connect(hub, folder / "made", patient=True))
    for kind, fault, times in pairs:
        if kind.skipped:
            yield Outcome("network", kind.name, "", skipped=kind.skipped)
            continue
        trial = Trial(hub, kind, composite, folder / "cache")
        often = "once" if times else "for ever"
        yield Outcome("network", kind.name, f"{fault.name}, {often}", trial.lost(fault, times))


def pairs(store: str) -> list[tuple[Kind, Fault, int | None]]:
    """Return all that can be tried with a way of large files, ``lfs`` or ``xet``."""
    kinds = [kind for kind in KINDS if kind.store in ("", store)]
    return [(kind, fault, times) for kind in kinds for fault in FAULTS if fault.only(kind) for times in (None, 1)]


def store_away(hub: HubDouble, home: Path) -> Outcome:
    """Run a command as it is shipped, with a store of Xet where nobody listens: hf_xet itself has to give up."""
    (home / "tmp").mkdir(parents=True)
    hub.faults.add(r"GET .*/xet-read-token/", times=None, headers={"X-Xet-Cas-Url": "http://127.0.0.1:9"})
    variables = {**clean_environment(), **hub.environment(home), "TMPDIR": str(home / "tmp")}
    words = [sys.executable, "-m", "hub_merge", "score", MATH, MEDICINE]
    try:
        done = subprocess.run(
            words, env=variables, capture_output=True, text=True, timeout=MOST_SECONDS_OF_XET, check=False
        )
        lost = "" if done.returncode == 1 and "Try" in done.stderr else f"{done.returncode}: {done.stderr.strip()}"
    except subprocess.TimeoutExpired as error:
        lost = str(error)
    hub.faults.clear()
    return Outcome("network", "Xet store, as shipped", "nobody listens", lost or wrong_files(home / "hf" / "hub"))


def connect(hub: HubDouble, cache: Path, *, patient: bool = False) -> Hub:
    return Hub(token=hub.token("alice"), endpoint=hub.endpoint, cache_dir=cache, **({} if patient else HURRY))


def wrong_files(cache: Path) -> str:
    """Return which files of the cache are not those of the repository."""
    truth = adapter_files(1)
    found = {path: path.read_bytes() for path in cache.glob("*math/snapshots/*/*")}
    return ", ".join(f"{path.name} is in the cache, but wrong" for path in found if truth[path.name] != found[path])


class Trial:
    """One kind of request on a fresh cache and a Hub where nothing is published yet."""

    def __init__(self, hub: HubDouble, kind: Kind, composite: Path, cache: Path) -> None:
        self.hub, self.kind, self.composite, self.cache = hub, kind, composite, cache
        self.target = f"alice/new-{next(NUMBERS)}"
        shutil.rmtree(cache, ignore_errors=True)
        hub.faults.clear()
        if not hub.xet:
            hub.forget((composite / WEIGHTS).read_bytes())
        _xet.XET_CONNECTION_INFO_CACHE.clear()
        reading._lookups.cache_clear()

    def lost(self, fault: Fault, times: int | None) -> str:
        """Return what was lost to the fault; empty if nothing was."""
        self.hub.faults.add(self.kind.pattern, times=times, **fault.what)
        before, started = len(self.hub.requests), time.monotonic()
        error = self.error()
        seconds = time.monotonic() - started
        asked = [line for line in map(line_of, self.hub.requests[before:]) if re.search(self.kind.pattern, line)]
        self.hub.faults.clear()
        if not asked:
            return "the request was not made"
        if seconds > MOST_SECONDS:
            return f"it took {seconds:.0f} s"
        if len(asked) > MOST_REQUESTS * (2 if self.kind.builds else 1):  # a build goes on to the other adapter
            return f"it was asked {len(asked)} times"
        return (
            self.misjudged(fault, times, error)
            or self.wrong_files()
            or self.half_published()
            or self.wrongly_indexed(fault, times, error)
            or self.afterwards()
        )

    def error(self, *, patient: bool = False) -> Exception | None:
        try:
            self.kind.call(connect(self.hub, self.cache, patient=patient), self.composite, self.target)
        except Exception as error:
            return error
        return None

    def misjudged(self, fault: Fault, times: int | None, error: Exception | None) -> str:
        """Return what is wrong with how the fault was told, or that it was told or not told."""
        if error is None:
            return ""
        told = f"{type(error).__name__}: {error}"
        expected = (PublishError, HubUnavailable) if self.kind.writes else fault.errors
        if not isinstance(error, expected):
            return f"told by another error, {told}"
        if not error.remedy or "hf_alice" in told:
            return f"told without a remedy or with a token, {told}"
        if times == 1 and fault.passes and not self.kind.writes:
            return f"it was not tried again, {told}"
        return ""

    def wrong_files(self) -> str:
        return wrong_files(self.cache)

    def half_published(self) -> str:
        """Return what is wrong with what is published."""
        whole = {path.name for path in self.composite.iterdir()}
        try:
            commits = [*self.hub.commits(self.target, "side"), *self.hub.commits(self.target)]
        except KeyError:
            return ""  # the repository, or its branch, is not there yet
        written = {commit.oid: commit.files.keys() - {".gitattributes"} for commit in commits}
        if any(files and not whole <= files for files in written.values()):
            return "a part of the composite is published"
        return "it was committed twice" if sum(map(bool, written.values())) > 1 else ""

    def wrongly_indexed(self, fault: Fault, times: int | None, error: Exception | None) -> str:
        """Return what is wrong with the index: an adapter is blamed for the network, or was not asked for again."""
        if not self.kind.builds:
            return ""
        known = self.index()
        blamed = [f"{key}: {entry['reason']}" for key, entry in known.items() if entry["reason"]]
        if blamed and AdapterNotFound not in fault.errors:
            return f"blamed for the network: {', '.join(blamed)}"
        if error is None and times == 1 and fault.passes and known.keys() != {MATH, MEDICINE}:
            return "it was not tried again"
        return ""

    def index(self) -> dict[str, dict[str, Any]]:
        """Return what the index holds, by adapter."""
        folder = index_of(self.composite, self.target)
        return Index(folder).known() if (folder / MARK_FILE).is_file() else {}

    def afterwards(self) -> str:
        """Return why it does not work after the fault."""
        error = self.error(patient=True)
        if error:
            return f"afterwards: {type(error).__name__}: {error}"
        if self.kind.builds and {key for key, entry in self.index().items() if not entry["reason"]} != {MATH, MEDICINE}:
            return "afterwards: the index is not whole"
        return self.wrong_files() or self.half_published()


def line_of(request: Request) -> str:
    """Return a request as patterns see it."""
    return f"{request.method} {request.path}{'?' if request.query else ''}"
