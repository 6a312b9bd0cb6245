"""Ablations: what each exact optimization of a generator gains over the plain form, in one run.

The plain form is the computation as one writes it first: every step of the chain runs the whole network, embeddings of time and
condition included, for both halves of the guidance, each half with a state of its own; the trunk's last block runs at every position;
positions to draw are looked up with `nonzero`; in training every token passes the head. Results are the same up to rounding.

    python -m tools.ablations --help
"""

from typing import Any

import torch

from mgen.bench.proxy import AnyGenerator
from mgen.generators.cascade import Cascade
from mgen.generators.trunks.block_causal import BlockCausal
from mgen.heads.categorical import CategoricalHead
from mgen.heads.channels import ChannelHead
from mgen.heads.composite import VectorWindowHead
from mgen.heads.diffusion import DiffusionHead
from mgen.heads.diffusion_transformer import DiffusionTransformerHead
from mgen.heads.head import Head
from mgen.samplers import ParallelSampler
from mgen.utils.errors import MgenError
from tools.ablations import causal, channels, diffusion, entities, joint, lazy, masked, permuted
from tools.ablations.compare import AblationTable, Row, complete_run, format_table

__all__ = ["ablations", "check", "format_table", "prepare"]


def check(generator: AnyGenerator) -> None:
    """MgenError unless there is a plain form to compare this generator with."""
    if isinstance(generator, Cascade):
        heads = generator.first.head, generator.second.head
        fits = isinstance(heads[0], DiffusionHead) and isinstance(heads[1], DiffusionTransformerHead)
    elif generator.capabilities.denoises:
        fits = isinstance(generator.trunk, BlockCausal)
    elif generator.capabilities.one_by_one:
        fits = generator.units.kind != "vector"
    else:
        fits = isinstance(_inner(generator.head), DiffusionHead | ChannelHead)
        fits |= isinstance(generator.head, CategoricalHead) and not generator.capabilities.carried_features
    if not fits:
        raise MgenError(
            "ablations are for generators of ids that carry no features, for xAR, for those with a diffusion or a channel head, and for "
            "cascades of a diffusion and a joint head: use a model such as llamagen-l, rar-b, titok-l32, xar-b, mar-b, tokenbridge-l or "
            "himar-b"
        )


def prepare(generator: AnyGenerator, sampler: ParallelSampler) -> ParallelSampler:
    """Give the heads of a new generator weights with which draws differ, so that comparing them says something.

    Returns:
        the sampler to draw with: without a bound a head with random weights explodes, and its answers no longer matter to the result.
    """
    check(generator)
    if not isinstance(generator, Cascade) and generator.capabilities.denoises:
        return sampler
    if not isinstance(generator, Cascade) and generator.units.kind != "vector":
        (permuted if generator.capabilities.order == "sequential" else causal).randomize(generator)
    heads = [generator.first.head, generator.second.head] if isinstance(generator, Cascade) else [generator.head]
    for head in map(_inner, heads):
        if isinstance(head, DiffusionHead):
            diffusion.randomize(head)
        elif isinstance(head, DiffusionTransformerHead):
            joint.randomize(head)
        elif isinstance(head, ChannelHead):
            channels.randomize(head)
    settings = _clipped(sampler.settings, generator.head)
    if isinstance(generator, Cascade) and settings.get("first_stage"):
        settings["first_stage"] = _clipped(dict(settings["first_stage"]), generator.first.head)
    return ParallelSampler(**settings)


def _inner(head: Head) -> Head:
    return head.inner if isinstance(head, VectorWindowHead) else head


def _clipped(settings: dict[str, Any], head: Head) -> dict[str, Any]:
    return settings if head.has_log_prob else {**settings, "head": {"clip": 5.0, **(settings.get("head") or {})}}


def ablations(
    generator: AnyGenerator, sampler: ParallelSampler, *, batch_size: int, repeats: int, dtype: str = "fp32"
) -> list[Row]:
    """One row per optimization, measured alone at half of the decoding, then rows with all of them.

    Args:
        dtype: "bf16" or "fp16" adds a row for the complete run in that type, beside the plain form in fp32.

    Raises:
        MgenError: see `check`.
    """
    check(generator)
    table = AblationTable(generator.device, repeats)
    with torch.inference_mode():
        if isinstance(generator, Cascade):
            _add_cascade(table, generator, sampler, batch_size, dtype)
        elif sampler.reuse.tokens.lazy:
            lazy.add_rows(table, generator, sampler, batch_size, dtype)
        elif generator.capabilities.denoises:
            entities.add_rows(table, generator, sampler, batch_size, dtype)
        elif generator.capabilities.order == "sequential":
            permuted.add_rows(table, generator, sampler, batch_size, dtype)
        elif generator.capabilities.order == "causal":
            causal.add_rows(table, generator, sampler, batch_size, dtype)
        elif isinstance(generator.head, CategoricalHead):
            masked.add_rows(table, generator, sampler, batch_size, dtype)
        elif isinstance(generator.head, ChannelHead):
            channels.add_rows(table, generator, sampler, batch_size, dtype)
        else:
            diffusion.add_rows(table, generator, sampler, batch_size, dtype)
    return table.rows


def _add_cascade(
    table: AblationTable, generator: Cascade, sampler: ParallelSampler, batch_size: int, dtype: str
) -> None:
    head = generator.second.head
    assert isinstance(head, DiffusionTransformerHead)
    table.prefix = "first stage: "
    diffusion.add_single(table, generator.first, sampler.first_stage or sampler, batch_size)
    table.prefix = ""
    joint.add_rows(table, head, sampler.longest_head, batch_size)
    plain, name = joint.plain_stages(generator), joint.settings_in_words(sampler)
    complete_run(table, generator, sampler, batch_size, dtype, plain=plain, name=name)
