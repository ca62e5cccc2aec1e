"""Merge the three adapters of the example zoo, offline: check, score, sum, LEGO, proof, card.

Every step is a command you can type yourself; this script only runs them one after the other and says what to look at.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ZOO = [f"examples/zoo/{name}" for name in ("math", "medicine", "finance")]

STEPS: list[tuple[str, list[str]]] = [
    ("Do they fit together? Same base, same shapes, sound numbers.", ["check", *ZOO]),
    (
        "How much do their deltas overlap? 0 is orthogonal. Here the cosine is far above chance, and column A_ROWS "
        "says why: the three trainings started from one seed.",
        ["score", *ZOO, "--plot", "demo/orthogonality.png"],
    ),
    (
        "The exact sum of the deltas. Its rank is 4 + 4 + 4; KEPT above 1 is what the others add along each adapter.",
        ["merge", *ZOO, "-o", "demo/sum", "--plot", "--force"],
    ),
    (
        "LoRA-LEGO: k-means over all rank-one units gives a composite as small as one adapter. The distance to the sum "
        "is what that costs.",
        ["merge", *ZOO, "-o", "demo/lego", "--method", "lego", "--rank", "4", "--force"],
    ),
    (
        "The best rank-4 approximation of the sum, to compare: no update of rank 4 comes closer.",
        ["merge", *ZOO, "-o", "demo/svd", "--method", "svd", "--rank", "4", "--force"],
    ),
    (
        "Does the file on disk really hold that merge? Read it again and compare with its parents.",
        ["verify", "demo/lego", *ZOO],
    ),
]

RESULTS = [
    ("demo/orthogonality.png", "the picture of the scores"),
    ("demo/sum/", "the exact sum: PeftModel.from_pretrained(base, 'demo/sum') loads it"),
    ("demo/lego/", "the LEGO composite, rank 4"),
    ("demo/svd/", "the best rank-4 approximation of the sum"),
    ("demo/sum/README.md", "its model card: lineage, recipe, scores, proof, licence"),
    ("demo/sum/hub_merge.json", "its record: every input by hash, every choice, the proof"),
    ("demo/sum/recipe.yaml", "the recipe that makes it again"),
]


def main() -> None:
    """Run each step and stop at the first that fails."""
    os.chdir(ROOT)
    Path("demo").mkdir(exist_ok=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    for number, (why, command) in enumerate(STEPS, start=1):
        print(f"\n[{number}/{len(STEPS)}] {why}\n$ hub-merge {' '.join(command)}", flush=True)
        done = subprocess.run([sys.executable, "-m", "hub_merge", *command], env=environment, check=False)
        if done.returncode:
            sys.exit(done.returncode)
    print("\nWhat you have now:")
    for path, what in RESULTS:
        print(f"  {path:26} {what}")
    print("\nPublish one: hub-merge push demo/sum YOUR_NAME/my-composite --private")


if __name__ == "__main__":
    main()
