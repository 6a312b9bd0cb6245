"""`mgen convert`: official checkpoints → mgen folders."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mgen.cli.parser import make_parser
from mgen.utils.errors import MgenError

if TYPE_CHECKING:
    from mgen.generators import Generator
    from mgen.pipelines.pipeline import MaskedPipeline
    from mgen.tokenizers import QuantizedKL
    from mgen.utils.config import Settings
    from mgen.utils.modeling import Model

EXAMPLES = """  mgen convert maskgit-vqgan vqgan_jax_strongaug.ckpt --out models/vqgan
  mgen convert maskgit nnet_ema.pth --tokenizer vqgan_jax_strongaug.ckpt --recipe autonat-l-imagenet256 --out models/autonat
  mgen convert maskgit-jax maskgit_imagenet256_checkpoint --tokenizer tokenizer_imagenet256_checkpoint --out models/maskgit
  mgen convert mage mage-vitb-1600.pth --recipe mage-b-imagenet256 --out models/mage-b       its tokenizer is in the file
  mgen convert halton ImageNet_384_large.pth --tokenizer vq_ds16_c2i.pt --recipe halton-large-imagenet384 --out models/halton
  mgen convert kl16 kl16.ckpt --out models/kl16
  mgen convert mar checkpoint-last.pth --tokenizer kl16.ckpt --recipe mar-b-imagenet256 --out models/mar-b
  mgen convert mar checkpoint-last.pth --raw --out models/mar-b-raw          the weights without EMA
  mgen convert diffusers-vae sd-vae-ft-mse/ --out models/sd-vae image_size=256 patch=2
  mgen convert quantize models/kl16 --out models/kl16-64 levels=64 low=-5 high=5 channel_order=published       for TokenBridge
  mgen convert quantize runs/kl/model --out models/kl-100 levels=100 form=clean low=-4.6 high=4.6 channel_order=[2,0,1,3]
  mgen convert shuffle runs/fmnist-maskgit/model --out models/windows side=2      for Token-Shuffle, to be trained on with init:
  mgen convert pipeline runs/mine/model --tokenizer models/vqgan --out models/mine       join saved parts
  mgen convert maskgit my.pth --out models/mine trunk.heads=12        what shapes cannot tell, where it differs from the published model

