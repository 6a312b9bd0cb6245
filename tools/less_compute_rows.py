"""The trunks and rows of tools/less_compute.py: which policies are measured, alone and together.

A row is what `mgen sample --set` takes, on top of the sampler of the trunk. Rows named BEST are the combinations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mgen.bench.benchmark import random_pipeline
from mgen.bench.flops import Networks
from mgen.bench.proxy import AnyGenerator
from mgen.generators.presets import named_config
from mgen.pipelines.pipeline import load
from mgen.samplers import ParallelSampler
from mgen.utils.config import apply_overrides
from mgen.zoo import resolve
from mgen.zoo.identity import identity
from mgen.zoo.recipes import recipe_settings
from tools.ablations import prepare
from tools.ablations.diffusion import PlainGenerator
from tools.ablations.masked import PlainMasked

PLAIN, BEST = "plain run", "best combination"
Rows = dict[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """A generator, its sampler, and the rows measured on it.

    Args:
        model: an embedded model, or with `recipe` the name of a configuration that gets random weights. base: settings of the plain run.
        rows: settings of each row, on top of `base`. batch_size: images at a time when seconds are measured.
        form: the generator as the published code computes it, from the generator and the batch size; None: there is none.
    """

    model: str
    rows: Rows
    batch_size: int
    recipe: str | None = None
    base: tuple[str, ...] = ()
    form: Callable[[Any, int], Any] | None = None

    @cached_property
    def pipe(self) -> Networks:
        """The networks with the sampler of the plain run."""
        if self.recipe is None:
            pipe: Any = load(self.model).optimize()
        else:
            pipe = random_pipeline(named_config(self.model), None)
            sampler = ParallelSampler.suited(pipe.transformer, *recipe_settings(self.recipe))
            pipe.sampler = prepare(pipe.transformer, sampler)
        pipe.sampler = changed(pipe.sampler, self.base)
        return pipe

    @cached_property
    def identity(self) -> str:
        """What tells its model from others."""
        return identity(resolve(self.model)).model_sha256 if self.recipe is None else f"{self.model}, random weights"

    @property
    def trained(self) -> bool:
        """Whether its images say something about quality."""
        return self.recipe is None

    def sampler(self, name: str) -> ParallelSampler:
        """The sampler of a row; MgenError if this generator can't take it."""
        pipe: Any = self.pipe
        sampler = changed(pipe.sampler, () if name == PLAIN else self.rows[name])
        sampler.check(pipe.transformer)
        return sampler


def changed(sampler: ParallelSampler, overrides: tuple[str, ...]) -> ParallelSampler:
    """The sampler with settings as `--set` takes them."""
    return ParallelSampler.from_settings(apply_overrides(sampler.settings, overrides), "sampler")


def masked_form(generator: AnyGenerator, batch_size: int) -> Any:
    """The plain form of a masked generator of ids."""
    return PlainMasked(generator, batch_size=batch_size)  # type: ignore[arg-type]


def diffusion_form(generator: AnyGenerator, batch_size: int) -> Any:
    """The plain form of a generator with a diffusion head; it fits every batch size."""
    return PlainGenerator(generator)  # type: ignore[arg-type]


DISA = ("head.steps={kind: linear, start: 50, end: 5, at: inclusive}", "head.max_timestep=950")
LAZY = ("reuse.condition={every: 9, first: 5}",)  # LazyMAR's numbers
CHECKERED = "stages=[{tokens: 0.25, steps: 2}, {tokens: 0.25, steps: 2}, {steps: 1}]"
GTR = "stages=[{tokens: 0.25, steps: 32}, {tokens: 0.25, steps: 8}, {steps: 4}]"
LAZY_TOKENS = (
    "reuse.tokens={every: 9, first: 5, layer: 3, extra: 15, keep: [[0.3125, 0.6], [0.328125, 0.5], [0.390625, 0.4], "
    "[0.46875, 0.15], [0.546875, 0.12], [0.625, 0.05]]}",
)
LAZY_HEAD = ("head.cache={every: 7, blocks: [1, 4], warm: 0.1}",)
TUNED = (  # docs/tune
    "steps=6",
    "schedule=[0.968119, 0.874833, 0.685283, 0.441349, 0.200031]",
    "guidance=[1.29256, 1.730756, 2.168953, 2.60715, 3.045346, 3.483544]",
    "temperature=[0.986968, 0.966735, 0.946503, 0.92627, 0.906037, 0.885805]",
    "confidence_temperature=[4.8771, 3.806569, 2.736037, 1.665505, 0.594974]",
)
RECAP = ("reuse.inside=raster", "reuse.head_share=0.5")

