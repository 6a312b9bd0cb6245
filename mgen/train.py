"""`accelerate launch -m mgen.train --config FILE key=value …`: the same as `mgen train`."""

from mgen.cli.train import main

if __name__ == "__main__":
    raise SystemExit(main())
