"""Work on many modules at once: in threads, and in forked processes, each test of which is a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from hub_merge.parallel import map_modules

linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")

START = """
import os, signal, sys, threading, time
from hub_merge.errors import MergeError
from hub_merge.parallel import map_modules
"""


def script(body: str) -> list[str]:
    return [sys.executable, "-W", "error", "-c", START + textwrap.dedent(body)]


def lines_of(body: str) -> list[str]:
    """Return what a script prints; nothing may go to its standard error."""
    done = subprocess.run(script(body), capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_results_come_in_order_from_threads(workers: int) -> None:
    assert list(map_modules(lambda item: item * item, range(20), workers)) == [item * item for item in range(20)]
    assert list(map_modules(str, [], workers)) == []


def test_with_threads_of_its_own_a_process_is_not_forked() -> None:
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    try:
        assert set(map_modules(lambda item: os.getpid(), range(8), 2, forks=True)) == {os.getpid()}
    finally:
        stop.set()
        other.join()


@linux
@pytest.mark.parametrize("workers", [2, 3, 40])
def test_results_come_in_order_from_forked_processes(workers: int) -> None:
    found = lines_of(f"""
        seen = list(map_modules(lambda item: (item, os.getpid()), range(20), {workers}, forks=True))
        assert [item for item, _ in seen] == list(range(20))
        print(len({{pid for _, pid in seen}}), seen[0][1] == os.getpid())
    """)
    assert found == [str(min(workers, 20)), "True"]


@linux
@pytest.mark.parametrize("place", [0, 1, 7])
def test_an_error_of_a_forked_process_is_raised_as_it_was(place: int) -> None:
    found = lines_of(f"""
        def work(item):
            if item == {place}:
                raise MergeError("It is wrong.", remedy="Mend it.")
            return item

        seen = []
        try:
            for result in map_modules(work, range(9), 3, forks=True):
                seen.append(result)
        except MergeError as error:
            print(len(seen), error.problem == "It is wrong.", error.remedy == "Mend it.")
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            print("none left")
    """)
    assert found == [str(place), "True", "True", "none", "left"]


@linux
def test_an_error_that_no_pickle_can_carry_is_raised_all_the_same() -> None:
    found = lines_of("""
        class Odd(Exception):
            def __init__(self, item, why):
                super().__init__(f"{item} is {why}")

        def work(item):
            if item == 1:
                raise Odd(item, "odd")
            return item

        try:
            list(map_modules(work, range(4), 2, forks=True))
        except Odd as error:
            print(error)
    """)
    assert found == ["1", "is", "odd"]


@linux
def test_what_a_killed_process_did_not_do_is_done_by_the_one_that_forked_it() -> None:
    found = lines_of("""
        mine = os.getpid()

        def work(item):
            if item == 5 and os.getpid() != mine:
                os.kill(os.getpid(), signal.SIGKILL)
            return item, os.getpid() == mine

        seen = list(map_modules(work, range(10), 2, forks=True))
        assert [item for item, _ in seen] == list(range(10))
        print(*(item for item, here in seen if here))
    """)
    assert found == ["0", "2", "4", "5", "6", "7", "8", "9"]


@linux
def test_results_that_nobody_waits_for_leave_no_process_behind() -> None:
    found = lines_of("""
        results = map_modules(lambda item: item, range(100), 4, forks=True)
        print(next(results))
        results.close()
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            print("none left")
    """)
    assert found == ["0", "none", "left"]


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_forked_processes_end_with_the_one_that_forked_them(number: signal.Signals, tmp_path: Path) -> None:
    body = f"""
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has jobs in the background ignore it

        def work(item):
            open(r"{tmp_path}/" + str(os.getpid()), "w").close()
            time.sleep(0.05)
            return item

        list(map_modules(work, range(10_000), 3, forks=True))
    """
    process = subprocess.Popen(script(body), start_new_session=True, stderr=subprocess.PIPE, text=True)
    _until(lambda: len(list(tmp_path.iterdir())) == 3)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    told = process.communicate(timeout=30)[1]
    assert told.count("Traceback") == (number == signal.SIGINT)  # of one process alone
    _until(lambda: not any(Path(f"/proc/{seen.name}").exists() for seen in tmp_path.iterdir()))


def _until(condition: object, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)
