"""`python -m mgen`: the same as the command `mgen`."""

from mgen.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
