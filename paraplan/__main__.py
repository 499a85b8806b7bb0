"""``python -m paraplan``."""

from paraplan.cli import main

if __name__ == "__main__":
    main()
