"""`mgen demo`: a page in the browser."""

from collections.abc import Sequence

from mgen.cli import resumable
from mgen.cli.parser import make_parser, path, whole

EXAMPLES = """  mgen demo                                       the embedded models, on http://127.0.0.1:7860
  mgen demo --model runs/my-model/model --open    a model of your own first, in the browser of this machine
  mgen demo --model models/mar-b models/autonat-l --device cuda:1 --port 8000

On the page: choose a class and settings, watch the tokens appear, mask some and sample them again, compare two settings from the same
noise, download the settings as a recipe (mgen sample --recipe). Needs gradio: pip install "mgen[demo]". The page loads nothing from
other machines. Whoever reaches the port can use it: keep --host 127.0.0.1 unless you trust the network."""


def command(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("demo", "A page in the browser to sample, edit and compare, step by step.", EXAMPLES)
    option = parser.add_argument
    option(
        "--model",
        type=path,
        nargs="+",
        action="extend",
        metavar="NAME|PATH",
        help="models of `mgen zoo` or folders, offered beside the embedded ones; the first is shown first",
    )
    option("--device", default="auto", help="cpu, cuda, cuda:1, auto")
    option("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: every network of this machine")
    option("--port", type=whole(1, 65535), default=7860)
    option("--open", action="store_true", help="open the page in the browser of this machine")
    args = parser.parse_args(argv)

    from mgen.demo.server import check_gradio, check_host, listen, serve

    host = check_host(args.host)
    check_gradio()

    from mgen.demo.models import Models

    models = Models(args.model or (), device=args.device)
    with listen(host, args.port) as listening, resumable("the page is closed"):
        serve(models, listening, show=args.open)
    return 0
