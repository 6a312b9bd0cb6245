"""`mgen sample`: make images."""

import os
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mgen.cli import resumable
from mgen.cli.overwrite import add_overwrite, again, overwriting
from mgen.cli.parser import make_parser, number, path, scaled, whole
from mgen.utils.errors import MgenError, check_choice

if TYPE_CHECKING:
    from mgen.bench.benchmark import RandomPipeline
    from mgen.pipelines.pipeline import MaskedPipeline
    from mgen.samplers import ParallelSampler

EXAMPLES = """  mgen sample                                            the embedded model, 8 images per class, into samples/
  mgen sample --classes bag,dress --num-images 20 --guidance 3 --out bags
  mgen sample --classes 0-9 --num-images 50000 --batch-size 100 --out run     rerun to resume
  mgen sample --animation                                also show how tokens are revealed, in samples/animation.gif
  mgen sample --steps 16 --set reuse.cached=1 --set reuse.full_first=4     any setting of the sampler by its name
  mgen sample --steps 16 --guidance 3 --show-plan        what every step does, as a table
  mgen sample --model runs/own/model --guide runs/own/early --guidance 2       guided by an earlier checkpoint: autoguidance
  accelerate launch --multi_gpu --num_processes 2 -m mgen sample --num-images 1000 --out run

50,000 images on 8 GPUs, and one file of them for ADM's evaluator:
  accelerate launch --multi_gpu --num_processes 8 -m mgen sample --model models/autonat-l --num-images 50000 \\
      --batch-size 100 --format npz --out run --npz run.npz
  mgen sample --num-images 50000 --compile --out run     compiled blocks, for a long run on a GPU
  mgen sample --lora runs/own/lora:0.8                   with an adapter that a training with `lora` made, at 80 %
  mgen sample --model models/mar-b --num-images 50000 --labels sorted --out mar            class by class, as MAR does
  mgen sample --model models/llamagen-l --num-images 50000 --labels random --image-size 256 --quantization half-up \\
      --out llamagen --npz llamagen.npz                                       as LlamaGen measures images of 384 pixels

Image i of a run depends on (model, settings, seed, i) only; interruptions and the number of processes change nothing. Another batch
size changes the rounding of sums: in fp32 a pixel may differ by one level here and there. Rerun the same command to resume: finished
images are kept, the interrupted batch (with --format npz the shard) is sampled again, and a larger --num-images extends the run, unless
its labels are sorted. Don't start a second run in a folder before the first one has ended."""


def add_sampling(parser: ArgumentParser) -> None:
    """Options shared by the commands that make images."""
    from mgen.zoo import DEFAULT

    option = parser.add_argument
    option(
        "--model",
        type=path,
        default=DEFAULT,
        metavar="NAME|PATH",
        help="a model of `mgen zoo`, a folder, or owner/name on the hub",
    )
    option(
        "--lora",
        action="append",
        default=[],
        type=scaled,
        metavar="PATH[:SCALE]",
        help="an adapter of mgen train with `lora`, or its folder, and its factor (default 1); repeatable",
    )
    add_guide(parser)
    option("--seed", type=int, default=0)
    add_sampler(parser)
    option("--device", default="auto", help="cpu, cuda, cuda:1, auto")
    option("--dtype", default="fp32", help="fp32, bf16 or fp16, of the generator; decoding is in fp32")


def add_compile(parser: ArgumentParser) -> None:
    """The option of commands whose generator may be compiled."""
    parser.add_argument(
        "--compile",
        nargs="?",
        const="regional",
        metavar="MODE",
        help="torch.compile of the generator: regional (the value without MODE; each kind of block once) or full (whole passes); for long "
        "runs, as the first batch waits for the compiler; pixels may differ by rounding; default: off",
    )


def add_guide(parser: ArgumentParser) -> None:
    """The option of commands that may sample with a guide."""
    parser.add_argument(
        "--guide",
        type=path,
        metavar="NAME|PATH",
        help="a weaker model of the same tokens and classes, such as an earlier checkpoint, that guidance leads away from, in the place of "
        "the null class",
    )


def add_sampler(parser: ArgumentParser) -> None:
    """Options that change a model's sampler; see `chosen_sampler`."""
    option = parser.add_argument
    option("--steps", type=whole(1), help="decoding steps; default: the model's")
    option("--guidance", type=float, help="s in u + s·(c − u), 1 is none; default: the model's")
    option(
        "--temperature",
        type=number(0),
        help="temperature of the tokens (of an ancestral chain: of its noise); default: the model's",
    )
    option(
        "--order",
        help="confidence, moment, remasking, random, raster, halton, halton-rolled, checkerboard, or all positions as 3,0,1,…; "
        "default: the model's",
    )
    option("--head-steps", type=whole(1), help="steps of a diffusion head's chain; default: the model's")
    option("--chain", help="ancestral, ddim, dpm-solver++ or dpm-solver++3s, of a diffusion head; default: the model's")
    option(
        "--recipe",
        type=path,
        metavar="FILE",
        help="sampler settings: a recipe of `mgen zoo`, a YAML with a `sampler:` section, or an AutoNAT strategy file",
    )
    option(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any setting of the sampler, value in YAML; repeatable; overrides the recipe, is overridden by other options",
    )


