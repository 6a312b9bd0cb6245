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
RECAP = ("reuse.inside=raster", "reuse.head_share=0.5")

TRUNKS = {
    "fmnist-mar": Trunk(
        model="fmnist-mar",
        batch_size=20,
        rows={
            "head steps 50 → 5 (DiSA)": DISA,
            "head steps 25": ("head.steps=25",),
            "DPM-Solver++ 3s, 12 calls": ("head.chain=dpm-solver++3s", "head.steps=12", "temperature=1.0"),
            "guidance in the second half": ("guidance.interval=[0, 0.5]",),
            "condition cache, every 4, first 2": ("reuse.condition={every: 4, first: 2}",),
            "ReCAP, 4 full steps first": (*RECAP, "reuse.cached=1", "reuse.full_first=4"),
            "6 steps": ("steps=6",),
        },
    ),
    "fmnist-maskgit": Trunk(
        model="fmnist-maskgit",
        batch_size=40,
        rows={
            "guidance in the second half": ("guidance.interval=[0, 0.5]",),
            "condition cache, every 4, first 2": ("reuse.condition={every: 4, first: 2}",),
            "ReCAP, 3 full steps first": ("reuse.cached=1", "reuse.full_first=3"),
            "6 steps": ("steps=6",),
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
            "condition cache, every 9, first 5 (LazyMAR)": LAZY,
            "ReCAP, 32 full steps first": (*RECAP, "reuse.cached=1", "reuse.full_first=32"),
            "ReCAP, 3 cached steps each": (*RECAP, "reuse.cached=3", "reuse.full_first=8"),
            "32 steps": ("steps=32",),
            BEST: (*DISA, *LAZY, *RECAP, "reuse.cached=1", "reuse.full_first=16"),
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
