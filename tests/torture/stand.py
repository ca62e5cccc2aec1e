"""Runs command lines, each in a fork of one process that has imported the package, and kills those it is told to kill.

Started as ``python -m tests.torture.stand``; reads lists of jobs as JSON, a line a list, runs the jobs of a list at the
same time and prints how each ended.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils._http import hf_request_event_hook

from hub_merge.cli import main as command_line

WARM = (
    *("hub_merge.fusion", "hub_merge.pipeline", "hub_merge.zoo.building", "hub_merge.zoo.statistics"),
    *(f"hub_merge.cli.commands.{name}" for name in ("find", "merge", "models", "publish", "zoo")),
    *(f"hub_merge.cli.show.{name}" for name in ("merges", "models", "publication", "scores", "zoo")),
    *("hub_merge.advise", "hub_merge.pipeline.references", "huggingface_hub.hf_api", "huggingface_hub.file_download"),
    *("encodings.idna", "httpcore2", "jinja2", "numpy.fft", "pandas", "pyarrow.dataset", "pyarrow.pandas_compat"),
)
"""What commands import when they need it: imported before the fork, it is there for all, as far as it is installed."""
REQUEST = "torture.request"
STEPS = {
    *("os.mkdir", "os.rename", "os.rmdir", "os.remove", "os.link", "os.symlink", "os.truncate", "os.chmod"),
    *("shutil.rmtree", "socket.connect", REQUEST),
}
"""Audited events that change a disk or reach the network, besides files that are opened for writing."""
WRITING = os.O_WRONLY | os.O_RDWR
MOST_SECONDS = 120


class Steps:
    """Counts the steps of a run that change a disk or open a connection, and kills the run at one of them."""

    def __init__(self, kill_at: int | None) -> None:
        self.count = 0
        self._kill_at = kill_at

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not (isinstance(flags, int) and flags & WRITING) or not isinstance(path, str) or path.startswith("/dev"):
                return
        elif event not in STEPS:
            return
        self.count += 1
        if self.count == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


class Client(httpx2.Client):
    """Tells of each request before it is sent and after it was answered."""

    def send(self, *args: Any, **settings: Any) -> httpx2.Response:
        sys.audit(REQUEST)
        response = super().send(*args, **settings)
        sys.audit(REQUEST)
        return response


def client() -> Client:
    return Client(verify=False, event_hooks={"request": [hf_request_event_hook]}, follow_redirects=True, timeout=None)


def child(job: dict[str, Any], said: Path) -> None:
    """Be the job: see only what it is to see, write to ``said``, and end with the exit code of the command line."""
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(job["environment"])
    constants.HF_HUB_CACHE = os.environ["HF_HUB_CACHE"]
    tempfile.tempdir = os.environ["TMPDIR"]  # else Python tries it with a file that a kill would leave
    os.chdir(job["home"])
    sys.argv = ["hub-merge", *job["words"]]
    if job.get("largest_file") is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"], resource.RLIM_INFINITY))
    set_client_factory(client)
    steps = Steps(job.get("kill_at"))
    sys.addaudithook(steps)
    if job.get("kill_after") is not None:
        timer = threading.Timer(job["kill_after"], os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
    code = 1
    try:
        command_line()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        with suppress(OSError):
            (said / "steps").write_text(str(steps.count))
        os._exit(code)


def run(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the jobs at the same time; return exit codes (minus the signal for a killed run), words and steps."""
    with tempfile.TemporaryDirectory() as root:
        running = []
        for number, job in enumerate(jobs):
            said = Path(root) / str(number)
            said.mkdir()
            pid = os.fork()
            if pid == 0:
                child(job, said)
            running.append((pid, said))
        return [ended(pid, said) for pid, said in running]


def ended(pid: int, said: Path) -> dict[str, Any]:
    started = time.monotonic()
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            break
        if time.monotonic() - started > MOST_SECONDS:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    texts = {name: (said / name).read_text(errors="replace") for name in ("out", "err") if (said / name).is_file()}
    steps = said / "steps"
    return {
        "code": os.waitstatus_to_exitcode(status),
        "out": texts.get("out", ""),
        "err": texts.get("err", ""),
        "steps": int(steps.read_text()) if steps.is_file() else None,
    }


def warm_up() -> None:
    """Do what takes long and is alike in each fork; processes that a fork starts need none of it."""
    for name in WARM:
        with suppress(ImportError):
            import_module(name)
    from hub_merge.card.rendering import environment

    for name in ("card.md.jinja", "licenses.md.jinja"):
        environment().get_template(name)
    gc.freeze()


def main() -> None:
    warm_up()
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
