"""Whatever goes wrong at the Hub, a push ends in one commit or in none, says which, and leaves the folder as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hub_merge.errors import HubUnavailable, PublishError
from tests.hub_double import HubDouble
from tests.test_publish import FILES, commits_sent, folder, publish, published_files

__all__ = ["folder"]

REPO = "alice/composite"

BEFORE = {"who": "GET /api/whoami-v2", "look": rf"GET /api/models/{REPO}(\?|$)", "right": "GET .*/auth-check/write"}
WRITING = {
    "card": "POST /api/validate-yaml",
    "preupload": "POST .*/preupload/",
    "upload": "(POST|PUT|GET) .*(/objects/|/storage/|/lfs|/xet-write-token/)",
    "commit": "POST .*/commit/",
}
FAULTS: dict[str, dict[str, Any]] = {
    "cut before": {"cut": "request"},
    "cut after": {"cut": "response"},
    "cut during": {"cut": "body"},
    "412": {"status": 412},
    "429": {"status": 429, "headers": {"Retry-After": "0"}},
    "500": {"status": 500},
    "503": {"status": 503},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeat at once what the client or we repeat."""
    monkeypatch.setattr("hub_merge.publish.commit.PAUSES", (0.0, 0.0))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


@pytest.mark.parametrize("times", [1, None], ids=["once", "always"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", [*BEFORE, *WRITING])
def test_a_push_ends_in_one_commit_or_none_and_says_which(
    place: str, fault: str, times: int | None, hub_lfs: HubDouble, folder: Path
) -> None:
    hub_lfs.add_repo(REPO)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    injected = hub_lfs.faults.add({**BEFORE, **WRITING}[place], times=times, **FAULTS[fault])
    commit, problem = None, ""
    try:
        commit = publish(hub_lfs, folder).commit
    except (PublishError, HubUnavailable) as error:
        problem = str(error)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert injected.times in (0, None)
    history = hub_lfs.commits(REPO)
    assert commits_sent(hub_lfs) <= 1
    if commit is not None:
        assert [commit, history[1].title] == [history[0].oid, "initial commit"] and len(history) == 2
        assert published_files(hub_lfs) == FILES
    else:
        assert len(history) == 1 and published_files(hub_lfs) == {}
        if place in WRITING:
            assert "nothing was published" in problem
    hub_lfs.faults.clear()
    again = publish(hub_lfs, folder)
    assert again.changed is (commit is None)
    assert published_files(hub_lfs) == FILES and len(hub_lfs.commits(REPO)) == 2


@pytest.mark.parametrize("fault", FAULTS)
def test_a_pull_request_is_opened_once_or_not_at_all(fault: str, hub_lfs: HubDouble, folder: Path) -> None:
    hub_lfs.add_repo(REPO)
    hub_lfs.faults.add(WRITING["commit"], times=None, **FAULTS[fault])
    try:
        opened = publish(hub_lfs, folder, create_pr=True).pr_url
    except PublishError as error:
        opened = None
        assert "nothing was published" in str(error)
    pull_requests = [name for name in hub_lfs.repo(REPO).refs if name.startswith("refs/pr/")]
    assert len(pull_requests) == (opened is not None)


def test_a_slow_hub_is_waited_for(hub_lfs: HubDouble, folder: Path) -> None:
    hub_lfs.faults.add(".", delay=0.05, times=None)
    assert publish(hub_lfs, folder).changed
    assert len(hub_lfs.commits(REPO)) == 2
