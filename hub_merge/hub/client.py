"""The Hub as this package sees it: find, pin, pull, and look into adapters without downloading them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hub_merge.bases import former_name
from hub_merge.budgets import budget
from hub_merge.errors import AdapterFormatError, AdapterNotFound, DamagedDownload, RecipeError
from hub_merge.hub.cached import clear_partial, has_size, require_digest, require_same
from hub_merge.hub.contents import Contents, adapter_files, contents, matching_files
from hub_merge.hub.failures import Asked, offline, translated
from hub_merge.hub.listings import Listing, Parameters, Query, SortKey, find
from hub_merge.hub.ranges import MOST_TEXT, MOST_TOKENS, RemoteHeaders, fetch_range, read_header
from hub_merge.hub.references import Reference, is_model_id
from hub_merge.hub.repositories import PinnedRepo, RepoType, cached_repo, copied_from, pinned_repo
from hub_merge.hub.transport import PATIENCE, Gate, retried, time_limit
from hub_merge.layout import CARD_FILE, CONFIG_FILE, INDEX_FILE, TOKENIZER_FILES
from hub_merge.workspace import write_whole

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

__all__ = ["Hub"]

Answer = TypeVar("Answer")

MOST_QUANTIZED = 20
"""Quantised copies of a model whose adapters are looked for, the most downloaded ones."""
MOST_COPIES = 4
"""Copies of copies that are followed to the model they were made from."""
LEAST_TIME_TO_WRITE = 120.0
"""Seconds: the Hub may think long about a commit, and giving up early would leave its fate open."""


class Hub:
    """A connection to the Hugging Face Hub.

    Every request has a time limit; those that only read are repeated after errors that pass. A token goes to the Hub
    only, never on to where files are stored.

    Args:
        token: Token to send; ``None`` takes HF_TOKEN or the stored login, ``True`` insists on it, ``False`` sends none.
        endpoint: Address of the Hub; ``None`` takes HF_ENDPOINT or ``https://huggingface.co``.
        offline: Use the cache only. Also set by HF_HUB_OFFLINE.
        cache_dir: Folder of downloads; ``None`` takes the one that all Hugging Face libraries share.
        closed_cache_dir: Folder of downloads from private and gated repositories, for a process that serves several
            users; ``None`` keeps them with the others.
        timeout: Seconds to wait for a connection or for the next bytes.
        retries: How often a failed request is repeated.
        allow_pickle: Also open PEFT's weights that are only there as a pickle, by a reader that runs none of it.
        progress: ``False`` keeps huggingface_hub from drawing progress bars in this process, unless its own setting
            says otherwise.
        patience: Seconds after which a request is not repeated any more, even if the Hub asks to wait longer.
        gate: What gives each request its turn, where several processes ask at once.
    """

    def __init__(
        self,
        *,
        token: str | bool | None = None,
        endpoint: str | None = None,
        offline: bool = False,
        cache_dir: Path | None = None,
        closed_cache_dir: Path | None = None,
        timeout: float = 30.0,
        retries: int = 4,
        allow_pickle: bool = False,
        progress: bool | None = None,
        patience: float = PATIENCE,
        gate: Gate | None = None,
    ) -> None:
        from huggingface_hub import constants, is_offline_mode

        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self.offline = offline or is_offline_mode()
        self._token = token
        self._progress = progress
        self.cache_dir = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
        self._closed_cache_dir = closed_cache_dir or self.cache_dir
        self._timeout = timeout
        self._retries = retries
        self.allow_pickle = allow_pickle
        self._patience = patience
        self._gate = gate
        self._sent = 0
        self._counting = threading.Lock()
        self._models: dict[str, ModelInfo | None] = {}

    @cached_property
    def api(self) -> HfApi:
        """The client of huggingface_hub, imported when it is needed: merging local adapters starts without it."""
        from huggingface_hub import HfApi, constants
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

        if self._progress is False and constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
            disable_progress_bars()
        return HfApi(
            endpoint=self.endpoint, token=self._token, library_name="hub-merge", library_version=_own_version()
        )

    def resolve(self, reference: Reference) -> PinnedRepo:
        """Return the repository of ``reference`` at the commit its revision has now.

        Raises:
            AdapterNotFound: There is no such repository or revision, or no right to see it.
            HubUnavailable: The Hub did not answer, or the cache does not know it while offline.
        """
        if self.offline:
            return self._resolve_cached(reference)
        return self.describe(reference)

    def describe(self, reference: Reference, repo_type: RepoType = "model") -> PinnedRepo:
        """Return what the Hub says now of the repository of ``reference``, whatever the cache holds.

        Raises:
            AdapterNotFound: There is no such repository or revision, or no right to see it.
            HubUnavailable: The Hub did not answer, or the network is switched off.
        """
        repo_id, revision = reference.repo_id, reference.revision
        ask_for = self.api.model_info if repo_type == "model" else self.api.dataset_info
        info = partial(ask_for, repo_id, revision=revision, files_metadata=True)
        return self.ask(lambda: pinned_repo(info(), reference), repo_id, str(reference))

    def pull(self, pinned: PinnedRepo, patterns: Iterable[str] | None = None, *, progress: bool = False) -> Path:
        """Download the adapter's files and return the folder that holds them, all and whole.

        Pickles are never downloaded, but for PEFT's weights where that was allowed.

        Args:
            pinned: Repository at a commit.
            patterns: File names to download instead, with ``*``.
            progress: Whether to draw progress bars on stderr.

        Raises:
            AdapterNotFound: The folder holds no adapter or no file of those names, or there is no right to read it.
            UnsupportedAdapter: It holds something else, or the weights as a pickle only.
            DamagedDownload: A file is not the one that the repository describes.
            BudgetExceeded: The files are larger than a limit or the disk allows; nothing was downloaded.
            HubUnavailable: The Hub did not answer, or the cache does not hold all of it while offline.
        """
        names = (
            adapter_files(pinned, allow_pickle=self.allow_pickle)
            if patterns is None
            else matching_files(pinned, patterns)
        )
        if not names:
            raise AdapterNotFound(
                f"{pinned.label} has no file that matches {', '.join(patterns or ())}.",
                remedy=f"See {self.endpoint}/{pinned.repo_id}/tree/{pinned.commit} .",
            )
        self._require_room(pinned, names)
        paths = [self._download(pinned, name, progress) for name in names]
        if not pinned.from_cache:
            self._remember(pinned)
        return paths[0].parent

    def contents(self, pinned: PinnedRepo) -> Contents:
        """Return the files that make the adapter.

        Raises:
            HubMergeError: As ``read_headers``.
        """
        return contents(pinned, allow_pickle=self.allow_pickle)

    def read_start(self, pinned: PinnedRepo, name: str, size: int) -> bytes:
        """Return the first ``size`` bytes of one of the adapter's files, or all it has."""
        return _Reader(self, pinned).read(name, 0, min(size, pinned.files[pinned.path(name)].size))

    def read_headers(self, pinned: PinnedRepo, *, tokens: bool = True) -> RemoteHeaders:
        """Return configuration and tensor headers of the adapter; costs kilobytes, whatever its size.

        Its weights have to be safetensors; see ``contents(pinned).has_headers``.

        Args:
            pinned: Repository at a commit.
            tokens: Whether to read the files that name the tokens that PEFT's adapter adds too.

        Raises:
            AdapterNotFound: The folder holds no adapter, or there is no right to read it.
            UnsupportedAdapter: It holds something else, or the weights as a pickle only.
            AdapterFormatError: A weight file is not safetensors, or its header is absurdly long.
            HubUnavailable: The Hub did not answer, or the cache does not hold it while offline.
        """
        found = self.contents(pinned)
        weights = found.weights
        reader = _Reader(self, pinned)
        sizes = {name: pinned.files[pinned.path(name)].size for name in weights}
        token_files = pinned.names().intersection(TOKENIZER_FILES) if tokens and found.is_peft else ()
        return RemoteHeaders(
            config=reader.text(CONFIG_FILE) if found.config else None,
            headers={
                name: read_header(partial(reader.read, name), sizes[name], f"{pinned.label} ({name})")
                for name in weights
            },
            index=reader.text(INDEX_FILE) if found.index else None,
            sizes=sizes,
            tokens={name: reader.text(name, MOST_TOKENS) for name in token_files},
            bytes_read=reader.bytes_read,
        )

    def ranges(self, pinned: PinnedRepo) -> Callable[[str, int, int], bytes]:
        """Return what reads the bytes of a file of the folder, by its name, from a start up to, not including, an end.

        What it raises is what ``read_headers`` does.
        """
        return _Reader(self, pinned).read

    def readme(self, pinned: PinnedRepo) -> str | None:
        """Return the card of the adapter's folder, ``None`` if it has none."""
        if CARD_FILE not in pinned.names():
            return None
        return _Reader(self, pinned).text(CARD_FILE).decode(errors="replace")

    def canonical(self, model_id: str) -> str | None:
        """Return the id that ``model_id`` has after renames, ``None`` if it is no model that can be seen.

        Raises:
            HubUnavailable: The Hub did not answer.
        """
        info = self._model(model_id)
        return info.id if info else None

    def original(self, model_id: str) -> str | None:
        """Return the model that ``model_id`` is a copy of, ``None`` if its card does not say that it is one.

        A copy is what its card calls quantised, or what has the name of its base but for the owner and an ending such
        as ``-bnb-4bit``; a fine-tune is none. Copies of copies are followed a few times, and never in a circle.

        Raises:
            HubUnavailable: The Hub did not answer.
        """
        chain = [model_id]
        while len(chain) <= MOST_COPIES and (info := self._model(chain[-1])):
            source = copied_from(info)
            if source is None or (source := self.canonical(source) or source) in chain:
                break
            chain.append(source)
        return chain[-1] if len(chain) > 1 else None

    def model(self, model_id: str) -> PinnedRepo | None:
        """Return the repository of a model at its present commit, ``None`` if it is no model that can be seen.

        Raises:
            HubUnavailable: The Hub did not answer.
        """
        info = self._model(model_id)
        return self.ask(lambda: pinned_repo(info, Reference(info.id)), model_id) if info else None

    def search(
        self,
        base_model: str | None = None,
        *,
        text: str | None = None,
        author: str | None = None,
        task: str | None = None,
        license: str | None = None,
        sort: SortKey = "downloads",
        limit: int = 30,
        page: int = 1,
        language: str | None = None,
        min_downloads: int = 0,
        quantized: bool = False,
    ) -> list[Listing]:
        """Return adapters in PEFT format, best first.

        Args:
            base_model: Hub id of the base model; its former names count too.
            text: Words in the repository's name.
            author: User or organisation.
            task: PEFT task type, such as ``CAUSAL_LM``.
            license: Licence identifier, such as ``apache-2.0``.
            sort: What puts an adapter first; the largest or latest wins.
            limit: Most adapters to return.
            page: Which ``limit`` of them, from 1.
            language: Code of a language that it is tagged with, such as ``en``.
            min_downloads: Least downloads of the last month.
            quantized: Also adapters that were trained on quantised copies of the base model.

        Raises:
            RecipeError: ``base_model`` cannot be a Hub id.
            HubUnavailable: The Hub did not answer.
        """
        bases: tuple[str, ...] = ()
        if base_model is not None:
            if not is_model_id(base_model):
                raise RecipeError(
                    f"{base_model!r} cannot be a model of the Hub.", remedy="Give an id such as Qwen/Qwen3-0.6B."
                )
            bases = self._names(base_model, quantized)
        query = Query(bases, text, author, task, license, sort, limit, language, min_downloads, page, copies=quantized)
        return find(query, lambda parameters: self.ask(lambda: self._page(parameters), "", "the list of models"))

    def _names(self, model_id: str, quantized: bool) -> tuple[str, ...]:
        """Return the names of a model, the canonical one first, with those of its copies if they are wanted."""
        canonical = self.canonical(model_id) or model_id
        copies: list[str] = []
        if quantized:
            asked = [("filter", f"base_model:quantized:{canonical}"), ("limit", str(MOST_QUANTIZED))]
            entries, _ = self.ask(lambda: self._page([*asked, ("sort", "downloads")]), canonical)
            copies = [entry["id"] for entry in entries[:MOST_QUANTIZED] if isinstance(entry.get("id"), str)]
        return tuple(dict.fromkeys(filter(None, (canonical, model_id, former_name(canonical), *copies))))

    def ask(self, call: Callable[[], Answer], repo_id: str, subject: str | None = None) -> Answer:
        """Return what ``call`` returns, which only reads; repeat it after errors that pass.

        Args:
            call: Uses ``api``.
            repo_id: Repository it is about.
            subject: How messages name it, if not by ``repo_id``.

        Raises:
            AdapterNotFound: There is nothing of that name, or no right to see it.
            HubUnavailable: The Hub did not answer, or the network is switched off.
        """
        if self.offline:
            raise offline(subject or repo_id)
        with translated(Asked(subject or repo_id, repo_id, self.endpoint, self._sends_token())):
            return retried(
                lambda: self._counted(call),
                timeout=self._timeout,
                retries=self._retries,
                patience=self._patience,
                gate=self._gate,
            )

    @property
    def requests(self) -> int:
        """How often something was asked of the Hub so far, repeats included."""
        return self._sent

    def _counted(self, call: Callable[[], Answer]) -> Answer:
        with self._counting:
            self._sent += 1
        return call()

    def send(self, call: Callable[[], Answer]) -> Answer:
        """Return what ``call`` returns, which writes: it is done once, and errors come as huggingface_hub raises them.

        Raises:
            HubUnavailable: The network is switched off.
        """
        if self.offline:
            raise offline("Writing to the Hub")
        with time_limit(max(self._timeout, LEAST_TIME_TO_WRITE), self._patience):
            return call()

    def headers(self) -> dict[str, str]:
        """Return the headers of a request to the Hub, with the token if there is one."""
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        api = self.api
        headers: dict[str, str] = build_hf_headers(
            token=api.token, library_name=api.library_name, library_version=api.library_version
        )
        return headers

    def cached_path(self, pinned: PinnedRepo, name: str) -> Path:
        """Return where the cache keeps the adapter's file ``name``, whether it is there or not."""
        return self._cache_of(pinned) / "snapshots" / pinned.commit / pinned.path(name)

    def _resolve_cached(self, reference: Reference) -> PinnedRepo:
        cache = _repo_cache(self.cache_dir, reference.repo_id)
        commit = reference.revision or "main"
        ref = cache / "refs" / commit
        if ref.is_file():
            commit = ref.read_text().strip()
        snapshot = cache / "snapshots" / commit
        if not snapshot.is_dir():
            raise offline(str(reference))
        return cached_repo(reference, commit, snapshot)

    def _remember(self, pinned: PinnedRepo) -> None:
        """Note in the cache, as its layout has it, which commit the revision is, for use without network."""
        revision = pinned.revision or "main"
        if revision == pinned.commit:
            return
        cache = self._cache_of(pinned)
        ref = cache / "refs" / revision
        with suppress(OSError):
            ref.parent.mkdir(parents=True, exist_ok=True)
            write_whole(ref, pinned.commit, place=cache)

    def _cache_for(self, pinned: PinnedRepo) -> Path:
        return self._closed_cache_dir if pinned.private or pinned.gated else self.cache_dir

    def _cache_of(self, pinned: PinnedRepo) -> Path:
        return _repo_cache(self._cache_for(pinned), pinned.repo_id)

    def _require_room(self, pinned: PinnedRepo, names: Iterable[str]) -> None:
        sizes = {name: pinned.files[pinned.path(name)].size for name in names}
        missing = sum(size for name, size in sizes.items() if not has_size(self.cached_path(pinned, name), size))
        limits = budget()
        limits.require_bytes(sum(sizes.values()), pinned.label)
        if missing:
            limits.require_disk(missing, self._cache_for(pinned), pinned.label)

    def _download(self, pinned: PinnedRepo, name: str, progress: bool) -> Path:
        file = pinned.files[pinned.path(name)]
        target, size = self.cached_path(pinned, name), file.size
        if has_size(target, size):
            return target
        download = partial(
            self.api.hf_hub_download,
            pinned.repo_id,
            pinned.path(name),
            revision=pinned.commit,
            cache_dir=self._cache_for(pinned),
            force_download=target.exists(),
            tqdm_class=None if progress else _silent_bar(),
        )
        self.ask(download, pinned.repo_id, f"{pinned.label} ({name})")
        if has_size(target, size):
            require_digest(target, file, f"{pinned.label} ({name})")
            clear_partial(target, self._cache_for(pinned) / ".locks" / self._cache_of(pinned).name)
            return target
        raise DamagedDownload(
            f"{pinned.label} ({name}) arrived with a size other than the {size} bytes that the repository states.",
            remedy="Try again; if it persists, ask its author to upload the file again.",
        )

    def _model(self, model_id: str) -> ModelInfo | None:
        if self.offline or not is_model_id(model_id):
            return None
        if model_id not in self._models:
            try:
                self._models[model_id] = self.ask(lambda: self.api.model_info(model_id, files_metadata=True), model_id)
            except AdapterNotFound:
                self._models[model_id] = None
        return self._models[model_id]

    def _page(self, parameters: Parameters) -> tuple[list[Any], str | None]:
        from huggingface_hub import get_session, hf_raise_for_status

        response = get_session().get(f"{self.endpoint}/api/models", params=list(parameters), headers=self.headers())
        hf_raise_for_status(response)
        entries = response.json()
        if not isinstance(entries, list):
            raise ValueError("no list of models")
        return entries, response.links.get("next", {}).get("url")

    def _sends_token(self) -> bool:
        from huggingface_hub import constants, get_token

        token = self.api.token
        implicit = token is True or not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN
        return isinstance(token, str) or (token is not False and implicit and get_token() is not None)


