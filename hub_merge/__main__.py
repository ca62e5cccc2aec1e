"""``python -m hub_merge``: the command line."""

from hub_merge.cli import main

if __name__ == "__main__":
    main()
