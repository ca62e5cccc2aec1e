"""What may happen to a run: it is killed, its disk fills, the network fails, others run beside it, a crowd comes.

``python -m tests.torture`` does all of it and prints what was lost; ``test_torture.py`` does a little of each.
"""
