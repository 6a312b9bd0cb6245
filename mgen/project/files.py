"""The settings files that `mgen init` writes: every value with the reason for it, for people to read and edit."""

import json
import math
from collections.abc import Mapping

import yaml

from mgen.project.draft import Draft
from mgen.project.rules import BATCH, ENLARGED, FEW, LARGEST_ON_CPU, SIZES, Passes
from mgen.project.summary import count, estimates, summary
from mgen.utils.errors import one_line


def all_files(draft: Draft, folder: str) -> dict[str, str]:
    """Name → text of every settings file of a project in `folder`."""
    files = {"project.yaml": project(draft, folder), "generator.yaml": generator(draft)}
    if draft.tokenizer is None:
        files["tokenizer.yaml"] = tokenizer(draft)
    if draft.conditional:
        files["classifier.yaml"] = classifier(draft)
    return files


def flow(value: object) -> str:
    """A value as YAML in one line."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        return f"{value:.10g}" if value >= 1e-3 else f"{value:.1e}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {v if k == 'type' else flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    return str(yaml.safe_dump(value, width=10**6)).removesuffix("...\n").strip()


def project(draft: Draft, folder: str) -> str:
    found = draft.found
    lines = "\n".join(f"#   {one_line(line)}" for line in summary(found, draft.image_size))
    times = "\n".join(f"#   {line}" for line in estimates(draft) or ["(not timed)"])
    if draft.val is None:
        val = f"""\
  # No second folder was given, so this share of every class is held out for validation: of its images those whose names come first in a
  # fixed random order, the same on every machine. 0.1 of fewer than 2,000 images, else 0.05.
  held_out: {draft.held_out:g}"""
    else:
        val = f"  val_path: {flow(str(draft.val))}"
    sizes, most = ", ".join(map(str, SIZES)), f"{ENLARGED - 1:.0%}"
    rule = f"the largest of {sizes} to which images of the median size are enlarged by no more than {most}"
    given = "as asked for" if draft.sized else rule + ("" if draft.gpu else f"; at most {LARGEST_ON_CPU} without a GPU")
    channels = "there are colors" if draft.channels == 3 else "all images are gray"
    kept = (
        "the images fit in memory and are read once"
        if draft.keep
        else "more images than fit in memory: they are read in every pass"
    )
    tokenizer = "null" if draft.tokenizer is None else flow(draft.tokenizer)
    return f"""\
# A project of mgen. It goes from images to samples in stages: {" → ".join(stages(draft))}.
#   mgen train --project {one_line(folder)}                       all of them; rerun to go on after an interruption
#   mgen train --project {one_line(folder)} --stage generator     one of them
#
# What was found in the data:
{lines}
#
# Estimated on this machine by timing some steps of each training:
{times}
#
# Paths are relative to this file. What the other files leave out (classes, channels, image size, token format, output) follows from here.
data:
  path: {flow(str(draft.data))}
{val}
  classes: {"folders" if found.has_classes else "none"}    # folders: every subfolder is a class; none: all images are of one class
  # {given}.
  # Another size needs another tokenizer: run mgen init --image-size N again, into another folder.
  image_size: {draft.image_size}
  channels: {draft.channels}     # 1 gray, 3 color: {channels}. Transparent images are put on white
  # true doubles the data with mirrored images. Off, since it is wrong for letters, digits and whatever has a left and a right.
  flip: false
  keep: {flow(draft.keep)}     # {kept}
  workers: {0 if draft.keep else 4}     # processes that read images

# The name or folder of a trained tokenizer, instead of training one.
tokenizer: {tokenizer}

check:
  images: 1000     # validation images that the tokenizer check reconstructs, or all if there are fewer

report:
  images: 1000     # samples that the report measures, with the classes as frequent as in the data
"""


def stages(draft: Draft) -> list[str]:
    """The stages of the project, in order."""
    first = ["classifier"] * draft.conditional + ["tokenizer"] * (draft.tokenizer is None)
    return [*first, "check", "cache", "generator", "report"]


def run_settings(draft: Draft, stage: str, passes: Passes) -> str:
    """The settings that all trainings share: seed, steps, batch."""
    steps, batch = draft.steps(stage), draft.batch
    least, most = (round(images / batch) for images in (passes.least, passes.most))
    rule = f"{passes.passes} passes over {count(draft.images, 'image')}, but between {least:,} and {most:,} steps"
    if draft.stretch != 1:
        rule += f"; times {draft.stretch:.3g}, for --hours"
    small = f"at most an eighth of the images, and {draft.preset.batch}"
    return f"""\
