"""The commands, a file for each step of the work."""
