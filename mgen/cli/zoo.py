"""`mgen zoo`: which models there are."""

import json
from collections.abc import Sequence

from mgen.cli import make_parser

EXAMPLES = """  mgen zoo
  mgen zoo --verbose        with how to get the published ones
  mgen zoo --json"""


def command(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "zoo", "List the models inside the package and the published ones that mgen can run.", EXAMPLES
    )
    parser.add_argument(
        "--verbose", action="store_true", help="also where to get published checkpoints and how to convert them"
    )
    parser.add_argument("--json", action="store_true", help="everything, machine-readable")
    args = parser.parse_args(argv)

    from mgen.zoo import DEFAULT, embedded_entries, recipe_entries

    inside, recipes = embedded_entries(), recipe_entries()
    published = [e for e in recipes if "published" in e.facts]
    if args.json:
        rows = [{"name": e.name, "folder": str(e.folder) if e.folder else None, **e.facts} for e in inside + recipes]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    print("inside the package:")
    for e in inside:
        default = "  (default)" if e.name == DEFAULT else ""
        print(f"  {e.name:<24} {e.facts.get('about', '')}{default}")
    print("published, to be downloaded and converted (recipes):")
    wide = max(len(e.name) for e in recipes)
    print(f"  {'name':<{wide}} {'parameters':>10} {'steps':>5}  published figure")
    for e in [*published, *(e for e in recipes if e not in published)]:
        facts = e.facts
        figure = facts.get("published", "none")
        print(f"  {e.name:<{wide}} {facts['parameters']:>10} {facts['sampler']['steps']:>5}  {figure}")
        if args.verbose:
            print(f"      get: {' '.join(facts['get'].split())}")
            print(f"      run: {' '.join(facts['run'].split())}")
    return 0
