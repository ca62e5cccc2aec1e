"""What the Hub remembers: users, repositories with their history, discussions and collections."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from .storage import Storage, StoredObject

MAIN = "refs/heads/main"
URL_PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}


def now() -> datetime:
    return datetime.now(UTC)


def timestamp(date: datetime) -> str:
    return date.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def git_blob_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(stored: StoredObject) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{stored.sha256}\nsize {stored.size}\n".encode()


@dataclass
class User:
    name: str
    token: str
    role: str = "write"
    organisations: dict[str, str] = field(default_factory=dict)

    def belongs_to(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.organisations


@dataclass(frozen=True)
class File:
    """One path in one commit: a regular git blob, or a pointer to a stored object."""

    oid: str
    size: int
    content: bytes | None = None
    stored: StoredObject | None = None
    pointer_size: int = 0

    @classmethod
    def regular(cls, content: bytes) -> File:
        return cls(git_blob_oid(content), len(content), content=content)

    @classmethod
    def large(cls, stored: StoredObject) -> File:
        pointer = lfs_pointer(stored)
        return cls(git_blob_oid(pointer), stored.size, stored=stored, pointer_size=len(pointer))

    @property
    def etag(self) -> str:
        """What a client compares its own copy with: sha256 of a large file, git sha1 of a regular one."""
        return self.stored.sha256 if self.stored else self.oid


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    message: str
    author: str
    date: datetime
    parent: str | None
    files: Mapping[str, File]


@dataclass
class Discussion:
    num: int
    title: str
    author: str
    status: str
    base: str | None = None
    """Commit a pull request starts from; None for a plain discussion."""
    merge_commit: str | None = None
    created_at: datetime = field(default_factory=now)
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_pull_request(self) -> bool:
        return self.base is not None

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.num}"

    def add_event(self, kind: str, author: str, data: dict[str, Any]) -> dict[str, Any]:
        event = {
            "id": f"{self.num:08x}{len(self.events):016x}",
            "type": kind,
            "createdAt": timestamp(now()),
            "author": {"name": author},
            "data": data,
        }
        self.events.append(event)
        return event


@dataclass
class Repo:
    id: str
    type: str = "model"
    private: bool = False
    gated: str | bool = False
    disabled: bool = False
    downloads: int = 0
    likes: int = 0
    security: dict[str, str] = field(default_factory=dict)
    """Scan verdict by path ("unsafe", "suspicious", ...); files not named here are "safe"."""
    scans_done: bool = True
    granted: set[str] = field(default_factory=set)
    created_at: datetime = field(default_factory=now)
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    discussions: list[Discussion] = field(default_factory=list)

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    @property
    def head(self) -> Commit:
        return self.commits[self.refs[MAIN]]

    @property
    def last_modified(self) -> datetime:
        return self.head.date

    def full_ref(self, revision: str) -> str | None:
        candidates = (MAIN if revision == "HEAD" else revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((ref for ref in candidates if ref in self.refs), None)

    def resolve(self, revision: str) -> Commit | None:
        """The commit of a branch, tag, pull request or (abbreviated) hash."""
        ref = self.full_ref(revision)
        if ref:
            return self.commits[self.refs[ref]]
        if not re.fullmatch(r"[0-9a-f]{5,40}", revision):
            return None
        return next((commit for oid, commit in self.commits.items() if oid.startswith(revision)), None)

    def history(self, commit: Commit) -> Iterator[Commit]:
        yield commit
        while commit.parent:
            commit = self.commits[commit.parent]
            yield commit

    def add_commit(self, ref: str, files: Mapping[str, File], title: str, author: str, message: str = "") -> Commit:
        parent = self.refs.get(ref)
        identity = (self.type, self.id, len(self.commits), parent, title, sorted((p, f.oid) for p, f in files.items()))
        oid = hashlib.sha1(repr(identity).encode()).hexdigest()
        commit = Commit(oid, title, message, author, now(), parent, dict(files))
        self.commits[oid] = commit
        self.refs[ref] = oid
        return commit

    def discussion(self, num: int) -> Discussion | None:
        return self.discussions[num - 1] if 0 < num <= len(self.discussions) else None

    def open_discussion(self, title: str, author: str, status: str, base: Commit | None) -> Discussion:
        discussion = Discussion(len(self.discussions) + 1, title, author, status, base.oid if base else None)
        self.discussions.append(discussion)
        if base:
            self.refs[discussion.ref] = base.oid
        return discussion


@dataclass
class Collection:
    slug: str
    title: str
    owner: str
    description: str | None
    private: bool
    items: list[dict[str, Any]] = field(default_factory=list)
    last_updated: datetime = field(default_factory=now)


@dataclass
class Upload:
    """A large file on its way into storage, in one piece or in parts."""

    sha256: str
    size: int
    parts: dict[int, bytes] = field(default_factory=dict)


@dataclass
class State:
    storage: Storage
    endpoint: str
    storage_url: str
    page_size: int
    users: dict[str, User] = field(default_factory=dict)
    organisations: set[str] = field(default_factory=set)
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    collections: dict[str, Collection] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    renames: dict[str, str] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the files of a commit tell, by commit."""

    def user_of_token(self, token: str) -> User | None:
        return next((user for user in self.users.values() if user.token == token), None)

    def url(self, repo: Repo) -> str:
        return f"{self.endpoint}/{URL_PREFIX[repo.type]}{repo.id}"

    def create_repo(self, repo: Repo, author: str) -> Repo:
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        repo.add_commit(MAIN, {".gitattributes": File.regular(attributes.encode())}, "initial commit", author)
        self.repos[repo.type, repo.id] = repo
        return repo

    def file(self, path: str, content: bytes) -> File:
        """A file as the Hub would keep it: large ones go to storage."""
        if not content or not is_large(path, len(content), content[:512]):
            return File.regular(content)
        return File.large(self.storage.add(content))

    def content(self, file: File) -> bytes:
        if file.stored:
            return self.storage.read(file.stored.sha256)
        return file.content or b""


LFS_SUFFIXES = (
    *(".7z", ".arrow", ".bin", ".bz2", ".ckpt", ".ftz", ".gguf", ".gz", ".h5", ".joblib", ".mlmodel", ".model"),
    *(".msgpack", ".npy", ".npz", ".onnx", ".ot", ".parquet", ".pb", ".pickle", ".pkl", ".pt", ".pth", ".rar"),
    *(".safetensors", ".tar", ".tflite", ".tgz", ".wasm", ".xz", ".zip", ".zst"),
)
MAX_REGULAR_SIZE = 10 * 1024 * 1024


def is_large(path: str, size: int, sample: bytes) -> bool:
    return path.endswith(LFS_SUFFIXES) or size > MAX_REGULAR_SIZE or b"\0" in sample
