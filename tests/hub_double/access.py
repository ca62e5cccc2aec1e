"""Who may see, read and write what; each check raises the Hub's own refusal."""

from __future__ import annotations

from .http import Call, HubError
from .state import Commit, File, Repo, User


def authenticate(call: Call) -> User | None:
    scheme, _, token = call.headers.get("authorization", "").partition(" ")
    if not scheme:
        return None
    user = call.state.user_of_token(token)
    if user is None:
        raise HubError(401, "InvalidCredentials", "Invalid credentials in Authorization header")
    return user


def logged_in(call: Call) -> User:
    if call.user is None:
        raise HubError(401, "Unauthorized", "Invalid username or password.")
    return call.user


def writer_in(call: Call, namespace: str) -> User:
    user = logged_in(call)
    if user.role != "write" or not user.belongs_to(namespace):
        message = f"You don't have the rights to create or change anything under the namespace {namespace}"
        raise HubError(403, "Forbidden", message)
    return user


def is_member(user: User | None, repo: Repo) -> bool:
    return user is not None and user.belongs_to(repo.namespace)


def may_see(user: User | None, repo: Repo) -> bool:
    return not repo.private or is_member(user, repo) or (user is not None and user.name in repo.granted)


def find_repo(call: Call, repo_type: str, repo_id: str) -> Repo:
    repo = call.state.repos.get((repo_type, repo_id))
    if repo is None or not may_see(call.user, repo):
        raise repo_not_found(call)
    return repo


def repo_not_found(call: Call) -> HubError:
    if call.user is None:
        return HubError(401, "RepoNotFound", "Invalid username or password.")
    return HubError(404, "RepoNotFound", "Repository not found")


def visible_repo(call: Call) -> Repo:
    """The repository of ``/api/{type}s/{repo}...`` or ``/{prefix}{repo}...``, if the caller may know of it."""
    repo_type = call.args.get("type") or call.args.get("prefix", "models/").removesuffix("s/")
    return find_repo(call, repo_type, call.args["repo"])


def check_content(call: Call, repo: Repo) -> None:
    """Refuse the files of disabled repositories, and of gated ones to those who were not let in."""
    if repo.disabled:
        raise HubError(403, "Disabled", "Access to this resource is disabled.")
    if not repo.gated or is_member(call.user, repo):
        return
    if call.user is None:
        message = f"Access to {repo.type} {repo.id} is restricted. You must be authenticated to access it."
        raise HubError(401, "GatedRepo", message)
    if call.user.name not in repo.granted:
        message = f"Access to {repo.type} {repo.id} is restricted and you are not in the authorized list."
        raise HubError(403, "GatedRepo", f"{message} Visit {call.state.url(repo)} to ask for access.")


def readable_repo(call: Call) -> Repo:
    repo = visible_repo(call)
    check_content(call, repo)
    return repo


def writable_repo(call: Call, revision: str | None = None) -> Repo:
    """The repository, for its writers; for any other writer only on the way to a pull request."""
    repo = visible_repo(call)
    user = logged_in(call)
    if call.flag("create_pr") and user.role == "write":
        return repo
    if user.role == "write" and any(d.ref == revision and d.author == user.name for d in repo.discussions):
        return repo
    writer_in(call, repo.namespace)
    return repo


def commit_at(repo: Repo, revision: str) -> Commit:
    commit = repo.resolve(revision)
    if commit is None:
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return commit


def file_at(commit: Commit, path: str) -> File:
    if path not in commit.files:
        raise HubError(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit.oid})
    return commit.files[path]