def load_for(args: Namespace, device: str | None = None) -> "MaskedPipeline":
    """The pipeline with the sampler that the options ask for."""
    from mgen.pipelines.pipeline import load

    pipe = load(args.model, device=device or args.device).optimize()
    if args.lora:
        pipe.add_adapters(args.lora)
    if args.guide:
        pipe.guide = load(args.guide, device=device or args.device).transformer
    pipe.sampler = chosen_sampler(pipe, args)
    if mode := getattr(args, "compile", None):
        pipe.compile(mode)
    return pipe


def chosen_sampler(pipe: "MaskedPipeline | RandomPipeline", args: Namespace) -> "ParallelSampler":
    """The pipeline's sampler, or the recipe's, with the settings that --set and the other options of `add_sampler` replace."""
    from mgen.samplers import ParallelSampler
    from mgen.zoo.recipes import recipe_settings

    sampler = pipe.sampler
    if args.recipe:
        sampler = ParallelSampler.suited(pipe.transformer, *recipe_settings(args.recipe))
    order: str | list[int] | None = args.order
    if args.order and re.fullmatch(r"\s*[0-9]{1,9}\s*(,\s*[0-9]{1,9}\s*)*", args.order):
        order = [int(part) for part in args.order.split(",")]
    sampler = sampler.override(
        overrides=args.set or (),
        steps=args.steps,
        guidance=args.guidance,
        temperature=args.temperature,
        order=order,
        head_steps=args.head_steps,
        chain=args.chain,
    )
    sampler.check(pipe.sampled())
    return sampler


