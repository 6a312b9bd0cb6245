"""`mgen report`: results of mgen eval, or logs of trainings, on one page."""

from collections.abc import Sequence
from pathlib import Path

from mgen.cli.parser import make_parser, path
from mgen.utils.errors import MgenError

EXAMPLES = """  mgen report eval-fmnist-maskgit                      one result, as report.html, report.md and report.json
  mgen report runs/steps-4 runs/steps-8 runs/steps-16 --out steps.html --title "MaskGIT over steps"
  mgen report eval-*/result.json --out all.html --allow-mixed      several protocols, one table each
  mgen report runs/fmnist-maskgit --against fmnist-maskgit         is my training normal? Its curves beside the shipped model's
  mgen report runs/a runs/b --out losses.html                      curves of trainings, without a comparison

Results share a table only if protocol, reference and, for distances, the number of images agree. The settings in which they differ
become columns. If one or two settings differ and one of them is numeric, the page also has curves over it (with matplotlib:
pip install 'mgen[plots]'). The page is one file that loads nothing from elsewhere.

A training is a folder that mgen train writes (its output, with metrics.jsonl); --against takes another one, or the name of a shipped
training: {names}."""


def command(argv: Sequence[str] | None = None) -> int:
    from mgen.zoo.trainings import find_training, is_training, shipped_trainings

    examples = EXAMPLES.format(names=", ".join(shipped_trainings()))
    parser = make_parser(
        "report", "Results of mgen eval, or logs of trainings, on one page: HTML, Markdown and JSON.", examples
    )
    parser.add_argument(
        "results",
        nargs="+",
        metavar="RESULT",
        type=path,
        help="a result.json, or a folder with one; or a folder of a training",
    )
    parser.add_argument(
        "--against",
        type=path,
        metavar="NAME|DIR",
        help="compare trainings with this one: whether loss, gradient norm and so on are in its range, and which settings differ",
    )
    parser.add_argument(
        "--out",
        default="report.html",
        metavar="FILE",
        type=path,
        help="the page; .md and .json files of the same name are written next to it",
    )
    parser.add_argument("--title", help="title of the page; default: what was measured")
    parser.add_argument(
        "--allow-mixed",
        action="store_true",
        help="allow results with different protocols, references or counts, in separate tables",
    )
    args = parser.parse_args(argv)
    out = Path(args.out)
    if out.suffix != ".html" or out.is_dir():
        raise MgenError(f"--out {args.out}: expected a file name such as report.html")

    from mgen.cli.early import check_there

    for name in args.results:
        if not args.against and not is_training(name):
            check_there("the result", name)

    from mgen.reports.write import write_page, write_trainings
    from mgen.utils.files import check_output

    for suffix in (".html", ".json"):  # the longest names
        check_output(out.with_suffix(suffix))
    if args.against or any(map(is_training, args.results)):
        other = (find_training(args.against, "--against"), Path(args.against).name) if args.against else None
        folders = [find_training(name) for name in args.results]
        if args.allow_mixed:
            raise MgenError("--allow-mixed is for results of mgen eval: leave it out")
        for file in write_trainings(folders, out, against=other, title=args.title):
            print(file)
        return 0
    for file in write_page(args.results, out, title=args.title, allow_mixed=args.allow_mixed):
        print(file)
    return 0
