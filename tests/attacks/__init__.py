"""Executable attacks: each builds something hostile and names the refusal it must get."""
