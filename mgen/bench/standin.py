"""Stand-ins: an object with some of its attributes replaced, for measuring a sampler's run without changing the model."""

from typing import Any


class StandIn:
    """`inner` with `replaced` attributes; everything else is the inner object's own."""

    def __init__(self, inner: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced)
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying and pickling ask for these before there is an inner object
            raise AttributeError(name)
        return getattr(self._inner, name)
