"""Comparisons that the project rests on: ``make bench`` those with PEFT, ``clustering`` the one behind a default."""
