"""Floating-point operations of a training step, and the most that the device can do: their quotient is the MFU of the logs.

MFU, model FLOPs utilization, is 3 × the forward pass of the model (the backward pass takes two more) × images per second over the matmul
peak (Chowdhery et al., "PaLM", arXiv 2204.02311, appendix B). What is computed twice to save memory does not count, and neither do
frozen networks beside the model and the optimizer. Where weights of the model itself are frozen (LoRA, optim.freeze) the backward pass
takes less than two more, and the MFU is too high. One multiplication and addition are 2 FLOPs.
"""

import functools
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mgen.nn.peak import fastest_product
from mgen.training.noise import Augmentation, Noise
from mgen.training.trainer import Trainer
from mgen.utils import seeds
from mgen.utils.compiling import uncompiled
from mgen.utils.modeling import DTYPES

DRAWS = 64  # of masks, among which the most ordinary one is counted
# Dense bf16 and fp16 FLOP/s by the datasheets of NVIDIA; the first name whose words stand in that of the device counts.
CARDS = {
    "B200": 2250e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "GH200": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "A40": 150e12,
    "A10G": 125e12,
    "A10": 125e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
OTHERS = re.compile(r"\b(Ti|D|Laptop|MIG|GRID)\b")  # variants and parts of these cards, which have other numbers


@dataclass(frozen=True, kw_only=True)
class Peak:
    """FLOP/s of matrix products on one device, and where the number is from: "measured" at the start of the run, or "datasheet"."""

    flops: float
    source: str


def forward_flops(trainer: Trainer) -> float:
    """FLOPs of the model's forward pass for one image, with as many masked tokens as in the mean over many steps."""
    objective, device = trainer.objective, trainer.device
    noise = _ordinary(
        [objective.make_noise(1, seeds.generator(0, "flops", i), augmentation=Augmentation()) for i in range(DRAWS)]
    )
    noise = objective.add_row_noise(noise, slice(0, 1), 0, "flops").to(device)
    batch = trainer.to_device(trainer.task.train_data.__getitems__([0]))
    objective.eval()  # nothing is drawn or counted then
    # The math form shows its two products to the counter; fused kernels have the same number of operations.
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
        uncompiled(),
        torch.no_grad(),
        trainer.parallel.weights_in_use(objective),
        trainer.accelerator.autocast(),
    ):
        objective(batch, noise, trainer.step_options(0))
    objective.train()
    # Tokenizers are called by their methods, of which the counter knows nothing: then all networks count.
    own = counter.get_flop_counts().get(f"{type(objective).__name__}.model", {})
    return float(sum(own.values()) or counter.get_total_flops())


def _ordinary(noises: list[Noise]) -> Noise:
    """The noise whose number of masked tokens is nearest to the mean; the first one where there are no masks."""
    known = [getattr(noise, "known", None) for noise in noises]
    counts = [int(value.sum()) for value in known if isinstance(value, Tensor)]
    if len(counts) != len(noises):
        return noises[0]
    mean = sum(counts) / len(counts)
    return noises[min(range(len(counts)), key=lambda i: abs(counts[i] - mean))]


def matmul_peak(device: torch.device, precision: str, *, clock: Callable[[], float] = time.perf_counter) -> Peak:
    """The peak of one device in the precision of a run; of cards that are not in CARDS, and in fp32, it is measured.

    clock: seconds, of measurements on a CPU.
    """
    if device.type == "cuda" and precision != "fp32":
        name = torch.cuda.get_device_name(device)
        if (flops := listed(name)) is not None:
            return Peak(flops=flops, source="datasheet")
    return Peak(flops=_measured(device, DTYPES[precision], clock, torch.get_num_threads()), source="measured")


def listed(name: str) -> float | None:
    """FLOP/s of the card with this name, such as "NVIDIA A100-SXM4-80GB", by CARDS; None: it is another one."""
    if OTHERS.search(name):
        return None
    return next((flops for card, flops in CARDS.items() if re.search(rf"(?<!\w){card}(?!\w)", name)), None)


@functools.cache
def _measured(device: torch.device, dtype: torch.dtype, clock: Callable[[], float], threads: int) -> float:
    """FLOP/s of the fastest of some square matrix products, measured once in a process."""
    return fastest_product(dtype, device, side=768 if device.type == "cpu" else 8192, least=6, clock=clock)
