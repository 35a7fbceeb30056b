"""``python -m coxcompile``: the same as ``coxmoe``."""

from coxcompile.cli import main

if __name__ == "__main__":
    main()
