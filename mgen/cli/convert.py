"""`mgen convert`: official checkpoints → mgen folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mgen.cli import make_parser
from mgen.errors import MgenError

EXAMPLES = """  mgen convert maskgit-vqgan vqgan_jax_strongaug.ckpt --out models/vqgan
  mgen convert maskgit nnet_ema.pth --tokenizer vqgan_jax_strongaug.ckpt --recipe autonat-l-imagenet256 --out models/autonat
  mgen convert maskgit-jax maskgit_imagenet256_checkpoint --tokenizer tokenizer_imagenet256_checkpoint --out models/maskgit
  mgen convert maskgit my.pth --out models/mine heads=12        what shapes cannot tell, where it differs from the published model

With --tokenizer the result is a pipeline that `mgen sample --model DIR` takes; without, the model alone.
Torch files are read as plain tensors only: a file that holds other Python objects is refused."""


def command(argv: Sequence[str] | None = None) -> int:
    from mgen.checkpoints.convert import FORMATS

    formats = "\n".join(f"  {name:<14} {layout.about}" for name, layout in FORMATS.items())
    parser = make_parser("convert", f"Turn an official checkpoint into mgen's format.\n\nformats:\n{formats}", EXAMPLES)
    parser.add_argument("format", metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("file", metavar="FILE", help="the official file")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="constructor arguments the shapes cannot tell")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument(
        "--tokenizer", metavar="FILE|DIR", help="official tokenizer file or converted folder: makes a pipeline"
    )
    parser.add_argument("--recipe", metavar="NAME|FILE", help="recipe whose sampler the pipeline gets")
    args = parser.parse_intermixed_args(argv)

    from mgen.checkpoints import convert
    from mgen.config import apply_overrides
    from mgen.files import atomic_folder

    conversion = convert(args.format, args.file, **apply_overrides({}, args.settings))
    report = conversion.report()
    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not is_ours(out):
        raise MgenError(f"{out} exists and is no converted model: choose another --out")
    product: Any = conversion.model
    if args.tokenizer or args.recipe:
        if not args.tokenizer:
            raise MgenError("--recipe makes a pipeline and needs --tokenizer too")
        product, more = pipeline(conversion.model, args.tokenizer, args.recipe)
        report += more
    with atomic_folder(out) as folder:
        product.save_pretrained(folder)
        (folder / "conversion.txt").write_text(report + "\n")
    print(report)
    print(out)
    return 0


def is_ours(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "model_index.json").is_file()


def pipeline(generator: Any, tokenizer: str, recipe: str | None) -> tuple[Any, str]:
    """A pipeline of the converted generator with a tokenizer (official file or folder), and the report's lines on it."""
    from mgen.checkpoints import convert
    from mgen.cli.sample import find_recipe
    from mgen.config import read_config
    from mgen.pipeline import MaskedPipeline, load_tokenizer
    from mgen.samplers import ParallelSampler

    if not hasattr(generator, "context"):
        raise MgenError("--tokenizer is for generators: the converted file is a tokenizer itself")
    report = ""
    if Path(tokenizer).is_file():
        converted = convert("maskgit-vqgan", tokenizer)
        made, report = converted.model, "\n" + converted.report()
        # The convolutions serve any size; this generator's grid says which.
        made.register_to_config(image_size=made.factor * generator.config.side)
    else:
        made = load_tokenizer(tokenizer)
    settings = read_config(find_recipe(recipe)).get("sampler", {}) if recipe else {}
    return MaskedPipeline(tokenizer=made, generator=generator, sampler=ParallelSampler(**settings)), report
