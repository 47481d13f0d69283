"""`python -m hsim` is `hsim`."""

from hsim.cli import main

if __name__ == "__main__":
    main()
