"""A generator with windows of tokens (Token-Shuffle) from one without: the start of a fine-tuning.

A trunk over windows cannot compute what one over tokens does. What is kept: all weights; the pair around the trunk, whose compression
is the principal components of the embeddings, so that together they give every embedding back as well as D / s² numbers can; residual
MLPs that do nothing yet; tables of positions by token as means over windows. With side 1 the function is the same.
"""

from dataclasses import asdict

import torch
from torch import Tensor

from mgen.generators import Generator
from mgen.generators.build import WindowsConfig, build_model
from mgen.heads import VectorWindowHead
from mgen.nn import TokenShuffle, TokenUnshuffle, Windows
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError
from mgen.utils.schema import build

SAMPLES = 8192  # embeddings from which the components are taken


@torch.no_grad()
def shuffled(source: Generator, settings: Settings) -> tuple[Generator, float]:
    """A copy of a generator with windows of tokens, and the share of the embeddings' variance that it keeps.

    Args:
        settings: see mgen.generators.build.WindowsConfig; side is 2 unless given.

    Raises:
        MgenError: a generator that cannot have windows or has some already, a width or grid that they do not fit.
    """
    if not isinstance(source, Generator):
        raise MgenError("windows are for generators of one stage")
    if source.config["windows"] is not None:
        raise MgenError(f"this generator has windows of {source.config['windows']['side']} already: give one without")
    chosen = build(WindowsConfig, {"side": 2, **settings})
    config = {key: source.config[key] for key in Generator.config_keys()}
    made, side = build_model({**config, "windows": asdict(chosen)}), chosen.side
    assert isinstance(made, Generator)
    if side == 1:
        made.load_state_dict(source.state_dict())
        return made.eval(), 1.0
    windows, target = Windows(source.tokens.grid or (0, 0), side), made.state_dict()
    for name, value in source.state_dict().items():
        part, rest = name.split(".", 1)
        wrapped = f"{part}.inner.{rest}"
        name = wrapped if wrapped in target else name
        if name not in target:
            continue
        if target[name].shape == value.shape:
            target[name].copy_(value)
        elif isinstance(made.head, VectorWindowHead) and part == "head":
            target[name].copy_(_joint(value, target[name], windows.side**2))
        else:
            target[name].copy_(_by_window(value, target[name], windows))
    return made.eval(), _fit(made)


def _by_window(table: Tensor, like: Tensor, windows: Windows) -> Tensor:
    """A table of rows in front and of positions (… + L, D), with the mean of every window instead of its tokens."""
    front = len(like) - windows.count
    return torch.cat([table[:front], windows.gather(table[front:].unsqueeze(0))[0].mean(1)])


def _joint(value: Tensor, like: Tensor, parts: int) -> Tensor:
    """A diffusion head's first layer on a window is that of the mean of its tokens; its last gives each token the same."""
    if value.ndim == 2 and value.shape[0] == like.shape[0]:
        return value.repeat(1, parts) / parts  # (W, s²·C)
    halves = value.chunk(2)  # of ε, of the variance
    return torch.cat([half.repeat(parts, *[1] * (value.ndim - 1)) for half in halves])


def _fit(made: Generator) -> float:
    """Set the pair to the principal components of embeddings of random tokens; the share of their variance that these keep."""
    rng, spec = torch.Generator().manual_seed(0), made.tokens
    join = next(m for m in made.modules() if isinstance(m, TokenShuffle))
    count = -(-SAMPLES // spec.length)
    shape = (count, *spec.shape)
    tokens = (
        torch.randn(shape, generator=rng)
        if spec.kind == "vector"
        else torch.randint(spec.vocab_size or 1, shape, generator=rng)
    )
    seen: list[Tensor] = []
    hook = join.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().flatten(0, -2)))
    own = tokens if made.windows is None else made.windows.to_windows(tokens)
    known = torch.ones(own.shape[:2], dtype=torch.bool)
    known[:, 0] = False
    made.eval().context(own, known, torch.zeros(count, dtype=torch.int64))
    hook.remove()
    rows = torch.cat(seen).double()
    mean = rows.mean(0)
    _, sizes, directions = torch.linalg.svd(rows - mean, full_matrices=False)
    width = join.compress.out_features
    chosen = directions[:width].float()
    join.compress.weight.copy_(chosen)
    join.compress.bias.copy_(-chosen @ mean.float())
    for pair in made.modules():
        if isinstance(pair, TokenUnshuffle) and pair.expand.weight.shape == chosen.T.shape:
            pair.expand.weight.copy_(chosen.T)
            pair.expand.bias.copy_(mean)
    return float(sizes[:width].square().sum() / sizes.square().sum())
