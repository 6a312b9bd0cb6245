"""The sampler's policies, a small generator of every kind, and the tables of docs/sampling.md that say which go together.

python -m tests.policies        print both tables, as they stand in docs/sampling.md
"""

from collections.abc import Callable, Mapping
from functools import cache
from itertools import combinations
from typing import Any

import torch

from mgen.generators import Cascade, Generator
from mgen.generators.build import build_model
from mgen.generators.guided import guided
from mgen.samplers import ParallelSampler
from mgen.utils.errors import MgenError
from tests.helpers import tiny_himar, tiny_net, tiny_tokens

Settings = dict[str, Any]

GUIDE = "guide"  # not a setting: another generator whose rows stand in place of those of the null class

POLICIES: dict[str, Settings] = {
    "head steps over time": {"head": {"steps": [3, 2, 2, 2]}},
    "head cache": {"head": {"cache": {"every": 2}}},
    "token selection": {
        "stages": [{"tokens": 0.5, "steps": 2}, {"steps": 2, "select": {"share": 0.5, "head_steps": 2}}]
    },
    "guidance interval": {"guidance": {"kind": "constant", "end": 2.0, "interval": [0.2, 0.8]}},
    "autoguidance": {GUIDE: True},
    "condition cache": {"reuse": {"condition": {"every": 2}}},
    "token cache": {"reuse": {"tokens": {"every": 2}}},
    "cached steps": {"reuse": {"cached": 1}},
    "carried features": {"reuse": {"features": True}},
    "stages": {"stages": [{"tokens": 0.5, "steps": 2}, {"steps": 2}]},
    "counts binomial": {"counts": "binomial"},
    "remask, kept counts": {"remask": {"kind": "cap", "eta": 0.3, "counts": "kept"}},
    "remask, free counts": {"remask": {"kind": "cap", "eta": 0.3, "counts": "free"}, "order": "random"},
    "order confidence": {"order": "confidence"},
    "order moment": {"order": "moment"},
    "order remasking": {"order": "remasking"},
    "order random": {"order": "random"},
    "order halton": {"order": "halton"},
    "order checkerboard": {"order": "checkerboard"},
}
# Policies that are values of one setting: of these only one can be given.
SAME = [
    {name for name in POLICIES if name.startswith("order ")} | {"remask, free counts"},
    {"remask, kept counts", "remask, free counts"},
    {"stages", "token selection"},
]


def _vectors(trunk: str, **sections: Any) -> Generator:
    return tiny_net(trunk, tokens=tiny_tokens("vector"), **sections)


def _entities() -> Generator:
    sizes = dict(dim=32, encoder_depth=1, encoder_heads=2, decoder_depth=2, decoder_heads=2, hidden=48)
    trunk = {"type": "block-causal", **sizes, "entity": "cell", "size": [2, 2], "attn_dropout": 0.0, "dropout": 0.0}
    return build_model(
        {"tokens": tiny_tokens("vector"), "classes": {"count": 3}, "trunk": trunk, "head": {"type": "velocity"}}
    ).eval()


GENERATORS: dict[str, Callable[[], Generator | Cascade]] = {
    "uvit": lambda: tiny_net("uvit"),
    "bert": lambda: tiny_net("bert", classes={"null_class": True}),
    "mage": lambda: tiny_net("mage"),
    "mae, ids": lambda: tiny_net("mae"),
    "enat": lambda: tiny_net("enat"),
    "adaln": lambda: tiny_net("adaln"),
    "causal": lambda: tiny_net("causal"),
    "permuted": lambda: tiny_net("permuted"),
    "mae, diffusion": lambda: _vectors("mae"),
    "mae, flow": lambda: _vectors("mae", head={"type": "flow", "width": 32, "depth": 2}),
    "mae, channels": lambda: tiny_net("mae", tokens=tiny_tokens("multi-index")),
    "uvit, windows": lambda: tiny_net("uvit", windows={"side": 2}),
    "mae-two-stage": lambda: tiny_himar(side=4),
    "block-causal": _entities,
}


@cache
def generator(name: str) -> Generator | Cascade:
    """One of GENERATORS, made once."""
    torch.manual_seed(0)
    return GENERATORS[name]()


@cache
def guide_of(name: str) -> Generator | Cascade:
    """Another one of the kind."""
    torch.manual_seed(1)
    return GENERATORS[name]()


def merged(*settings: Settings) -> Settings:
    """Settings together; entries of mappings that stand for one policy each are joined."""
    out: Settings = {}
    for own in settings:
        for key, value in own.items():
            old = out.get(key)
            joined = isinstance(old, Mapping) and isinstance(value, Mapping) and key in ("head", "reuse")
            out[key] = merged(old, value) if joined else value
    return out


def base(net: Generator | Cascade) -> Settings:
    """Settings with few steps that suit a generator, guided where it can be."""
    able = net.capabilities
    own: Settings = {} if net.null_class is None else {"guidance": 2.0}
    if not able.log_prob:
        own["head"] = {"steps": 2} if able.denoises else {"steps": 3, "clip": 2.0}
        if able.denoises or "flow" in type(net.head).__name__.lower():
            own["head"] = {"steps": 3}
    if any(getattr(getattr(part, "config", None), "mask_drawn", False) for part in net.head.modules()):
        own["head"] = {"mask": False}  # a drawn mask is no token
    if able.carried_features:
        own["reuse"] = {"features": False}
    return own if able.one_by_one else {"steps": 4, **own}


def outcome(name: str, *policies: str) -> str:
    """Empty if the generator draws with these policies, else the error. What is drawn is checked."""
    net = generator(name)
    settings = merged(base(net), *(POLICIES[policy] for policy in policies))
    if settings.pop(GUIDE, False):
        net = guided(net, guide_of(name))
    try:
        sampler = ParallelSampler.suited(net, settings)
        noise = sampler.make_noise(net, [0])
        *_, last = sampler(net, torch.tensor([1]), noise=noise)
    except MgenError as error:
        return str(error)
    assert last.known.all() and last.tokens.isfinite().all(), (name, policies, last.known.all())
    return ""


def pairs() -> list[tuple[str, str]]:
    """Pairs of policies of which both can be given."""
    return [pair for pair in combinations(POLICIES, 2) if not any(one >= set(pair) for one in SAME)]


@cache
def alone(policy: str) -> tuple[str, ...]:
    """Names of the generators that draw with a policy."""
    return tuple(name for name in GENERATORS if not outcome(name, policy))


@cache
def together(a: str, b: str) -> dict[str, str]:
    """Of every generator that draws with each of two policies, the outcome of both."""
    return {name: outcome(name, a, b) for name in alone(a) if name in alone(b)}


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def trunks_table() -> str:
    """Policies by generators."""
    rows = [[policy, *("✓" if name in alone(policy) else "–" for name in GENERATORS)] for policy in POLICIES]
    return table(["", *GENERATORS], rows)


def pairs_table() -> str:
    """Policies by policies: ✓ with every generator that takes both, – with none, (✓) with some; empty: there is no such generator."""
    known = set(pairs())

    def cell(a: str, b: str) -> str:
        pair = (a, b) if (a, b) in known else (b, a)
        if pair not in known or not (found := [*together(*pair).values()]):
            return ""
        return "–" if all(found) else "(✓)" if any(found) else "✓"

    names = list(POLICIES)
    rows = [[f"{i + 1} {name}", *(cell(name, other) for other in names)] for i, name in enumerate(names)]
    return table(["", *(str(i + 1) for i in range(len(names)))], rows)


if __name__ == "__main__":
    print(trunks_table(), pairs_table(), sep="\n\n")
