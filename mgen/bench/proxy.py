"""Proxies: an object with some of its attributes replaced, to time or count a sampler's run without changing the model."""

from collections.abc import Callable
from typing import TypeVar, cast

from torch import Tensor

from mgen.generators.cascade import Cascade
from mgen.generators.generator import Generator

AnyGenerator = Generator | Cascade
T = TypeVar("T")
Wrap = Callable[[str, Callable[..., Tensor]], Callable[..., Tensor]]  # part of the run, its function


class Proxy:
    """`inner` with `replaced` attributes; everything else is the inner object's own."""

    def __init__(self, inner: object, **replaced: object) -> None:
        self.__dict__.update(replaced)
        self._inner = inner

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What isinstance sees: a proxy of a cascade is sampled as one."""
        return self._inner.__class__

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # copying and pickling ask for these before there is an inner object
            raise AttributeError(name)
        return getattr(self._inner, name)


def proxy(inner: T, **replaced: object) -> T:
    """A `Proxy`, which passes for an object of the inner one's class, with isinstance and with type checkers."""
    return cast(T, Proxy(inner, **replaced))


def watched(generator: AnyGenerator, stage: Callable[[Generator], Generator], wrap: Wrap) -> AnyGenerator:
    """A proxy of a generator by `stage`; of a cascade both stages are, and the pass between them goes through `wrap`."""
    if not isinstance(generator, Cascade):
        return stage(generator)
    first, second = stage(generator.first), stage(generator.second)
    return proxy(
        generator,
        first=first,
        second=second,
        head=second.head,
        guided_head=second.guided_head,
        prefix=wrap("trunk", generator.prefix),
    )
