"""`python -m repsim`, for launchers that start modules."""

from repsim.cli import main

if __name__ == "__main__":
    main()
