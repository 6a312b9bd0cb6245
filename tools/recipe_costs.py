"""Count TFLOPs per image of the recipes and write them into the files.

    python tools/recipe_costs.py                                   all recipes: writes the line `tflops:` of each file
    python tools/recipe_costs.py mar-l-imagenet256 --check         compare only; exit status 1 if a file differs

The count covers the network only (trunk and head, not the tokenizer's decoder) for one image with the recipe's sampler and guidance; a
multiplication and an addition count as 2 (mgen/bench/flops.py). The model comes from the recipe's `model:` or, if it is embedded, from
its own configuration. It has no weights: everything runs on the meta device. `parameters:` is checked against the same model.

Deep models run at two shallow depths instead of their own: the number of operations is affine in the number of blocks, in the trunk as
in the head, so this is exact. The output shapes of an operation are computed once. `--exact` turns both off.
"""

import argparse
import copy
import re
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from mgen.bench.benchmark import RandomPipeline
from mgen.bench.flops import count_run
from mgen.bench.proxy import AnyGenerator
from mgen.generators.build import build_model
from mgen.generators.presets import named_config
from mgen.samplers import ParallelSampler
from mgen.utils.config import Settings, read_config
from mgen.utils.errors import MgenError
from mgen.utils.files import write_text
from mgen.utils.folders import embedded
from mgen.zoo.recipes import find_recipe, recipe_names, recipe_settings

# Two shallow depths of a trunk; half of the blocks of a U-ViT come before its middle and half after it.
SHALLOW = {"uvit": (2, 4)}
STAGES = ("first", "second")  # of a cascade


@dataclass(frozen=True)
class Cost:
    """Parameters of the generator, and operations per image in its trunk and in its head."""

    parameters: int
    trunk: int
    head: int

    @property
    def tflops(self) -> float:
        return (self.trunk + self.head) / 1e12


