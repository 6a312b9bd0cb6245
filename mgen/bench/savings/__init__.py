"""What the exact savings of a generator are worth: each against the plain form, in one run.

The plain form is the computation as one writes it down first: every step of the chain asks the whole network, embeddings of
time and condition included, for both halves of the guidance, each half with a state of its own; the trunk's last block runs at
every position; tokens to draw are looked up with `nonzero`; in training every token passes the head.
"""

from typing import Any

import torch

from mgen.bench.savings import causal, channels, diffusion, map_head
from mgen.bench.savings.compare import Comparison, table, whole
from mgen.heads.channels import ChannelHead
from mgen.heads.diffusion import DiffusionHead
from mgen.heads.transformer import DiffusionTransformerHead
from mgen.samplers import ParallelSampler

__all__ = ["prepare", "savings", "table"]


def prepare(generator: Any, sampler: ParallelSampler) -> ParallelSampler:
    """Give the heads of a new generator weights under which a comparison of draws means something; the sampler to draw with."""
    if generator.causal:
        causal.spread(generator)
    for head in (generator.head, *([generator.pivot_head] if generator.staged else [])):
        if isinstance(head, DiffusionHead):
            diffusion.spread(head)
        elif isinstance(head, DiffusionTransformerHead):
            map_head.spread(head)
        elif isinstance(head, ChannelHead):
            channels.spread(head)

    def clipped(settings: dict[str, Any], head: Any) -> dict[str, Any]:
        # Without a bound a head with random weights explodes, and its answers no longer matter to the result.
        return settings if head.ranks else {**settings, "head": {"clip": 5.0, **(settings.get("head") or {})}}

    settings = clipped(sampler.settings, generator.head)
    if settings.get("pivots"):
        settings["pivots"] = clipped(dict(settings["pivots"]), generator.pivot_head)
    return ParallelSampler(**settings)


def savings(
    generator: Any, sampler: ParallelSampler, *, batch_size: int, repeats: int, dtype: str = "fp32"
) -> list[dict[str, Any]]:
    """One row per saving: its name, seconds of the plain form and with it, their ratio, and the largest difference of the results
    over the largest result (of ids, the share that differs). Single savings are measured at half of the decoding.

    Args:
        dtype: "bf16" or "fp16" adds a row for the complete run under autocast, against the plain form in fp32.
    """
    found = Comparison(generator.device, repeats)
    shared = (found, generator, sampler, batch_size)
    if not (generator.causal or generator.staged or isinstance(generator.head, ChannelHead)):
        diffusion.rows(*shared, dtype)
        return found.rows
    with torch.inference_mode():
        if generator.causal:
            causal.rows(*shared, dtype)
        elif isinstance(generator.head, ChannelHead):
            channels.rows(*shared, dtype)
        else:
            found.prefix = "pivots: "
            diffusion.single(found, generator.first(), sampler.pivot_sampler or sampler, batch_size)
            found.prefix = ""
            map_head.rows(*shared)
            plain, name = map_head.plain_stages(generator), map_head.words(sampler)
            whole(*shared, dtype, plain=plain, name=name)
    return found.rows
