"""Proxies: an object with some of its attributes replaced, to time or count a sampler's run without changing the model."""

from typing import Any

from mgen.generators.cascade import Cascade
from mgen.generators.generator import Generator

AnyGenerator = Generator | Cascade


class Proxy:
    """`inner` with `replaced` attributes; everything else is the inner object's own."""

    def __init__(self, inner: object, **replaced: object) -> None:
        self.__dict__.update(replaced)
        self._inner: Any = inner

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # type: ignore[override]
        """What isinstance sees: a proxy of a cascade is sampled as one."""
        return type(self._inner)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying and pickling ask for these before there is an inner object
            raise AttributeError(name)
        return getattr(self._inner, name)
