"""Runs that are killed, and disks that are full, at any point: all or nothing is there, and the next run ends it."""

from __future__ import annotations

import math
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.torture.operations import Operation, State, at_hand, litter
from tests.torture.tally import Outcome
from tests.torture.world import Ended, World, copy

KILLED = -9
SMALL_DISK = "3m"


class Trial:
    """One command: how it runs undisturbed, and how it fares otherwise."""

    def __init__(self, world: World, operation: Operation) -> None:
        self.world, self.operation = world, operation
        self.prepared = world.home()
        operation.prepare(world, self.prepared)
        home = self.fresh()
        self.before = operation.state(world, home)
        started = time.monotonic()
        done = self.run(home)
        self.seconds = time.monotonic() - started
        assert done.code == 0 and done.steps, done.err
        self.steps = done.steps
        self.after = operation.state(world, home)
        assert self.after != self.before and not litter(home), litter(home)

    def fresh(self) -> Path:
        """Return a new home as it is before the command."""
        home = self.world.home()
        copy(self.prepared, home)
        return home

    def run(self, home: Path, **fate: float | int) -> Ended:
        return self.world.run(home, *self.operation.command(home), **fate)

    def problem(self, home: Path) -> str:
        """Return what is wrong with what is there now; empty if nothing is."""
        state = self.operation.state(self.world, home)
        if self.operation.whole(state, self.before, self.after):
            return ""
        return f"neither old nor new: {described(state, self.before, self.after)}"

    def finish(self, home: Path) -> str:
        """Run the command again, undisturbed; return what is wrong then."""
        done = self.run(home)
        state = self.operation.state(self.world, home)
        if done.code != 0 and not (self.operation.once in done.err and state == self.after):
            return f"the next run failed: {done.err.strip()}"
        if state != self.after:
            return f"the next run made something else: {described(state, self.before, self.after)}"
        if left := litter(home):
            return f"left behind: {', '.join(left)}"
        return self.operation.complaint(home)


def described(state: State, before: State, after: State) -> str:
    kinds = {
        name: "old" if before.get(name) == content else "new" if after.get(name) == content else "broken"
        for name, content in state.items()
    }
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "nothing"


ALL = slice(None)


def killed(world: World, rounds: int, seed: int, which: slice = ALL) -> Iterator[Outcome]:
    """Kill each command at every step in turn, or at ``rounds`` of its steps, and as often at random times between."""
    rng = random.Random(seed)
    tried, skipped = at_hand("kill", which)
    yield from skipped
    for operation in tried:
        trial = Trial(world, operation)
        steps, most = range(1, trial.steps + 1), math.ceil(rounds * operation.share)
        for step in sorted(rng.sample(steps, min(most, len(steps)))):
            yield survived(trial, f"killed at step {step}", kill_at=step)
        for _ in range(most // 4):
            seconds = rng.uniform(0.02, max(0.5, trial.seconds))
            yield survived(trial, f"killed after {seconds:.3f} s", kill_after=seconds)


def survived(trial: Trial, fault: str, **fate: float | int) -> Outcome:
    home = trial.fresh()
    done = trial.run(home, **fate)
    lost = "" if done.code in (KILLED, 0) else f"it ended with {done.code}: {done.err.strip()}"
    lost = lost or trial.problem(home) or trial.finish(home)
    return Outcome("kill", trial.operation.name, fault, lost)


def full_disks(world: World, rounds: int, seed: int, which: slice = ALL) -> Iterator[Outcome]:
    """Let each command meet a full disk at ``rounds`` places: a small disk if one may be mounted, else a short file."""
    rng = random.Random(seed)
    tried, skipped = at_hand("full disk", which)
    yield from skipped
    for operation in tried:
        trial = Trial(world, operation)
        for _ in range(math.ceil(rounds * operation.share)):
            home = trial.fresh()
            with small_disk(home) as mounted:
                if mounted:
                    copy(trial.prepared, home)
                    yield outcome_of(trial, home, *on_full_disk(trial, home, rng))
                else:
                    size = rng.randrange(20_000)
                    yield outcome_of(trial, home, f"files end at {size}", trial.run(home, largest_file=size))


def on_full_disk(trial: Trial, home: Path, rng: random.Random) -> tuple[str, Ended]:
    import shutil

    ballast, left = home / "ballast", rng.randrange(0, 100_000, 4096)
    ballast.write_bytes(bytes(max(0, shutil.disk_usage(home).free - left)))
    done = trial.run(home)
    ballast.unlink()
    return f"{left} bytes left", done


def outcome_of(trial: Trial, home: Path, fault: str, done: Ended) -> Outcome:
    """Judge a run that met a full disk: it says so, and cleans up itself."""
    lost = ""
    if done.code not in (0, 1) or "Unexpected" in done.err or "Traceback" in done.err:
        lost = f"it ended with {done.code}: {done.err.strip()}"
    elif done.code == 1 and not any(word in done.err for word in ("space", "large", "could not be stored")):
        lost = f"it does not tell why: {done.err.strip()}"
    elif left := [name for name in litter(home) if not name.endswith(".incomplete")]:
        lost = f"left behind: {', '.join(left)}"
    return Outcome("full disk", trial.operation.name, fault, lost or trial.problem(home) or trial.finish(home))


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small disk at ``folder``, where that is allowed, and tell whether it was."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "none", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)
