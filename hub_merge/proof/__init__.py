"""Proof that a file on disk is the merge that was asked for.

The written composite is opened again and its delta compared, module by module, with what the recipe asks for: for
methods that are a linear combination of deltas with the combination itself, straight from the parents' factors; for
others with the method run once more. Differences are formed factor by factor, ``X - Y = (B_x - B_y) A_x + B_y (A_x -
A_y)``, so that nothing cancels and rounding of one part in 10⁸ shows as such.
"""

from hub_merge.proof.deltas import difference
from hub_merge.proof.proving import prove
from hub_merge.proof.results import Check, Loss, Proof, Retention

__all__ = ["Check", "Loss", "Proof", "Retention", "difference", "prove"]
