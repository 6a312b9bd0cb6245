"""Weights of linear layers laid out for the CPU's matrix kernels of oneDNN, the library that torch computes bf16 with.

Layers stay as they are: such a weight stands in the place of the parameter, and `F.linear`, which `nn.Linear` calls, finds the kernel by
torch's protocol for tensor subclasses. docs/experiments/precision.md has what it gains.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from mgen.utils.devices import cpu_bf16_units, cpu_name, cpu_vectors

ONEDNN = torch.backends.mkldnn.is_available()
NEVER = sys.maxsize
# Numbers in a weight from which on a product with it is faster so; calls cost more in fp32. In bf16 the results are bit for bit those of
# the plain weight. In fp32 torch multiplies by MKL: on CPUs of AMD, where this was measured, it is the slower one; others keep it.
FASTER_FROM = {
    torch.bfloat16: 1 if ONEDNN and cpu_bf16_units() in ("AMX", "AVX512_BF16") else NEVER,
    torch.float32: 2**18 if ONEDNN and cpu_vectors() == "AVX512" and "AMD" in cpu_name() else NEVER,
}
LARGEST = 2**31  # bytes of fp32 weights that are laid out, beside which the plain ones stay in memory
WORTH = 16  # products after which a weight is laid out: about what that costs


class PackedWeight(Tensor):
    """A weight (N, K) for `F.linear` without gradients; rows of it are one too, and everything else computes with the plain weight.

    Args:
        plain: fp32 or `dtype`, on a CPU; kept. dtype: of the weight, float32 or bfloat16.
        pack: lay it out for the kernel at the 16th product, which changes no bit. False: use the kernel on the weight as it lies.
    """

    _is_param = True  # a parameter of its layer, as nn.Parameter tells them

    @staticmethod
    def __new__(cls, plain: Tensor, dtype: torch.dtype, *, pack: bool = True) -> Self:  # noqa: ARG004
        return Tensor._make_wrapper_subclass(cls, plain.shape, dtype=dtype, device=plain.device)  # type: ignore[attr-defined,no-any-return]

    def __init__(self, plain: Tensor, dtype: torch.dtype, *, pack: bool = True) -> None:
        self.plain, self.pack = plain, pack
        self.current: Tensor | None = None  # as the next product takes it
        self.products = 0
        self.parts: dict[tuple[int, int], PackedWeight] = {}

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return COMPUTED.get(func, func)(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own stub lacks `func`
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return func(
            *(_dense(value) for value in args), **{name: _dense(value) for name, value in (kwargs or {}).items()}
        )

    def dense(self) -> Tensor:
        """The plain weight in the type of this one."""
        return self.plain.to(self.dtype)

    def rows(self, first: int, stop: int) -> Tensor:
        """Rows of the weight, kept for the next time; plain ones if they are too few to gain anything."""
        if (first, stop) == (0, len(self.plain)):
            return self
        if (first, stop) not in self.parts:
            plain = self.plain[first:stop]
            if plain.numel() < FASTER_FROM[self.dtype]:
                return plain.to(self.dtype)
            self.parts[first, stop] = PackedWeight(plain, self.dtype, pack=self.pack)
        return self.parts[first, stop]

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (…, K) in the type of the weight, times its transpose, plus bias (N): (…, N)."""
        if x.numel() == x.shape[-1] and self.dtype == torch.float32:  # here the layout would change the last bits
            return F.linear(x, self.plain, bias)
        self.products += 1
        if self.current is None or (self.pack and self.products == WORTH):
            with torch.inference_mode(False), torch.no_grad():
                plain = self.dense().contiguous() if self.current is None else self.current
                laid_out = self.pack and self.products >= WORTH
                self.current = torch.ops.mkldnn._reorder_linear_weight(plain) if laid_out else plain
        return torch.ops.mkldnn._linear_pointwise(x, self.current, bias, "none", [], "")  # type: ignore[no-any-return]


def _dense(value: Any) -> Any:
    """An argument with plain weights in place of packed ones."""
    if isinstance(value, PackedWeight):
        return value.dense()
    return type(value)(map(_dense, value)) if type(value) in (list, tuple) else value


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear."""
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else input.dtype
    learning = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (input, bias))
    if not isinstance(weight, PackedWeight) or dtype != weight.dtype or learning:
        return F.linear(_dense(input), _dense(weight), _dense(bias))
    return weight.product(input.to(dtype), None if bias is None else bias.to(dtype))


def _item(weight: Tensor, index: Any) -> Tensor:
    """weight[index]."""
    if isinstance(weight, PackedWeight) and isinstance(index, slice) and index.step in (None, 1):
        first, stop, _ = index.indices(len(weight.plain))
        return weight.rows(first, max(first, stop))
    return _dense(weight)[_dense(index)]  # type: ignore[no-any-return]


def _split(weight: Tensor, size: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """weight.split(size, dim)."""
    if not isinstance(weight, PackedWeight) or not isinstance(size, int) or dim != 0:
        return _dense(weight).split(size, dim)  # type: ignore[no-any-return]
    n = len(weight.plain)
    return tuple(weight.rows(first, min(first + size, n)) for first in range(0, n, size))


COMPUTED: dict[Any, Callable[..., Any]] = {F.linear: _linear, Tensor.__getitem__: _item, Tensor.split: _split}
