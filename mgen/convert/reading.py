"""The result of renaming an official file's tensors."""

from dataclasses import dataclass, field

from torch import Tensor

from mgen.utils.weights import State, read_state_dict, read_weights

__all__ = ["Renamed", "State", "read_state_dict", "read_weights"]


@dataclass
class Renamed:
    """Our state, the official name → our name of every tensor, the ignored ones with the reason, and notes for the user."""

    state: State = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def put(self, official: str, ours: str, value: Tensor) -> None:
        self.state[ours] = value.contiguous()
        self.names[official] = ours
