"""Whole-process comparisons with PEFT; ``make bench`` runs them."""
