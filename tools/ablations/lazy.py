"""What the caches of LazyMAR gain (arXiv 2503.12450): lazy steps beside full ones, and a run with them beside the plain run.

Unlike the other ablations these are approximations: results differ by design and are not compared.
"""

import torch

from mgen.generators.generator import Generator
from mgen.generators.masked_autoencoder import AutoencoderCache
from mgen.nn import LazyStep
from mgen.nn.precision import computing
from mgen.samplers import ParallelSampler
from mgen.utils.modeling import DTYPES
from tools.ablations.compare import AblationTable
from tools.ablations.diffusion import known_state


def add_rows(table: AblationTable, generator: Generator, sampler: ParallelSampler, batch_size: int, dtype: str) -> None:
    """Add a row for the first, the middle and the last lazy step of the plan, and one for a complete run, plain in fp32."""
    steps = sampler.plan(generator).steps
    lazy = [i for i, step in enumerate(steps) if step.kind == "lazy"]
    for i in sorted({lazy[0], lazy[len(lazy) // 2], lazy[-1]}):
        _add_step(table, generator, sampler, batch_size, i)
    class_ids = torch.arange(batch_size, device=generator.device) % generator.num_classes
    plain = sampler.override(reuse={"condition": {}, "tokens": {}}, head={"cache": {}})

    def run(which: ParallelSampler, cast: str) -> None:
        noise = which.make_noise(generator, range(batch_size)).to(generator.device)
        with computing(generator, DTYPES[cast], generator.device):
            for _ in which(generator, class_ids, noise=noise):
                pass

    c = sampler.config
    name = f"all caches: {c.steps} steps × {(c.head or {}).get('steps', 100)} head steps, batch {batch_size}"
    table.add(name, lambda: run(plain, "fp32"), lambda: run(sampler, dtype), 1)


def _add_step(table: AblationTable, generator: Generator, sampler: ParallelSampler, batch_size: int, i: int) -> None:
    """Add a row for step i of the plan: the passes of the trunk alone."""
    step, before = sampler.plan(generator).steps[i], sampler.plan(generator).steps[i - 1]
    assert step.pruning is not None
    visible, p, length = step.visible[0], before.count, generator.units.length
    tokens, seen, class_ids, order = known_state(generator, batch_size, (visible - p) / length)
    guided = step.guidance is not None
    tokens, seen, order, ids = (torch.cat([x, x]) if guided else x for x in (tokens, seen, order, class_ids))
    if guided:
        ids[batch_size:] = generator.null_ids(class_ids)
    latest, drawn = order[:, visible - p : visible], order[:, visible : visible + step.count]
    known = seen.scatter(1, latest, True)
    cache = generator.start(ids, null_rows=batch_size if guided else 0)
    assert isinstance(cache, AutoencoderCache)
    generator.context(tokens, seen, ids, positions=latest, visible=(visible - p,) * 2, cache=cache, keep=p)
    rows = slice(None if step.null_rows else batch_size)
    lazy = LazyStep(latest=latest[rows], drawn=drawn[rows], pruning=step.pruning)

    def full() -> None:
        generator.context(tokens, known, ids, positions=drawn, visible=(visible, visible), cache=generator.start(ids))

    def ours() -> None:
        cache.visible = visible - p
        generator.lazy_step(tokens[rows], known[rows], ids[rows], cache, lazy)

    halves = "both halves" if step.null_rows else "the class's half" if guided else "no guidance"
    share = f"{step.pruning.share:g} of the rows behind block {step.pruning.layer}"
    table.add(f"trunk: step {step.index + 1} lazily, {visible} tokens known, {share}, {halves}", full, ours)