seed: 0
steps: {steps}     # {rule}. Enough once val_loss in {stage}/metrics.jsonl no longer falls
batch_size: {batch}     # {small}
accumulate: {draft.accumulate.get(stage, 1)}     # pieces of a batch that are computed one after another: more if memory is short
precision: {draft.precision}"""


def optim(draft: Draft, stage: str, **settings: object) -> str:
    steps = draft.steps(stage)
    return "optim: " + flow(
        {"lr": draft.lr(stage), **settings, "schedule": "cosine", "warmup": min(200, max(1, steps // 10)), "clip": 1.0}
    ).replace('"', "")


def lr_rule(draft: Draft, lr: float) -> str:
    return f"# lr: {lr:g} at batch {BATCH}, as in the shipped trainings, times the square root of batch / {BATCH}."


def log(draft: Draft, stage: str, **more: int) -> str:
    steps = draft.steps(stage)
    third = max(1, math.ceil(steps / 3))
    every = {"every": min(50, max(1, steps // 4)), "evaluate_every": third, "preview_every": third}
    return "log: " + flow({**every, "checkpoint_every": max(1, min(400, steps // 10)), **more})


def classifier(draft: Draft) -> str:
    return """\
# Two small classifiers of these images, with seeds 0 and 1. Features of the first measure samples: Fréchet distance, nearest images. The
# second gives the class accuracy of samples and the perceptual term of the tokenizer's loss, so the distance is independent of both.
# Image size (32 or 64 px), widths and classes follow from the data.
# Change first, if val_accuracy in classifier/*/metrics.jsonl is low: steps, then the augmentation (flip, shift in pixels).
extends: classifier     # the shipped configs/train/classifier.yaml
data: {flip: false, shift: 3}
"""


def tokenizer(draft: Draft) -> str:
    return (vqgan if draft.kind == "index" else kl)(draft)


def perceptual(draft: Draft) -> str:
    if not draft.conditional:
        return "perceptual: 0.0     # needs a classifier, and with one class there is none"
    return "perceptual: 0.5     # squared difference of features of the second classifier: edges get sharper"


def vqgan(draft: Draft) -> str:
    s = draft.preset.ids
    vocab = math.prod(s["fsq_levels"])
    batch = run_settings(draft, "tokenizer", draft.preset.tokenizer)
    adversarial = ""
    if draft.preset.large:
        adversarial = f"""
  adversarial: 0.1     # of a patch discriminator: texture. 0 if the training becomes unstable
  adversarial_start: {draft.steps("tokenizer") // 4}     # once images are recognizable
  adversarial_loss: hinge"""
    return f"""\
# The tokenizer: a VQGAN that turns an image of {draft.image_size} px into {draft.grid}×{draft.grid} ids and back.
# What it loses, no generator brings back.
# Change first, if the check finds it not good enough: steps; then channels; then multipliers, for more tokens.
task: tokenizer
{batch}
model:
  class: VQGAN
  channels: {s["channels"]}     # width of the finest level: twice as many lose less, and take about three times as long
  multipliers: {flow(s["multipliers"])}     # width of each level; one less: four times as many tokens, and a slower generator
  blocks: {s["blocks"]}
  mid_blocks: {s["mid_blocks"]}
  norm_groups: {s.get("norm_groups", 32)}
  shortcut: input
  fsq_levels: {flow(s["fsq_levels"])}     # finite scalar quantization: the product, {vocab:,}, is the number of ids
objective:
  l2: 4.0
  l1: 0.5
  {perceptual(draft)}{adversarial}
{lr_rule(draft, draft.preset.lr_tokenizer)}
{optim(draft, "tokenizer", betas=[0.9, 0.99])}
ema: {{decay: 0.999}}     # the average of the weights is what is used
{log(draft, "tokenizer")}
"""


def kl(draft: Draft) -> str:
    s = draft.preset.vectors
    batch = run_settings(draft, "tokenizer", draft.preset.tokenizer)
    return f"""\
# The tokenizer: a KL autoencoder that turns an image of {draft.image_size} px into {draft.grid}×{draft.grid} vectors and back.
# What it loses, no generator brings back. Its scale is measured at the end of the training.
# Change first, if the check finds it not good enough: steps; then channels; then latent_channels.
task: tokenizer
{batch}
model:
  class: KLTokenizer
  latent_channels: {s["latent_channels"]}     # numbers of a token
  channels: {flow(s["channels"])}     # width of each level, finest first; each but the last halves the side
  layers: {s["layers"]}
  norm_groups: {s["norm_groups"]}
  encoder_attention: []
  middle_attention: {flow(s.get("middle_attention", True))}
  scale: null     # measured
objective:
  l2: 4.0
  l1: 0.5
  kl: 1.0e-3     # pulls the latents to a normal distribution; less reconstructs better and is harder to generate
  {perceptual(draft)}
{lr_rule(draft, draft.preset.lr_tokenizer)}
{optim(draft, "tokenizer", betas=[0.9, 0.99])}
ema: {{decay: 0.999}}     # the average of the weights is what is used
{log(draft, "tokenizer")}
"""


def generator(draft: Draft) -> str:
    batch = run_settings(draft, "generator", draft.preset.generator)
    index, conditional = draft.kind == "index", draft.conditional
    system = "MaskGIT" if index else "MAR"
    free = "" if conditional else "\n  classes: {count: 0}     # a single class: the model knows none"
    if draft.model is not None:
        network = f"""\
  name: {draft.model}     # configs/models; its classes and tokens give way to the data's and the tokenizer's{free}"""
    else:
        trunk = dict(draft.preset.trunks[draft.kind])
        about = ""
        if index and not draft.preset.large:
            few = draft.images < FEW
            trunk["dropout"] = 0.1 if few else 0.0
            about = f"     # dropout 0.1 below {FEW:,} images, else 0"
        network = f"""\
  trunk: {flow(trunk)}{about}
  head: {flow(draft.preset.heads[draft.kind])}{free}"""
    objective = maskgit if index else mar
    betas, decay = ([0.9, 0.96], 0.03) if index else ([0.9, 0.95], 0.02)
    export = max(1, draft.steps("generator") // 8)
    more = {} if index else {"decay_all": False, "no_decay": "[head.]"}
    return f"""\
# The generator: {system}. Token format and classes follow from the tokenizer and the data.
# Change first: steps, while val_loss still falls; then the width (dim) and depth of the trunk; after the training the sampler's guidance
# and temperature, which need no new training (mgen sample --guidance, mgen tune).
task: generator
{batch}
model:
{network}
objective:
{objective(conditional)}
{lr_rule(draft, draft.preset.lr_generator)}
{optim(draft, "generator", betas=betas, weight_decay=decay, **more)}
ema: {{decay: {0.9999 if draft.preset.large else 0.999}}}     # the average of the weights is what is used
{log(draft, "generator", export_every=export)}
"""


def maskgit(conditional: bool) -> str:
    guidance = (
        "guidance: {kind: linear, start: 1.0, end: 2.5, at: end}     # 1: none; more: clearer classes, less variety"
    )
    return f"""\
  mask: {{distribution: cosine}}
  label_drop: {0.1 if conditional else 0.0}     # of the images are trained without their class, which guidance needs
  label_smoothing: 0.0
  sampler:
    steps: 8     # forward passes of an image
    {guidance if conditional else "guidance: 1.0     # needs classes"}
    confidence_temperature: {{kind: linear, start: 4.5, end: 0.0}}     # more: more variety, less detail"""


def mar(conditional: bool) -> str:
    guidance = "guidance: {kind: linear, start: 1.0, end: 4.0, at: tokens, left: 1}     # 1: none; more: clearer classes, less variety"
    return f"""\
  mask: {{distribution: truncated-gaussian, mean: 1.0, std: 0.25, low: 0.7, per: batch, rounding: ceil}}
  label_drop: {0.1 if conditional else 0.0}     # of the images are trained without their class, which guidance needs
  diffusion_batch_mul: 2     # noises of each token in the loss
  sampler:
    steps: 8     # forward passes of an image
    order: random
    {guidance if conditional else "guidance: 1.0     # needs classes"}
    temperature: 0.65
    head: {{chain: ancestral, steps: 100, clip: 5.0}}     # denoising steps of a token"""
