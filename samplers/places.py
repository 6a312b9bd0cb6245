"""Which positions a step is for. Notation: B images, L positions, M positions drawn in a step."""

import torch
from torch import Tensor

from mgen.samplers.reuse import Reuse
from mgen.samplers.state import State
from mgen.samplers.timetable import Phase, Timetable


class Places(State):
    """The state with its timetable; `ranking` (B, L) holds the positions of a fixed order, the first ones first, else None."""

    times: Timetable
    phases: list[Phase]
    ranking: Tensor | None
    reuse: Reuse
    start: int

    def unknown(self, t: int) -> Tensor:
        """Unknown positions (B, M) of the step's phase, ascending; rows with fewer are filled up with others, never revealed."""
        i = t - self.start
        known = self.known
        if self.times.phase[i] != self.times.phase[-1]:  # an earlier phase asks for its own tokens, which stand first
            known = known.clone()
            known[:, self.phases[self.times.phase[i]].stop :] = True
        return known.to(torch.uint8).argsort(dim=1, stable=True)[:, : self.times.wanting[i]]

    def groups(self, groups: list[list[int]]) -> list[list[int]]:
        """Groups of steps, cut where a phase ends."""
        phase = self.times.phase
        return [
            [t for t in g if phase[t - self.start] == p]
            for g in groups
            for p in sorted({phase[t - self.start] for t in g})
        ]

    def next(self, group: list[int], count: int) -> Tensor:
        """The next `count` positions (B, count) of a fixed order; rows that reveal fewer are filled up with others, not revealed now."""
        assert self.ranking is not None
        place = torch.arange(count, device=self.ranking.device)
        i = group[0] - self.start
        chosen = self.ranking.gather(1, (self.times.done[i].unsqueeze(1) + place) % self.length)
        if self.reuse.inside == "order" or not count:
            return chosen
        own = self.times.reveal[i : i + len(group)].sum(0).unsqueeze(1)  # fillers stay behind
        return (chosen + self.length * (place >= own)).sort(dim=1).values % self.length
