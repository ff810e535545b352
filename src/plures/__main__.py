"""`python -m plures` is `plures`."""

from plures.cli import main

if __name__ == "__main__":
    main()
