"""`python -m tools.ablations`: the table of ablations, printed and written as JSON."""

import argparse
import sys
from collections.abc import Sequence

from mgen.cli import run
from mgen.cli.bench import add_model, chosen_pipeline
from mgen.cli.parser import Formatter
from mgen.cli.sample import chosen_sampler

EXAMPLES = """examples:
  python -m tools.ablations --model fmnist-mar --batch-size 8 --threads 1
  python -m tools.ablations --arch mar-b --recipe mar-b-imagenet256 --steps 64 --batch-size 2
  python -m tools.ablations --arch mar-b --recipe lazymar-mar-b-imagenet256 --steps 16 --head-steps 10 --batch-size 1 --threads 1
  python -m tools.ablations --arch tokenbridge-l --recipe tokenbridge-l-imagenet256 --steps 4 --batch-size 2 --threads 2
  python -m tools.ablations --arch himar-b --recipe himar-b-imagenet256 --set first_stage.steps=8 --steps 2 --head-steps 10 --batch-size 1
  python -m tools.ablations --arch llamagen-l --guidance 2 --batch-size 2 --threads 1
  python -m tools.ablations --arch rar-b --recipe rar-b-imagenet256 --batch-size 2 --threads 1
  python -m tools.ablations --arch titok-l32 --recipe titok-l32-imagenet256 --batch-size 4 --threads 1
  python -m tools.ablations --arch hita-b --guidance 2 --batch-size 1 --threads 1 --json ablations.json
  python -m tools.ablations --arch xar-b --recipe xar-b-imagenet256 --head-steps 8 --batch-size 1 --threads 1
  python -m tools.ablations --config fmnist-mar --dtype bf16        ends with the run in bf16 and its error"""


def command(argv: Sequence[str] | None = None) -> int:
    """Measure and print; see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.ablations",
        description="What each exact optimization of a generator gains over the plain form, and all of them in a complete run.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    add_model(parser)
    parser.set_defaults(tokenizer="none")
    parser.add_argument(
        "--repeats", type=int, default=3, help="timed runs of each form, at least 3; the fastest counts"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the rows to a file")
    args = parser.parse_args(argv)

    from mgen.utils.files import write_json
    from tools.ablations import ablations, check, format_table, prepare

    pipe = chosen_pipeline(args)
    check(pipe.transformer)
    sampler = chosen_sampler(pipe, args)
    if args.arch or args.config:
        sampler = prepare(pipe.transformer, sampler)
    repeats = max(3, args.repeats)
    rows = ablations(pipe.transformer, sampler, batch_size=args.batch_size, repeats=repeats, dtype=args.dtype)
    print(format_table(rows))
    if args.json:
        write_json(args.json, {"ablations": rows})
        print(args.json, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