With --tokenizer (or one in the same file) the result is a pipeline that `mgen sample --model DIR` takes; without, the model alone.
The levels of `quantize` are compared by mgen eval … --levels, its channel_order is printed by mgen cache … --measure-order.
Torch files are read as plain tensors only: a file that holds other Python objects raises an error."""
OWN = """  pipeline       join a saved generator with a tokenizer
  shuffle        a saved generator (or pipeline) with windows of tokens, as the start of a fine-tuning
  quantize       put levels to the latents of a KL tokenizer (folder, name, or official file): ids for every channel"""


def command(argv: Sequence[str] | None = None) -> int:
    from mgen.convert.convert import FORMATS

    formats = "\n".join(f"  {name:<14} {layout.about}" for name, layout in FORMATS.items())
    parser = make_parser(
        "convert", f"Turn an official checkpoint into mgen's format.\n\nformats:\n{formats}\n{OWN}", EXAMPLES
    )
    option = parser.add_argument
    option("format", metavar="FORMAT", help=", ".join([*FORMATS, "pipeline", "quantize", "shuffle"]))
    option(
        "file",
        metavar="FILE",
        help="the official file; for `pipeline`, `quantize` and `shuffle`, a saved generator or tokenizer",
    )
    option(
        "settings",
        nargs="*",
        metavar="key=value",
        help="what the shapes cannot tell, such as trunk.heads=12 or side=24",
    )
    option("--out", required=True, metavar="DIR")
    option("--tokenizer", metavar="FILE|DIR", help="official tokenizer file or converted folder: makes a pipeline")
    option("--raw", action="store_true", help="take the weights without EMA, where the file holds both")
    option("--recipe", metavar="NAME|FILE", help="recipe whose sampler the pipeline gets")
    args = parser.parse_intermixed_args(argv)

    from mgen.utils.files import atomic_folder, check_writable

    out = Path(args.out)
    check_writable(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not (out / "conversion.txt").is_file():
        raise MgenError(f"{out} exists and is no converted model: choose another --out")
    product, report, names = converted(args)
    with atomic_folder(out) as folder:
        product.save_pretrained(folder)
        (folder / "conversion.txt").write_text(f"{report}\n\n{names}\n")
    print(report)
    print(out)
    return 0


def converted(args: Namespace) -> "tuple[Model | MaskedPipeline, str, str]":
    """What the options ask for: a network or a pipeline, the report, and the table of weight names."""
    from mgen.convert import convert
    from mgen.convert.convert import FORMATS
    from mgen.utils.config import apply_overrides

    settings, tokenizer, names = apply_overrides({}, args.settings), args.tokenizer, ""
    if args.format == "pipeline":
        product: Model | MaskedPipeline = saved_generator(args.file)
        report = f"{type(product).__name__} from {args.file}"
        if not tokenizer or settings:
            raise MgenError("pipeline joins a saved generator with --tokenizer, and takes no settings")
    elif args.format == "quantize":
        product, report = quantized(args.file, settings)
    elif args.format == "shuffle":
        product, report = windowed(args.file, settings)
    else:
        conversion = convert(args.format, args.file, raw=args.raw, **settings)
        product, report, names = conversion.model, conversion.report(), conversion.names()
        inside = FORMATS[args.format].tokenizer_inside
        if inside and any(name.startswith(inside) for name in conversion.ignored):
            tokenizer = tokenizer or args.file
    if args.recipe and not tokenizer:
        raise MgenError("--recipe makes a pipeline and needs --tokenizer too")
    if tokenizer:
        product, more, more_names = pipeline(product, tokenizer, args.recipe)
        report, names = report + more, names + more_names
    return product, report, names


def saved_generator(folder: str) -> "Model":
    """The generator of a folder that mgen train or mgen convert wrote."""
    from mgen.utils.modeling import load_saved

    if not (Path(folder) / "config.json").is_file():
        raise MgenError(f"no saved generator in {folder} (config.json is missing)")
    return load_saved(folder)


def quantized(source: str, settings: "Settings") -> "tuple[QuantizedKL, str]":
    """The KL tokenizer of `source` with levels (folder, name of a model, or official file), and the report."""
    from mgen.convert import convert
    from mgen.nn.levels import PUBLISHED_ORDER, best_range
    from mgen.pipelines.pipeline import load_tokenizer
    from mgen.tokenizers import KLTokenizer, QuantizedKL
    from mgen.utils.modeling import check_keys, constructor_keys

    check_keys(settings, constructor_keys(QuantizedKL) - {"kl", "in_channels"}, "")
    found: object = convert("kl16", source).model if Path(source).is_file() else load_tokenizer(source)
    found = getattr(found, "continuous", found)
    if not isinstance(found, KLTokenizer):
        raise MgenError(f"{source} holds a {type(found).__name__}: quantize takes a KL tokenizer")
    try:
        if (order := settings.get("channel_order")) is not None:
            settings["channel_order"] = PUBLISHED_ORDER if order == "published" else tuple(order)
        made = QuantizedKL.wrap(found, **settings)
    except TypeError as error:
        raise MgenError(f"settings {settings} do not fit QuantizedKL: {error}") from error
    spec, c = made.spec, made.config
    best = best_range(c.levels, span=c.span, form=c.form)
    return made, (
        f"QuantizedKL of {source}: {spec.sizes()}, {spec.levels}\n"
        f"  note: for latents of unit variance these levels err least in [{-best:.2f}, {best:.2f}]; measure others with mgen eval --levels"
    )


def windowed(source: str, settings: "Settings") -> "tuple[Generator, str]":
    """The generator of `source` (its folder, or that of a pipeline) with windows of tokens, and the report."""
    from mgen.convert.shuffle import shuffled

    inside = Path(source) / "generator"
    found = saved_generator(str(inside) if inside.is_dir() else source)
    try:
        made, share = shuffled(found, **settings)
    except TypeError as error:
        raise MgenError(f"settings {settings} do not fit: give side=2, and unit=window or token, blocks=N") from error
    return made, (
        f"{source} with windows of {made.config['windows']['side']}×{made.config['windows']['side']}: {made.units.sizes()}\n"
        f"  note: its pair keeps {share:.1%} of the variance of the embeddings; train it on: mgen train --config … init=THIS"
    )


def pipeline(generator: "Model", tokenizer: str, recipe: str | None) -> "tuple[MaskedPipeline, str, str]":
    """A pipeline of a generator with a tokenizer (official file or folder), and the lines to add to report and names."""
    from mgen.convert import convert
    from mgen.convert.convert import tokenizer_format
    from mgen.convert.tokenbridge import quantized_for
    from mgen.generators import Cascade, Generator
    from mgen.pipelines.pipeline import MaskedPipeline, load_tokenizer
    from mgen.samplers import ParallelSampler
    from mgen.zoo.recipes import recipe_settings

    if not isinstance(generator, Generator | Cascade):
        raise MgenError("--tokenizer is for generators: the converted file is a tokenizer itself")
    report = names = ""
    if Path(tokenizer).is_file():
        converted = convert(tokenizer_format(generator), tokenizer)
        made, report, names = converted.model, "\n" + converted.report(), "\n" + converted.names()
    else:
        made = load_tokenizer(tokenizer)
    made = quantized_for(generator, made)
    # The convolutions serve any size; this generator's grid says which.
    made.register_to_config(image_size=made.factor * generator.tokens.side)
    sampler = ParallelSampler.suited(generator, *(recipe_settings(recipe) if recipe else ()))
    sampler.check(generator)
    return MaskedPipeline(tokenizer=made, generator=generator, sampler=sampler), report, names
