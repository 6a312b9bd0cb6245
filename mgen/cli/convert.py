"""`mgen convert`: official checkpoints → mgen folders."""

import os
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mgen.cli.parser import make_parser, path
from mgen.utils.errors import MgenError, check_choice, shown

if TYPE_CHECKING:
    from mgen.data.record import DataRecord
    from mgen.generators import Generator
    from mgen.pipelines.pipeline import MaskedPipeline
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
FILE may be a folder with diffusion_pytorch_model or model as .safetensors, .bin, .fp16.safetensors or shards with their index.json.
What training puts around weights is removed and told: {'ema': …}, {'state_dict': …}, {'module': …} and the like, and module. and
_orig_mod. in names. Torch files are read as plain tensors only: a file that holds other Python objects raises an error, and so does
a tensor that is no weight (sparse, quantized, complex, NaN, beyond fp32)."""
# What a conversion leaves in its folder.
WRITTEN = re.compile(
    r"conversion\.txt|config\.json|model_index\.json|pipeline\.py|diffusion_pytorch_model.*|trained_on\.json|generator|transformer|tokenizer|"
    r"sampler|README\.md"
)
MOST_NAMES = 2**20  # bytes of a file of class names
OWN_FORMATS = ("pipeline", "quantize", "shuffle")
OWN = """  pipeline       join a saved generator with a tokenizer
  shuffle        a saved generator (or pipeline) with windows of tokens, as the start of a fine-tuning
  quantize       put levels to the latents of a KL tokenizer (folder, name, or official file): ids for every channel"""


def command(argv: Sequence[str] | None = None) -> int:
    from mgen.zoo.formats import ABOUT

    formats = "\n".join(f"  {name:<14} {about}" for name, about in ABOUT.items())
    parser = make_parser(
        "convert", f"Turn an official checkpoint into mgen's format.\n\nformats:\n{formats}\n{OWN}", EXAMPLES
    )
    option = parser.add_argument
    option("format", metavar="FORMAT", help=", ".join([*ABOUT, *OWN_FORMATS]))
    option(
        "file",
        metavar="FILE",
        type=path,
        help="the official file, or its folder; for `pipeline`, `quantize` and `shuffle`, a saved generator or tokenizer",
    )
    option(
        "settings",
        nargs="*",
        metavar="key=value",
        help="what the shapes cannot tell, such as trunk.heads=12 or side=24",
    )
    option("--out", required=True, metavar="DIR", type=path)
    option(
        "--tokenizer",
        metavar="FILE|DIR",
        type=path,
        help="official tokenizer file or converted folder: makes a pipeline",
    )
    option("--raw", action="store_true", help="take the weights without EMA, where the file holds both")
    option("--recipe", metavar="NAME|FILE", type=path, help="recipe whose sampler the pipeline gets")
    option(
        "--class-names",
        metavar="FILE|NAME",
        type=path,
        help="names of the pipeline's classes: a text file with a line for each, by id; imagenet; or none; default: ImageNet's for the "
        "published models of it, else those of the pipeline that FILE is a part of",
    )
    args = parser.parse_intermixed_args(argv)
    check_names(args)

    from mgen.utils.files import atomic_folder
    from mgen.utils.limits import check_disk

    out = Path(args.out)
    check_out(out, [name for name in (args.file, args.tokenizer, args.recipe) if name])
    product, report, names = converted(args)
    check_disk(out, size_of(product), f"the converted model in {out}")
    with atomic_folder(out) as folder:
        product.save_pretrained(folder)
        (folder / "conversion.txt").write_text(f"{report}\n\n{names}\n", encoding="utf-8", errors="backslashreplace")
    print(report)
    print(out)
    return 0


def check_names(args: Namespace) -> None:
    """Raise MgenError for a format, a file or a recipe that there is not, before the heavy imports."""
    from mgen.cli.early import check_recipe, check_there
    from mgen.utils.config import apply_overrides
    from mgen.zoo import embedded_entries
    from mgen.zoo.formats import ABOUT

    check_choice("format", args.format, [*ABOUT, *OWN_FORMATS])
    apply_overrides({}, args.settings)
    own = [entry.name for entry in embedded_entries()]
    if args.file not in own:
        check_there("FILE", args.file, "checkpoint" if args.format in ABOUT else "file or folder")
    if args.tokenizer is not None and args.tokenizer not in own:
        check_there("--tokenizer", args.tokenizer)
    if args.recipe:
        check_recipe(args.recipe)
    given_names(args.class_names)


def check_out(out: Path, sources: Sequence[str]) -> None:
    """Raise MgenError unless `out`, which will be replaced, can be written and holds nothing but an earlier conversion."""
    from mgen.utils.files import check_writable

    check_writable(out)
    check_writable(Path(os.path.realpath(out)).parent)
    if os.path.realpath(out) == os.path.realpath("."):
        raise MgenError(f"--out {out} is the working directory: give another folder for the model")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / "conversion.txt").is_file():
        raise MgenError(f"{out} exists and is no converted model: choose another --out")
    foreign = sorted(entry.name for entry in out.iterdir() if not WRITTEN.fullmatch(entry.name))
    if foreign:
        raise MgenError(f"{out} would be replaced, and holds {shown(foreign[0])} too: move it, or choose another --out")
    for source in sources:
        if (
            Path(source).exists() and Path(os.path.realpath(out)) in Path(os.path.realpath(source)).parents
        ):  # itself may be replaced
            raise MgenError(f"{source} lies in --out {out}, which would be replaced: choose another --out")


def converted(args: Namespace) -> "tuple[Model | MaskedPipeline, str, str]":
    """What the options ask for: a network or a pipeline, the report, and the table of weight names."""
    from mgen.convert import convert
    from mgen.convert.formats import FORMATS
    from mgen.convert.quantize import quantized
    from mgen.pipelines.saved import find_record
    from mgen.utils.config import apply_overrides

    settings, tokenizer, names = apply_overrides({}, args.settings), args.tokenizer, ""
    if args.raw and args.format in ("pipeline", "quantize", "shuffle"):
        raise MgenError(f"--raw is for official files with an EMA: {args.format} takes what was saved, leave it out")
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
    if args.class_names and not tokenizer:
        raise MgenError("--class-names are a pipeline's, and need --tokenizer too")
    if tokenizer:
        # "pipeline" joins what was trained here, whose folder may say on what.
        data = find_record(args.file) if args.format == "pipeline" else None
        product, more, more_names = pipeline(product, tokenizer, args.recipe, data, layout=args.format)
        more += name_classes(product, args)
        report, names = report + more, names + more_names
    return product, report, names


def given_names(name: str | None) -> tuple[str, ...] | None:
    """What --class-names says: the lines of a file, ImageNet's names, or None; MgenError for a file that can't be that."""
    from mgen.utils.reading import read_text
    from mgen.zoo.imagenet import NAME, imagenet_names

    if name in (None, "none"):
        return None
    if name == NAME:
        return imagenet_names()
    lines = read_text(str(name), most=MOST_NAMES).rstrip("\n").split("\n")
    if empty := [i for i, line in enumerate(lines, 1) if not line.strip()]:
        raise MgenError(
            f"--class-names {name}: line {empty[0]} is empty: give each class one line, in the order of their ids"
        )
    if "\0" in "".join(lines):
        raise MgenError(f"--class-names {name} holds null characters: expected a text file")
    return tuple(line.strip() for line in lines)


def name_classes(pipe: "MaskedPipeline", args: Namespace) -> str:
    """Give a converted pipeline the names of its classes, see --class-names; returns the line of the report."""
    from mgen.generators.presets import model_name
    from mgen.pipelines.saved import INDEX, read_index
    from mgen.zoo.formats import ABOUT
    from mgen.zoo.imagenet import COUNT, NAME, imagenet_names
    from mgen.zoo.recipes import find_recipe, read_recipe

    net, about = pipe.transformer, "of ImageNet-1k; --class-names none leaves them out"
    if args.class_names is not None:
        names, about = given_names(args.class_names), f"of {args.class_names}"
        if names is not None and not net.conditional:
            raise MgenError(f"--class-names {args.class_names}: this model is unconditional and has no classes")
        if names is not None and len(names) != net.num_classes:
            raise MgenError(
                f"--class-names {args.class_names}: {len(names)} names, but the model has {net.num_classes} classes"
            )
    elif args.format in ABOUT:
        recipe = read_recipe(find_recipe(args.recipe)) if args.recipe else {}
        known = recipe.get("data") == NAME or model_name(net.config) is not None
        names = imagenet_names() if known and net.conditional and net.num_classes == COUNT else None
    else:
        whole = next((f for f in (Path(args.file), Path(args.file).parent) if (f / INDEX).is_file()), None)
        names, about = (None if whole is None else read_index(whole).class_names), f"of {whole}"
        names = names if names is not None and len(names) == net.num_classes and net.conditional else None
    if names is None:
        return ""
    pipe.register_to_config(class_names=names)
    return f"\nclass names {about}"


def size_of(product: "Model | MaskedPipeline") -> int:
    """Bytes of the weights, as they will be saved."""
    parts = [product.tokenizer, product.transformer] if hasattr(product, "sampler") else [product]
    return sum(tensor.nbytes for part in parts for tensor in part.state_dict().values())


def saved_generator(folder: str) -> "Model":
    """The generator of a folder that mgen train or mgen convert wrote."""
    from mgen.utils.modeling import load_saved

    if not (Path(folder) / "config.json").is_file():
        raise MgenError(f"no saved generator in {folder} (config.json is missing)")
    return load_saved(folder)


def windowed(source: str, settings: "Settings") -> "tuple[Generator, str]":
    """The generator of `source` (its folder, or that of a pipeline) with windows of tokens, and the report."""
    from mgen.convert.shuffle import shuffled
    from mgen.pipelines.saved import part_folder

    inside = part_folder(Path(source), "transformer")
    found = saved_generator(str(inside) if inside.is_dir() else source)
    made, share = shuffled(found, settings)
    return made, (
        f"{source} with windows of {made.config['windows']['side']}×{made.config['windows']['side']}: {made.units.sizes()}\n"
        f"  note: its pair keeps {share:.1%} of the variance of the embeddings; train it on: mgen train --config … init=THIS"
    )


def pipeline(
    generator: "Model",
    tokenizer: str,
    recipe: str | None,
    data: "DataRecord | None" = None,
    *,
    layout: str | None = None,
) -> "tuple[MaskedPipeline, str, str]":
    """A pipeline of a generator with a tokenizer (official file or folder), and the lines to add to report and names.

    Args:
        data: what the generator was trained on, if that is known. layout: the official format that it was read from.
    """
    from mgen.convert import convert
    from mgen.convert.formats import tokenizer_format
    from mgen.convert.readers.tokenbridge import quantized_for
    from mgen.generators import Cascade, Generator
    from mgen.pipelines.pipeline import MaskedPipeline
    from mgen.pipelines.saved import load_tokenizer
    from mgen.samplers import ParallelSampler
    from mgen.zoo.recipes import recipe_settings

    if not isinstance(generator, Generator | Cascade):
        raise MgenError("--tokenizer is for generators: the converted file is a tokenizer itself")
    report = names = ""
    if Path(tokenizer).is_file():
        converted = convert(tokenizer_format(generator, layout), tokenizer)
        made, report, names = converted.model, "\n" + converted.report(), "\n" + converted.names()
    else:
        made = load_tokenizer(tokenizer)
    made = quantized_for(generator, made)
    if generator.tokens.grid is not None:  # convolutions serve any size; this generator's grid says which
        made.register_to_config(image_size=made.side_for(generator.tokens))
    sampler = ParallelSampler.suited(generator, *(recipe_settings(recipe) if recipe else ()))
    sampler.check(generator)
    names_of = data.class_names if data is not None and len(data.class_names) == generator.num_classes else None
    joined = MaskedPipeline(
        tokenizer=made,
        transformer=generator,
        sampler=sampler,
        class_names=names_of if generator.conditional else None,
        data=data,
    )
    return joined, report, names
