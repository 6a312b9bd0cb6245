"""Types and rules of the sizes that the configurations of networks share."""

from typing import Annotated

from pydantic import Field

from mgen.utils.errors import MgenError

Ratio = Annotated[float, Field(ge=0.25, le=64)]  # hidden width of an MLP over its width
Epsilon = Annotated[float, Field(gt=0, le=0.1)]  # of a norm


def check_heads(width: int, heads: int, *, width_name: str = "dim", name: str = "heads") -> None:
    """Raise MgenError unless so many attention heads divide the width."""
    if width % heads:
        fits = [h for h in (1, 2, 3, 4, 6, 8, 12, 16) if width % h == 0]
        raise MgenError(f"{name} {heads} does not divide {width_name} {width}: give a divisor, such as {fits}")
