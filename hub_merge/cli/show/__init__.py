"""How each result is printed, a file for each kind of result."""
