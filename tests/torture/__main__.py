"""All of the torture: ``python -m tests.torture`` tells what was injected, survived and lost, and fails if any is lost.

Its parts run beside each other, each in processes of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

from tests.torture.parts import NETWORKS, PARTS, run
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
        for number in range(NETWORKS if part == "network" else 1)
    ]
    outcomes: list[Outcome] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(jobs), mp_context=context, max_tasks_per_child=1) as pool:
        for done in as_completed(pool.submit(run, *job) for job in jobs):
            outcomes += done.result()
            for outcome in done.result():
                if outcome.lost:
                    print(f"LOST {outcome.part}, {outcome.subject}, {outcome.fault}: {outcome.lost}", flush=True)
    print(table(outcomes))
    print(f"{time.monotonic() - started:.0f} s")
    return int(any(outcome.lost for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
