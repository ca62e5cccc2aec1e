"""What was found, in sentences that follow from the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prediction import pearson, points, seed_effect, spearman
from results import DOMAINS, PAPER, columns, composites, damage, named

__all__ = ["verdicts"]


def verdicts(results: Mapping[str, Any]) -> str:
    """Return, in sentences that follow from the numbers, what was found."""
    firsts = {domains: composites(results, "sum", domains)[0] for domains in PAPER}
    ours = {domains: damage(results, subject) for domains, subject in firsts.items()}
    lines = [
        order_of_pairs(ours),
        signs(ours),
        triple(results, ours),
        seeds(results),
        weights(results),
        correlation(results),
    ]
    return "\n".join(f"- {line}" for line in lines)


def order_of_pairs(ours: Mapping[tuple[str, ...], float]) -> str:
    """Compare the order of the pairs with the paper's."""
    by_loss, stated = sorted(ours, key=ours.__getitem__), sorted(PAPER, key=PAPER.__getitem__)
    listed = " < ".join(named(domains) for domains in by_loss)
    if by_loss == stated:
        return f"The order of the pairs by what the sum loses agrees with the paper: {listed}."
    return (
        f"The order of the pairs does not agree with the paper: {listed} here, {' < '.join(map(named, stated))} there."
    )


def signs(ours: Mapping[tuple[str, ...], float]) -> str:
    """Compare the signs of the changes with the paper's."""
    better = [named(domains) for domains, value in ours.items() if value < 0]
    if better:
        return f"The sum is better than merged-data training for {', '.join(better)}."
    return (
        "No sum is better than merged-data training; in the paper math + medicine is. The changes here are "
        f"{', '.join(f'{100 * value:+.1f} % ({named(domains)})' for domains, value in ours.items())}."
    )


def triple(results: Mapping[str, Any], ours: Mapping[tuple[str, ...], float]) -> str:
    """Say what the sum of all three loses."""
    found = composites(results, "sum", DOMAINS)
    if not found:
        return "The sum of all three was not measured."
    value = damage(results, found[0])
    worst = "more than any pair" if value > max(ours.values()) else "no more than the worst pair"
    return f"The sum of all three loses {100 * value:.1f} %, {worst}; the paper reports interference there too."


def seeds(results: Mapping[str, Any]) -> str:
    """Say what another initialisation changes."""
    found = seed_effect(points(results))
    if not found:
        return "No pair was measured with one and with two starts."
    lower = [entry["cosine_one_start"] / entry["cosine_other"] for entry in found]
    less = [100 * ((1 + entry["other"]) / (1 + entry["one_start"]) - 1) for entry in found]
    return (
        f"Another start of lora_A makes the RMS cosine {min(lower):.1f} to {max(lower):.1f} times smaller and moves "
        f"the perplexity of the sum by {min(less):+.1f} to {max(less):+.1f} %: most of the cosine is the seed, not the "
        "tasks."
    )


def weights(results: Mapping[str, Any]) -> str:
    """Say what the weight of a merge changes."""
    means, sums = ([s for d in PAPER for s in composites(results, kind, d)] for kind in ("mean", "sum"))
    named_means = {(*subject["domains"], *subject["seeds"]): damage(results, subject) for subject in means}
    shared = [
        (damage(results, subject), named_means[key])
        for subject in sums
        if (key := (*subject["domains"], *subject["seeds"])) in named_means
    ]
    better = sum(mean < whole for whole, mean in shared)
    return (
        f"The mean loses less than the sum in {better} of {len(shared)} pairs of adapters, by up to "
        f"{100 * max(whole - mean for whole, mean in shared):.1f} points: the weight of a merge is worth a measurement."
    )


def correlation(results: Mapping[str, Any]) -> str:
    """Say how the change against merged-data training goes with RMS cosine."""
    sums = [subject for domains in PAPER for subject in composites(results, "sum", domains)]
    alike = [subject for subject in sums if len(set(subject["seeds"])) == 1 and subject["seeds"][0] == 0]
    texts = []
    for chosen, words in ((alike, "over the three pairs of one seed"), (sums, "over all pairs and seeds")):
        x, y = columns(results, chosen)
        texts.append(f"Pearson {pearson(x, y):+.2f}, Spearman {spearman(x, y):+.2f} {words} (n = {len(chosen)})")
    return (
        f"Change against merged data and RMS cosine: {'; '.join(texts)}. The paper reports a positive, about linear "
        "relation. RMS cosine is a score of orthogonality, not a prediction of quality."
    )