def command(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("sample", "Sample images from a model; files are named by index and class.", EXAMPLES)
    add_sampling(parser)
    add_compile(parser)
    add_output(parser)
    args = parser.parse_args(argv)

    from mgen.cli.early import check_common
    from mgen.pipelines.labels import PLANS
    from mgen.pipelines.run_file import FORMATS, QUANTIZATIONS, SHARD
    from mgen.utils.files import check_target, check_writable

    check_common(args)
    if args.animation:
        args.animation = str(animation_file(args.animation, Path(args.out)))
    elif args.animation_images:
        raise MgenError(f"--animation-images {args.animation_images} is for --animation: give that too")
    check_choice("--labels", args.labels, PLANS)
    check_choice("--format", args.format, FORMATS)
    check_choice("--quantization", args.quantization, QUANTIZATIONS)
    if args.shard_size and args.format != "npz":
        raise MgenError(f"--shard-size {args.shard_size} is for --format npz, this is {args.format}: leave it out")
    if args.npz:
        file = Path(args.npz)
        if file.suffix != ".npz" or SHARD.fullmatch(file.name) or file.is_dir():
            raise MgenError(
                f"--npz {file}: expected a file name ending in .npz, not that of a shard (images-000000-000999.npz)"
            )
        check_target(file)
        check_writable(file.parent)
    if args.show_plan:
        pipe = load_for(args)
        print(
            "What every step does to one image: tokens revealed, tokens unknown before it, guidance scale, temperatures"
        )
        print(pipe.sampler.plan(pipe.sampled()))
        return 0
    own = [name for name in (args.animation, args.npz) if name and _lies_in(name, args.out)]
    also = "|".join(re.escape(os.path.basename(name)) for name in own)
    with overwriting(
        args.out, "sample", active=args.overwrite, also=also, inputs=(args.model, args.guide, args.recipe)
    ):
        return sample(args)


def _lies_in(file: str, folder: str) -> bool:
    """Whether a file, which need not exist, is directly in a folder."""
    return os.path.realpath(os.path.dirname(file)) == os.path.realpath(folder)


def animation_file(name: str, out: Path) -> Path:
    """Where the animation goes: into `out`, unless its name has a folder.

    Raises:
        MgenError: a file of another kind, or one that would take the place of an image of the run or of its grid.
    """
    from PIL import features

    from mgen.pipelines.run_file import ANIMATIONS, IMAGE
    from mgen.utils.files import check_target, check_writable

    file = out / name if os.path.basename(name) == name else Path(name)
    if file.suffix not in ANIMATIONS:
        raise MgenError(f"--animation {name}: the name must end in .gif, .png or .webp")
    if file.suffix == ".webp" and not features.check("webp"):
        raise MgenError(f"--animation {name}: this Pillow cannot write WebP: use .gif or .png")
    check_target(file)
    if _lies_in(str(file), str(out)) and (file.name == "grid.png" or IMAGE.fullmatch(file.name)):
        raise MgenError(f"--animation {name} is a file of the run itself: choose another name, such as reveal.png")
    check_writable(file.parent)
    return file


def add_output(parser: ArgumentParser) -> None:
    """Options of what is sampled and written."""
    option = parser.add_argument
    option("--out", type=path, default="samples", metavar="DIR")
    add_overwrite(parser, "images of another run")
    option(
        "--classes",
        help="ids, ranges or names: 0,3,7-9 or bag,dress; a name with a comma in quotes: '\"crane, bird\",3'; id:2 or name:2 where a "
        "name is a number; default: all, in turn",
    )
    option("--num-images", type=whole(1), help="default: 8 per class, at most 80")
    option(
        "--labels",
        default="balanced",
        help="order of the classes: balanced (in turn), sorted (all images of a class together) or random (uniform)",
    )
    option("--batch-size", type=whole(1), default=40)
    option(
        "--format",
        default="png",
        help="png (a file per image) or npz (shards: arr_0 uint8 (n, H, W, C), arr_1 class ids)",
    )
    option(
        "--shard-size",
        type=whole(1),
        help="images per shard of --format npz, default 1000; one process makes a shard, and starts it again after an interruption",
    )
    option(
        "--npz",
        type=path,
        metavar="FILE",
        help="at the end also write all images to one .npz in ADM's layout, gray repeated to three channels",
    )
    option(
        "--image-size",
        type=whole(1, 2**20),
        help="resize images to this side, bicubic without antialiasing, as LlamaGen does; default: as sampled",
    )
    option(
        "--quantization",
        default="round",
        help="to bytes: round, half-up (floor of 127.5 x + 128, as in LlamaGen), or truncate (as in MAGE)",
    )
    option(
        "--animation",
        nargs="?",
        const="animation.gif",
        type=path,
        metavar="FILE",
        help="also write the first images while their tokens are revealed: a name ending in .gif, .png (APNG) or .webp, in --out unless "
        "it names a folder; without FILE animation.gif",
    )
    option("--animation-images", type=whole(1, 100), metavar="N", help="images in the animation, default 16")
    option(
        "--show-plan", action="store_true", help="print what every step does (tokens, guidance, forward pass) and exit"
    )


def sample(args: Namespace) -> int:
    from mgen.generators.adapter_file import find_adapter
    from mgen.pipelines.animation import animate
    from mgen.pipelines.generation import chosen_classes, complete_run, export_npz, read_back, save_png
    from mgen.pipelines.labels import LabelPlan
    from mgen.pipelines.runs import Run
    from mgen.utils.grids import labeled_grid
    from mgen.utils.reading import file_sha256
    from mgen.zoo import resolve
    from mgen.zoo.identity import identity

    rank, world, device, wait = processes(args.device)
    pipe = load_for(args, device)
    classes = chosen_classes(args.classes, pipe)
    if not pipe.conditional and args.labels != "balanced":
        raise MgenError(f"--labels {args.labels}: this model is unconditional and has no classes: leave the option out")
    count = args.num_images or min(80, 8 * len(classes))
    run = Run(
        out=Path(args.out),
        labels=LabelPlan(args.labels, classes=classes, count=count, seed=args.seed),
        dtype=args.dtype,
        format=args.format,
        shard_size=args.shard_size or 1000,
        image_size=args.image_size,
        quantization=args.quantization,
    )
    about: dict[str, object] = {"sampler": pipe.sampler.settings}
    if rank == 0:
        about = {"model": args.model, **vars(identity(resolve(args.model))), **about}
        if args.guide:
            about |= {"guide": args.guide, "guide_sha256": identity(resolve(args.guide)).model_sha256}
        if args.lora:
            about["lora"] = [[file_sha256(find_adapter(path)), scale] for path, scale in args.lora]
    with resumable(f"the same command{again(args)} goes on where it stopped"):
        complete_run(pipe, run, about=about, batch_size=args.batch_size, rank=rank, world=world, wait=wait)
    if rank == 0:
        print(f"{count} images in {run.out}, none missing")
        images, labels = read_back(run)
        save_png(labeled_grid(images, labels, pipe.class_names), run.out / "grid.png")
        if args.animation:
            animated = [run.labels(i) for i in range(min(count, args.animation_images or 16))]
            animate(pipe, animated, Path(args.animation), seed=args.seed, dtype=args.dtype)
            print(args.animation)
        if args.npz:
            export_npz(run, Path(args.npz))
            print(args.npz)
        print(run.out / "grid.png")
    return 0


def processes(device: str) -> tuple[int, int, str, Callable[[], None]]:
    """Rank, number of processes, checked device and a barrier: the launcher's if there is one, else one process."""
    from mgen.training.launch import meet
    from mgen.utils.devices import check_device

    return meet(check_device(device))
