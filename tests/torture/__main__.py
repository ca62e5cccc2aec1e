"""All of the torture: ``python -m tests.torture`` tells what was injected, survived and lost, and fails if any is lost.

Its parts run beside each other, each in processes of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed

from tests.torture.parts import PARTS, SHARES, run
from tests.torture.tally import Outcome, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    started = time.monotonic()
    jobs = [
        (part, store, asked.seed, number)
        for part in asked.parts or PARTS
        for store in (("lfs", "xet") if part == "network" else ("lfs",))
        for number in range(SHARES.get(part, 1))
    ]
    outcomes: list[Outcome] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(jobs), mp_context=context, max_tasks_per_child=1) as pool:
        running = {pool.submit(run, *job): job for job in jobs}
        for done in as_completed(running):
            found = result_of(done, running[done])
            outcomes += found
            for outcome in found:
                if outcome.lost:
                    print(f"LOST {outcome.part}, {outcome.subject}, {outcome.fault}: {outcome.lost}", flush=True)
    print(table(outcomes))
    print(f"{time.monotonic() - started:.0f} s")
    return int(any(outcome.lost for outcome in outcomes))


def result_of(done: Future[list[Outcome]], job: tuple[str, str, int, int]) -> list[Outcome]:
    """Return what a part has found; one that broke down is lost as a whole."""
    part, store, _, number = job
    try:
        return done.result()
    except Exception as error:
        return [Outcome(part, "the whole part", f"{store} {number}", f"{type(error).__name__}: {error}")]


if __name__ == "__main__":
    sys.exit(main())
