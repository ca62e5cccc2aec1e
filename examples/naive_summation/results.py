"""Looking things up in the measurements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = [
    "DOMAINS",
    "METHODS",
    "PAPER",
    "Subject",
    "against_baseline",
    "columns",
    "composites",
    "cosine",
    "damage",
    "named",
]

PAPER = {("math", "medicine"): -0.0910, ("finance", "math"): 0.0454, ("finance", "medicine"): 0.2756}
"""Change of perplexity of a sum against merged-data training that the abstract of arXiv 2508.11985 states."""
DOMAINS = ("math", "medicine", "finance")
METHODS = ("sum", "mean")

Subject = Mapping[str, Any]


def named(names: Iterable[str]) -> str:
    """Return domains in the order of the paper."""
    return " + ".join(sorted(names, key=DOMAINS.index))


def baseline(results: Mapping[str, Any], domains: Sequence[str]) -> str | None:
    """Return the name of the merged-data baseline of some domains, the one of the lowest seed."""
    found = [s for s in results["subjects"] if s["kind"] == "merged data" and set(s["domains"]) == set(domains)]
    return min(found, key=lambda subject: subject["seeds"])["name"] if found else None


def against_baseline(results: Mapping[str, Any], subject: Subject) -> Mapping[str, Any] | None:
    """Return how a composite compares with merged-data training, by domain and in the mean."""
    return subject["against"].get(baseline(results, subject["domains"]) or "")


def composites(results: Mapping[str, Any], kind: str, domains: Iterable[str]) -> list[Subject]:
    """Return the composites of one kind and set of domains that have a baseline, equal seeds first."""
    found = [s for s in results["subjects"] if s["kind"] == kind and set(s["domains"]) == set(domains)]
    found = [subject for subject in found if against_baseline(results, subject)]
    return sorted(found, key=lambda subject: (len(set(subject["seeds"])), subject["seeds"]))


def damage(results: Mapping[str, Any], subject: Subject) -> float:
    """Return the change of the mean perplexity against merged-data training."""
    compared = against_baseline(results, subject)
    assert compared is not None
    return float(compared["mean"]["answer"]["ratio"] - 1)


def cosine(results: Mapping[str, Any], subject: Subject, key: str = "rms_cosine") -> float:
    """Return what the geometry of a composite's parents says."""
    for entry in results["geometry"]:
        if (entry["domains"], entry["seeds"]) == (subject["domains"], subject["seeds"]):
            return float(entry[key])
    raise KeyError(subject["name"])


def columns(results: Mapping[str, Any], chosen: Sequence[Subject]) -> Any:
    """Return RMS cosine and change of each."""
    return (
        np.array([cosine(results, subject) for subject in chosen]),
        np.array([damage(results, subject) for subject in chosen]),
    )
