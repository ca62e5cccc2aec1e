"""The Hub double as tests see it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from .server import Application, ServerThread, listen
from .state import MAIN, Commit, Repo, State, User
from .storage import Storage

if TYPE_CHECKING:
    from huggingface_hub import HfApi

GRADIO_LOCAL_TOKEN = "mock-oauth-token-for-local-dev"


class HubDouble:
    """A Hugging Face Hub on loopback, for the real ``huggingface_hub`` client.

    The API is at ``endpoint``; stored files are at another origin of the same server, where a token must never
    arrive (``leaked_tokens`` has those that did). ``requests`` is the log, ``faults`` what goes wrong on purpose,
    ``renames`` old repository ids by new ones, ``crashes`` the double's own bugs.

    Users are ``alice`` and ``bob`` (writers; alice administers the organisation ``acme``), ``reader`` (read-only
    token) and ``local-dev`` (the token of a local Gradio login).

    Args:
        xet: Keep large files in a Xet store. Otherwise clients must have ``HF_HUB_DISABLE_XET=1``.
        page_size: Most entries on one page of any listing.
        port: Port to listen on; 0 picks a free one.
    """

    def __init__(self, *, xet: bool = True, page_size: int = 100, port: int = 0) -> None:
        self.xet = xet
        self.folder = Path(tempfile.mkdtemp(prefix="hub-double-"))
        self._listener = listen(port)
        port = self._listener.getsockname()[1]
        storage = Storage(self.folder, xet)
        self._state = State(storage, f"http://127.0.0.1:{port}", f"http://localhost:{port}", page_size)
        self._application = Application(self._state)
        self.endpoint = self._state.endpoint
        self.requests = self._application.requests
        self.leaked_tokens = self._application.leaked_tokens
        self.crashes = self._application.crashes
        self.faults = self._application.faults
        self.renames = self._state.renames
        self.add_user("alice", organisations={"acme": "admin"})
        self.add_user("bob")
        self.add_user("reader", role="read")
        self.add_user("local-dev", token=GRADIO_LOCAL_TOKEN)

    def __enter__(self) -> HubDouble:
        self._server = ServerThread(self._application, self._listener)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def add_user(
        self,
        name: str,
        *,
        token: str | None = None,
        role: str = "write",
        organisations: Mapping[str, str] | None = None,
    ) -> User:
        user = User(name, token or f"hf_{name}", role, dict(organisations or {}))
        self._state.users[name] = user
        return user

    def token(self, user: str) -> str:
        return self._state.users[user].token

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, bytes] | None = None,
        *,
        repo_type: str = "model",
        private: bool = False,
        gated: str | bool = False,
        disabled: bool = False,
        owner: str | None = None,
        downloads: int = 0,
        likes: int = 0,
        security: Mapping[str, str] | None = None,
    ) -> str:
        """Create a repository, with a second commit when there are files; returns its head commit.

        Args:
            gated: False, ``"auto"`` or ``"manual"``.
            owner: User who commits; the namespace if not given.
            security: Scan verdicts other than "safe", by path.
        """
        repo = Repo(repo_id, repo_type, private, gated, disabled, downloads, likes, dict(security or {}))
        author = owner or repo.namespace
        with self._application.lock:
            self._state.create_repo(repo, author)
        return self.push(repo_id, files, repo_type=repo_type, author=author) if files else repo.head.oid

    def push(
        self,
        repo_id: str,
        files: Mapping[str, bytes],
        *,
        repo_type: str = "model",
        title: str = "Upload files",
        author: str | None = None,
    ) -> str:
        """Commit files to main behind the clients' back; returns the commit."""
        repo = self.repo(repo_id, repo_type)
        with self._application.lock:
            new = {path: self._state.file(path, content) for path, content in files.items()}
            return repo.add_commit(MAIN, {**repo.head.files, **new}, title, author or repo.namespace).oid

    @property
    def page_size(self) -> int:
        """Most entries on one page of any listing."""
        return self._state.page_size

    @page_size.setter
    def page_size(self, size: int) -> None:
        self._state.page_size = size

    def tamper(self, repo_id: str, path: str, content: bytes, revision: str = "main") -> None:
        """Put other bytes into a file of a commit, whose name stays: what no honest Hub does."""
        commit = self._commit(self.repo(repo_id), revision)
        with self._application.lock:
            dict.__setitem__(commit.files, path, self._state.file(path, content))  # type: ignore[arg-type]

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        """The repository itself; its settings (``private``, ``gated``, ...) may be changed at any time."""
        return self._state.repos[repo_type, repo_id]

    def repos(self) -> list[Repo]:
        """Every repository."""
        return list(self._state.repos.values())

    def commits(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> list[Commit]:
        """Commits of a branch, newest first."""
        repo = self.repo(repo_id, repo_type)
        return list(repo.history(self._commit(repo, revision)))

    def file(self, repo_id: str, path: str, revision: str = "main", repo_type: str = "model") -> bytes:
        commit = self._commit(self.repo(repo_id, repo_type), revision)
        with self._application.lock:
            return self._state.content(commit.files[path])

    @staticmethod
    def _commit(repo: Repo, revision: str) -> Commit:
        commit = repo.resolve(revision)
        if commit is None:
            raise KeyError(f"{repo.id} has no revision {revision}")
        return commit

    def grant(self, repo_id: str, user: str, repo_type: str = "model") -> None:
        """Let a user into a gated or private repository."""
        self.repo(repo_id, repo_type).granted.add(user)

    def forget(self, content: bytes) -> None:
        """Let a large file be unknown again, so that whoever publishes it has to send it."""
        self._state.storage.forget(content)

    def delete_repo(self, repo_id: str, repo_type: str = "model") -> None:
        del self._state.repos[repo_type, repo_id]

    def api(self, user: str | None = None) -> HfApi:
        """A client of this Hub, logged in or anonymous."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self.token(user) if user else False)

    def environment(self, home: Path, user: str | None = None) -> dict[str, str]:
        """Variables for a process that is to see this Hub and no other state than what is below ``home``."""
        variables = {
            "HOME": str(home),
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home / "hf"),
            "HF_HUB_CACHE": str(home / "hf" / "hub"),
            "HF_XET_CACHE": str(home / "hf" / "xet"),
            "HF_HUB_DISABLE_XET": "0" if self.xet else "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        return {**variables, "HF_TOKEN": self.token(user)} if user else variables
