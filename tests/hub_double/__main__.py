"""Run the Hub double as a command: ``python -m tests.hub_double --port 7000 [--seed-folder DIR]``."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from . import HubDouble


def seed(hub: HubDouble, folder: Path) -> None:
    """Make every ``folder/owner/name`` a repository."""
    for repo in sorted(path for path in folder.glob("*/*") if path.is_dir()):
        files = {path.relative_to(repo).as_posix(): path.read_bytes() for path in repo.rglob("*") if path.is_file()}
        hub.add_repo(repo.relative_to(folder).as_posix(), files)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hub_double", description=__doc__)
    parser.add_argument("--port", type=int, default=7000)
    parser.add_argument("--seed-folder", type=Path, help="folder whose OWNER/NAME folders become repositories")
    parser.add_argument("--no-xet", action="store_true", help="serve large files by git LFS only")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with HubDouble(port=options.port, xet=not options.no_xet) as hub:
        if options.seed_folder:
            seed(hub, options.seed_folder)
        print(f"export HF_ENDPOINT={hub.endpoint} HF_TOKEN={hub.token('alice')}", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print("stopped")


if __name__ == "__main__":
    main()