TRUNKS = {
    "fmnist-mar": Trunk(
        model="fmnist-mar",
        batch_size=20,
        rows={
            BEST: ("steps=5", "head.steps=15", "guidance.end=6"),
            "head steps 50 → 5 (DiSA)": DISA,
            "head steps 15": ("head.steps=15",),
            "head steps 15, guidance to 6": ("head.steps=15", "guidance.end=6"),
            "DPM-Solver++ 3s, 12 calls": ("head.chain=dpm-solver++3s", "head.steps=12", "temperature=1.0"),
            "head cache, every 4": ("head.cache={every: 4}",),
            "5 steps": ("steps=5",),
            "6 steps": ("steps=6",),
            "checkerboard, 5 steps": ("steps=null", "order=checkerboard", CHECKERED),
            "condition cache, every 4, first 2": ("reuse.condition={every: 4, first: 2}",),
            "token cache, every 3, first 2": ("reuse.tokens={every: 3, first: 2}",),
            "ReCAP, 4 full steps first": (*RECAP, "reuse.cached=1", "reuse.full_first=4"),
            "guidance in the second half": ("guidance.interval=[0, 0.5]",),
        },
    ),
    "fmnist-maskgit": Trunk(
        model="fmnist-maskgit",
        batch_size=40,
        rows={
            BEST: (*TUNED, "reuse.condition={every: 3, first: 1}"),
            "6 steps": ("steps=6",),
            "6 steps, tuned": TUNED,
            "6 steps, tuned, condition cache, every 2, first 1": (*TUNED, "reuse.condition={every: 2, first: 1}"),
            "6 steps, tuned, condition cache, every 3": (*TUNED, "reuse.condition={every: 3}"),
            "6 steps, tuned, ReCAP, 2 full steps first": (*TUNED, "reuse.cached=1", "reuse.full_first=2"),
            "6 steps, ReCAP, 2 full steps first": ("steps=6", "reuse.cached=1", "reuse.full_first=2"),
            "6 steps, ReCAP, guidance in the last 70 %": (
                "steps=6",
                "reuse.cached=1",
                "reuse.full_first=2",
                "guidance.interval=[0, 0.7]",
            ),
            "guidance in the last 70 %": ("guidance.interval=[0, 0.7]",),
            "condition cache, every 2, first 1": ("reuse.condition={every: 2, first: 1}",),
            "ReCAP, 2 full steps first": ("reuse.cached=1", "reuse.full_first=2"),
            "ReCAP, 3 cached steps each": ("reuse.cached=3",),
            "order moment": ("order=moment",),
            "remasking, cap 0.05": ("remask={kind: cap, eta: 0.05}",),
        },
    ),
    "mar-b": Trunk(
        model="mar-b",
        recipe="mar-b-imagenet256",
        base=("steps=64",),
        batch_size=2,
        form=diffusion_form,
        rows={
            "head steps 50 → 5 (DiSA)": DISA,
            "DPM-Solver++ 3s, 12 calls": ("head.chain=dpm-solver++3s", "head.steps=12"),
            "guidance in the second half": ("guidance.interval=[0, 0.5]",),
            "condition cache (LazyMAR)": LAZY,
            "token cache (LazyMAR)": LAZY_TOKENS,
            "head cache (LazyMAR)": LAZY_HEAD,
            "LazyMAR: all three": (*LAZY, *LAZY_TOKENS, *LAZY_HEAD),
            "ReCAP, 32 full steps first": (*RECAP, "reuse.cached=1", "reuse.full_first=32"),
            "checkerboard in stages, 32 + 8 + 4 steps (GtR)": ("steps=null", "order=checkerboard", GTR),
            "32 steps": ("steps=32",),
            BEST: (*DISA, *LAZY, *LAZY_TOKENS),
        },
    ),
    "maskgit-r-l": Trunk(
        model="maskgit-r-l",
        recipe="autonat-l-imagenet256",
        batch_size=2,
        form=masked_form,
        rows={
            "guidance exactly 1 in the first 3 steps": ("guidance=[1, 1, 1, 1.915, 2.616, 2.195, 2.383, 2.227]",),
            "condition cache, every 4, first 2": ("reuse.condition={every: 4, first: 2}",),
            "ReCAP, 2 full steps first": ("reuse.cached=1", "reuse.full_first=2"),
            BEST: (
                "guidance=[1, 1, 1, 1.915, 2.616, 2.195, 2.383, 2.227]",
                "reuse.condition={every: 4}",
                "reuse.cached=1",
                "reuse.full_first=2",
            ),
        },
    ),
}
