"""The command line program, run as ``python -m fixedpoint``."""

from fixedpoint.cli.main import main

if __name__ == "__main__":
    main()
