"""Whether a network fits in memory, before any is allocated."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Concatenate, ParamSpec

import torch
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from mgen.utils.errors import MgenError
from mgen.utils.limits import available_memory, check_memory, in_gb
from mgen.utils.schema import checked

P = ParamSpec("P")
SMALL = 3 * 10**10  # bytes by `_upper_bound`, which is some hundred times too high for most networks


class _TooLarge(Exception):
    """Stops the construction of a network that can't fit."""


def check_fits(make: Callable[[], torch.nn.Module], settings: object, what: str, *, saved: int | None = None) -> None:
    """Raise MgenError if the weights of the network that `make` builds don't fit in memory, with the number.

    With `saved`, the bytes of a file with its weights, also if they don't fit that.

    A network that may be large by the numbers in its settings is built without memory first, on torch's device "meta": tensors have
    a shape there and no values. That draws no random numbers, and finds whatever else its constructors raise errors for.
    """
    small = SMALL if saved is None else min(SMALL, 2000 * saved)
    if _upper_bound(settings) < small or torch.get_default_device().type == "meta":
        return
    # Files hold 16 bits of a number at least, and no tables that are computed.
    most, size = available_memory() if saved is None else 4 * saved + 10**6, 0

    def count(module: torch.nn.Module, name: str, value: torch.Tensor | None) -> None:
        nonlocal size
        size += 0 if value is None else value.numel() * value.element_size()
        if size > 2 * most:  # no need to see the rest; layers that are replaced later count twice
            raise _TooLarge

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        with torch.device("meta"):
            size = memory_of(make())
    except _TooLarge:
        pass
    except MgenError:
        raise
    except Exception:  # a layer that can't be built without values
        return
    finally:
        for hook in hooks:
            hook.remove()
    if saved is not None and size > most:
        raise MgenError(
            f"it describes a network of {in_gb(size)} or more, and the weights beside it have {in_gb(saved)}"
        )
    check_memory(size, f"the weights of {what}", "make it smaller, such as its width or its number of layers")


def checked_network(init: Callable[Concatenate[Any, P], None]) -> Callable[Concatenate[Any, P], None]:
    """Decorator of a network's constructor, below `register_to_config`: arguments are checked against their annotations
    (mgen.utils.schema), and one that can't fit in memory raises an error before a tensor is made."""

    @functools.wraps(init)
    def call(self: Any, *args: P.args, **kwargs: P.kwargs) -> None:
        check_fits(lambda: type(self)(*args, **kwargs), self.config, f"this {type(self).__name__}")
        init(self, *args, **kwargs)

    return checked(call)


def memory_of(model: torch.nn.Module) -> int:
    """Bytes of a network's weights and buffers."""
    return sum(x.numel() * x.element_size() for values in (model.parameters(), model.buffers()) for x in values)


def _upper_bound(settings: object) -> float:
    """More bytes than any network with these settings has: weights are numbered by products of two sizes, for some layers."""
    first, second, *rest = sorted((*_numbers(settings), 1.0, 1.0, 1.0), reverse=True)
    return 4 * 40 * first * second * sum(rest)


def _numbers(settings: object) -> Iterator[float]:
    if isinstance(settings, Mapping):
        for value in settings.values():
            yield from _numbers(value)
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _numbers(value)
    elif isinstance(settings, int | float) and not isinstance(settings, bool):
        yield min(abs(settings), 1e30)
