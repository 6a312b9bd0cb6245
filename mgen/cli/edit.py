"""`mgen edit`: in-painting, out-painting, class editing, style of another image."""

import os
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from mgen.cli.overwrite import add_overwrite, overwriting
from mgen.cli.parser import add_vision, make_parser, number, path, whole
from mgen.cli.sample import add_sampling, load_for
from mgen.utils.errors import MgenError, shown

EXAMPLES = """  mgen edit photo.png --mask mask.png --class bag --out edited       regenerate the white part of the mask
  mgen edit shoe.png --box 0,0,16,32 --class sneaker --out edited      left half of a 32-pixel image
  mgen edit bag.png --outpaint 8,8,8,8 --class bag --out edited        shrink the picture, generate a frame around it
  mgen edit shirt.png --box 6,6,26,26 --class dress,coat --num-images 4 --out edited    other classes in a region
  mgen edit bag.png --style coat.png --model runs/fmnist-hita/model --out edited      bag's patches, coat's global tokens
  mgen edit photo.jpg --style painting.jpg --model models/hita --vision-weights dinov2_vitl14_reg4_pretrain.pth --out edited

The picture is center-cropped to the model's size. Pixels outside the mask stay exactly as they are. --style takes a Hita tokenizer
(mgen train --config fmnist-hita makes a small one) or a pipeline with one; nothing is random."""


def command(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("edit", "Regenerate a part of an image, or give it the style of another image.", EXAMPLES)
    option = parser.add_argument
    option("image", type=path, help="image file")
    where = parser.add_mutually_exclusive_group(required=True).add_argument
    where(
        "--mask",
        type=path,
        metavar="FILE",
        help="image whose bright pixels (≥ 128) are regenerated; of one with transparency, those that are not transparent",
    )
    where("--box", metavar="L,T,R,B", help="box to regenerate, in pixels of the model's image size")
    where("--outpaint", metavar="L,T,R,B", help="margins in pixels to generate around the shrunken picture")
    where(
        "--style",
        type=path,
        metavar="FILE",
        help="image whose global tokens the result gets, with a Hita tokenizer as --model",
    )
    add_vision(parser)
    option("--class", "--classes", dest="classes", help="class ids or names of the result; default: none (null class)")
    option("--num-images", type=whole(1), default=4, help="variants per class")
    option("--batch-size", type=whole(1), default=40)
    option("--dilate", type=whole(0), default=1, help="token cells by which the mask grows")
    option("--feather", type=number(0), default=0.0, help="softening of the seam, in pixels")
    option("--out", type=path, default="edited", metavar="DIR")
    add_overwrite(parser, "other edits")
    add_sampling(parser)
    args = parser.parse_args(argv)

    from mgen.cli.early import check_common, check_there
    from mgen.utils.files import check_writable

    for what, file in (("IMAGE", args.image), ("--mask", args.mask), ("--style", args.style)):
        if file is not None:
            check_there(what, file, "image")
    check_common(args)
    if os.path.lexists(Path(args.out) / "run.json"):
        raise MgenError(f"{args.out} holds a run of mgen sample: choose another --out")
    check_writable(args.out)
    with overwriting(
        args.out, "edit", active=args.overwrite, inputs=(args.image, args.mask, args.style, args.model, args.guide)
    ):
        return restyle(args) if args.style else edit(args)


def restyle(args: Namespace) -> int:
    """The content image with the style of another: restyled.png, and grid.png of all three."""
    import torch

    from mgen.data import load_image
    from mgen.pipelines import editing
    from mgen.pipelines.generation import save_png
    from mgen.pipelines.pixels import to_pil
    from mgen.pipelines.saved import load_tokenizer
    from mgen.tokenizers.vision import give_vision
    from mgen.utils.grids import captioned_grid

    if args.classes:
        raise MgenError("--class is for what is regenerated: --style regenerates nothing, leave it out")
    tokenizer = load_tokenizer(args.model, device=args.device)
    give_vision(tokenizer, args.vision_weights)
    size, channels = tokenizer.config.image_size, tokenizer.config.in_channels
    content, style = (load_image(path, size=size, channels=channels, upright=True) for path in (args.image, args.style))
    result = editing.restyle(tokenizer, content, style).cpu()
    out = Path(args.out)
    save_png(to_pil(result[None])[0], out / "restyled.png")
    three = torch.stack([content, style, result])
    grid = captioned_grid(three, ["content", "style", "result"], columns=3, least=96)
    save_png(grid, out / "grid.png")
    print(out / "grid.png")
    return 0


def edit(args: Namespace) -> int:
    from mgen.data import load_image
    from mgen.pipelines import editing
    from mgen.pipelines.edit_grid import edit_grid
    from mgen.pipelines.generation import chosen_classes, save_png
    from mgen.pipelines.pixels import to_pil
    from mgen.pipelines.runs import image_name
    from mgen.tokenizers.vision import give_vision
    from mgen.utils.limits import check_memory

    out = Path(args.out)
    pipe = load_for(args)
    give_vision(pipe.tokenizer, args.vision_weights)
    size, channels = pipe.tokenizer.config.image_size, pipe.tokenizer.config.in_channels
    image = load_image(args.image, size=size, channels=channels, upright=True)
    if args.mask:
        mask = editing.load_mask(args.mask, size)
    elif args.box:
        mask = editing.box_mask(four(args.box, "--box"), (size, size))
    else:
        image, mask = editing.outpaint_canvas(image, four(args.outpaint, "--outpaint"))
    classes: Sequence[int | None]
    if args.classes is None and pipe.conditional:
        if pipe.transformer.null_class is None:
            raise MgenError("this model has no null class: give --class")
        classes = [None]
        if pipe.guide is None:  # there is no class to guide towards
            first = {"guidance": 1.0} if pipe.sampler.config.first_stage else None
            pipe.sampler = pipe.sampler.override(guidance=1.0, first_stage=first)
    else:
        classes = chosen_classes(args.classes, pipe, "--class")
    count = len(classes) * args.num_images
    check_memory(4 * count * image.numel(), f"{count:,} variants of {size} pixels", "ask for fewer")
    labels = [c for c in classes for _ in range(args.num_images)]
    images = editing.edit(
        pipe,
        image,
        mask,
        labels,
        seed=args.seed,
        dilate=args.dilate,
        feather=args.feather,
        batch_size=args.batch_size,
        dtype=args.dtype,
    )
    for i, (result, label) in enumerate(zip(to_pil(images), labels)):
        save_png(result, out / f"edit-{image_name(i, label)}")
    names = pipe.class_names
    nothing = "no class" if pipe.conditional else "edited"
    words = [nothing if c is None else names[c] if c < len(names) else f"class {c}" for c in labels]
    grid = edit_grid(image, mask, images, words)
    save_png(grid, out / "grid.png")
    print(out / "grid.png")
    return 0


def four(text: str, option: str) -> list[int]:
    """Four integers of "L,T,R,B"."""
    parts = [part.strip() for part in text.split(",", maxsplit=4)]
    if len(parts) != 4 or not all(re.fullmatch("-?[0-9]{1,9}", part) for part in parts):
        raise MgenError(f"{option} {shown(text)}: expected four whole numbers LEFT,TOP,RIGHT,BOTTOM, such as 0,0,16,32")
    return [int(part) for part in parts]