class _Reader:
    """Reads parts of an adapter's files, from the cache where they are there, and counts what it downloads."""

    def __init__(self, hub: Hub, pinned: PinnedRepo) -> None:
        self.bytes_read = 0
        self._hub = hub
        self._pinned = pinned

    def text(self, name: str, most: int = MOST_TEXT) -> bytes:
        file, subject = self._pinned.files[self._pinned.path(name)], f"{self._pinned.label} ({name})"
        if file.size > most:
            raise AdapterFormatError(
                f"{subject} has {file.size} bytes; at most {most} are read.",
                remedy="Take another revision, or ask its author to shorten the file.",
            )
        content = self.read(name, 0, file.size)
        require_same(BytesIO(content), file, subject)
        return content

    def read(self, name: str, start: int, end: int) -> bytes:
        if start >= end:
            return b""
        pinned, path = self._pinned, self._pinned.path(name)
        cached = self._hub.cached_path(pinned, name)
        if has_size(cached, pinned.files[path].size):
            with cached.open("rb") as file:
                file.seek(start)
                return file.read(end - start)
        content = self._hub.ask(lambda: self._fetch(path, start, end), pinned.repo_id, f"{pinned.label} ({name})")
        self.bytes_read += len(content)
        return content

    def _fetch(self, path: str, start: int, end: int) -> bytes:
        from huggingface_hub import hf_hub_url

        repo_id, commit = self._pinned.repo_id, self._pinned.commit
        url = hf_hub_url(repo_id, path, revision=commit, endpoint=self._hub.endpoint)
        return fetch_range(url, self._hub.headers(), start, end)


def _repo_cache(cache_dir: Path, repo_id: str) -> Path:
    return cache_dir / f"models--{repo_id.replace('/', '--')}"


def _silent_bar() -> type[Any]:
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class SilentBar(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **{**settings, "disable": True})  # type: ignore[no-untyped-call]

    return SilentBar


def _own_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("hub-merge")
    except PackageNotFoundError:
        return "0"