class Remembered(TorchDispatchMode):
    """Caches the output shapes of operations on the meta device by their arguments.

    Torch computes shapes in Python, which takes most of the time of a count. The counter still sees every operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[Any, tuple[list[tuple[Any, ...]], Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat, tree = tree_flatten((args, kwargs or {}))
        tensors = [value for value in flat if isinstance(value, Tensor)]
        # True, 1 and 1.0 are equal as keys but differ for an operation.
        key = (func, tree, *(_layout(value) if isinstance(value, Tensor) else (type(value), value) for value in flat))
        if func._schema.is_mutable or not tensors or not all(value.is_meta for value in tensors):
            return func(*args, **(kwargs or {}))
        try:
            kept = self._kept.get(key)
        except TypeError:  # an argument that cannot be a key
            return func(*args, **(kwargs or {}))
        if kept is None:
            out = func(*args, **(kwargs or {}))
            given, tree = tree_flatten(out)
            if all(isinstance(value, Tensor) and value.is_meta for value in given):
                self._kept[key] = [_layout(value) for value in given], tree
            return out
        shapes, tree = kept
        return tree_unflatten([torch.empty_strided(s, t, dtype=d, device="meta") for s, t, d in shapes], tree)


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


def cost(name: str, *, exact: bool = False) -> Cost:
    """The cost of a recipe.

    Args:
        name: of a shipped recipe, or a file.
        exact: run the model at its own depth, like `mgen bench`.
    """
    facts = read_config(find_recipe(name))
    remembered = nullcontext() if exact else Remembered()  # the two depths share many shapes
    if "model" in facts:
        generator = _build(named_config(facts["model"]))
    else:
        from mgen.pipelines.pipeline import load

        generator = load(embedded(facts["folder"])).transformer
    config = {key: value for key, value in generator.config.items() if not key.startswith("_")}
    trunk = {part[key] for part, key in _depths({"trunk": config["trunk"]})}
    head = {part[key] for part, key in _depths({**config, "trunk": {}})} or {1}
    if exact or "model" not in facts or len(trunk) > 1 or len(head) > 1:
        parts = _count(generator, name, remembered)
    else:
        least = _least_depth(name, generator)
        low, high = (least + depth for depth in SHALLOW.get(config["trunk"]["type"], (1, 2)))
        counts = [_count(_build(_with_depth(config, depth)), name, remembered) for depth in (low, high)]
        parts = [a + (b - a) * (depth - low) // (high - low) for a, b, depth in zip(*counts, (trunk.pop(), head.pop()))]
    return Cost(sum(p.numel() for p in generator.parameters()), *parts)


def _depths(config: Settings) -> Iterator[tuple[Settings, str]]:
    """Where the depths of trunk and heads stand in a configuration: (section, key)."""
    stages = [config, *(config[stage] for stage in STAGES if stage in config)]
    for section in (config["trunk"], *(stage["head"] for stage in stages if "head" in stage)):
        yield from ((section, key) for key in section if key.endswith("depth"))


def _with_depth(config: Settings, depth: int) -> Settings:
    """The configuration with another depth of trunk and heads."""
    out = copy.deepcopy(config)
    for section, key in _depths(out):
        section[key] = depth
    return out


def _least_depth(name: str, generator: AnyGenerator) -> int:
    """How many blocks deeper than usual a shallow run must be, so that caches find the blocks that they name."""
    sampler = ParallelSampler.suited(generator, *recipe_settings(name))
    skipped = max(((sampler.config.head or {}).get("cache") or {}).get("blocks") or [0])
    return max(skipped, sampler.reuse.tokens.layer + 1 if sampler.reuse.tokens.lazy else 0)


def _build(config: Settings) -> AnyGenerator:
    with torch.device("meta"):
        return build_model(config).eval()


def _count(generator: AnyGenerator, name: str, context: AbstractContextManager[object]) -> list[int]:
    """Operations of trunk and head, of one image, counted in the context given."""
    sampler = ParallelSampler.suited(generator, *recipe_settings(name))
    with context:
        counts = count_run(RandomPipeline(generator, None, sampler), sampler)
    return [counts.flops["trunk"], counts.flops["head"]]


def stated(path: Path) -> str | None:
    """The value of `tflops:` in the file itself, not in the one it extends."""
    found = re.search(r"^tflops: (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else None


def state(path: Path, tflops: str) -> None:
    """Write the line `tflops:` in place, after `parameters:` or before `run:`. Keeps comments."""
    text = path.read_text(encoding="utf-8")
    line = f"tflops: {tflops}  # network only, one image\n"
    for pattern, put in (
        (r"^tflops:.*\n", lambda _: line),
        (r"^parameters:.*\n", lambda m: m[0] + line),
        (r"^(?=run:)", lambda _: line),
    ):
        changed, count = re.subn(pattern, put, text, count=1, flags=re.MULTILINE)
        if count:
            return write_text(path, changed)
    raise MgenError(f"{path} has none of tflops:, parameters: and run: at the start of a line")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="recipes; default: all")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a number differs")
    parser.add_argument("--exact", action="store_true", help="run every model at its own depth")
    args = parser.parse_args()
    wrong = 0
    for name in args.names or recipe_names():
        path, began = find_recipe(name), time.process_time()
        found = cost(name, exact=args.exact)
        tflops, parameters = f"{found.tflops:.4g}", f"{found.parameters / 1e6:.1f} M"
        problems = []
        if (written := read_config(path)["parameters"]) != parameters:
            problems.append(f"parameters: {written} in the file, {parameters} counted")
        if (old := stated(path)) != tflops and args.check:
            problems.append(f"tflops: {old} in the file")
        elif old != tflops:
            state(path, tflops)
        wrong += bool(problems)
        seconds = time.process_time() - began
        print(
            f"{path.stem:<38} {parameters:>9} {tflops:>8} TFLOPs, {found.head / (found.trunk + found.head):>4.0%} in the head  "
            f"{seconds:5.1f} s  {'; '.join(problems)}",
            flush=True,
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MgenError as error:
        sys.exit(f"recipe_costs: error: {error}")
