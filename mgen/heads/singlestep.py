"""Singlestep DPM-Solver++ for the diffusion heads: a few long steps of order 1 … 3 that forget each other.

Lu et al., "DPM-Solver++" (arXiv 2211.01095, algorithm 1, and appendix E for the third order; data prediction), as eMIGM
(arXiv 2503.07197) draws tokens with it. Of all intermediate answers of the network only those of the same outer step are used.

Our own: diffusers' DPMSolverSinglestepScheduler takes the second inner state of a third-order step by the second-order formula,
spaces calls by one rule and not by outer steps, and knows neither the cut schedule nor the stretched timesteps below.

Notation: λ = log(signal / noise), half the log signal-to-noise ratio; N calls of the network.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mgen.heads.chains import LEAST_SNR, Chain, ChainSettings, Tables
from mgen.utils.errors import MgenError


@dataclass(frozen=True)
class Call:
    """What follows the answer m of a call: a · x_s + b · m_s, plus c · (m − m_s) where the outer step has begun before it.

    x_s and m_s are the state and the network's clean token at the beginning of the outer step.
    """

    a: float
    b: float
    c: float | None = None


class SinglestepChain(Chain):
    """N calls, grouped into outer steps that are equally long in λ whatever their order.

    Attributes:
        orders: of the outer steps. outer_times: where they begin, and where the last one ends; times: of the calls; in (0, 1].
        total: timesteps of the schedule that are kept: those with λ below −5.1 are left out (4 of 1000), as published.
    """

    def __init__(self, settings: ChainSettings, tables: Tables) -> None:
        self.check_steps(settings, tables)
        self.full = _Schedule(tables)
        self.settings, self.orders, self.total = settings, outer_orders(settings.steps, settings.order), self.full.total
        ends = np.linspace(self.full.snr[-1], self.full.snr[0], len(self.orders) + 1)
        places: list[float] = []
        self.calls: list[Call] = []
        for order, s, t in zip(self.orders, ends, ends[1:]):
            inner = [s + (t - s) * i / order for i in range(order)]
            places += inner
            self.calls += _outer_step(order, [*inner, t])
        snr = np.array(places)
        self.outer_times, self.times = self.full.times(ends), self.full.times(snr)
        self.tables = Tables.of(_signal(snr[::-1]) ** 2)
        # The published labels: entry i of the cut schedule is called i · 1000 / 996, up to four steps too much.
        self.timesteps = [float((t - 1 / self.total) * len(tables.betas)) for t in self.times]
        self.scheduler = None
        self._began: tuple[Tensor, Tensor] | None = None

    def begin(self) -> None:
        self._began = None

    def step(
        self, j: int, x: Tensor, eps: Tensor, v: Tensor | None, noise: Tensor | None, temperature: float
    ) -> Tensor:
        """The state of call j + 1, after the last the token; arguments as in Chain. Nothing is random after the start."""
        call, clean = self.calls[j], self.clean(self.settings.steps - 1 - j, x, eps)
        if call.c is None:
            self._began = x, clean
            return call.a * x + call.b * clean
        assert self._began is not None
        start, first = self._began
        return call.a * start + call.b * first + call.c * (clean - first)


class _Schedule:
    """The timesteps with λ of at least −5.1; log-signal is linear in time between entry i at (i + 1) / total and the next."""

    def __init__(self, tables: Tables) -> None:
        snr = np.log(tables.signal / tables.noise)
        self.snr = snr[snr >= LEAST_SNR]
        self.total = len(self.snr)
        if self.total < 2:
            raise MgenError("head.chain of single steps needs a head with at least 2 training steps: use ancestral")
        self.log_signal = np.log(tables.signal[: self.total])

    def times(self, snr: np.ndarray) -> np.ndarray:
        entries = np.arange(1, self.total + 1) / self.total
        return np.interp(np.log(_signal(snr)), self.log_signal[::-1], entries[::-1])


def outer_orders(calls: int, order: int) -> list[int]:
    """Orders of the outer steps that make so many calls: as many of the highest as fit, then lower ones, at last a 1 or a 2."""
    full, rest = divmod(calls, order)
    if order == 3 and not rest:
        return [3] * (full - 1) + [2, 1]
    return [order] * full + ([rest] if rest else [])


def make_chain(settings: ChainSettings, tables: Tables) -> Chain:
    """The chain that the settings name."""
    return SinglestepChain(settings, tables) if settings.order else Chain(settings, tables)


def _signal(snr: np.ndarray) -> np.ndarray:
    return np.exp(-np.log1p(np.exp(-2 * snr)) / 2)


def _outer_step(order: int, snr: list[float]) -> list[Call]:
    """The calls of one outer step at λ snr[0], snr[1], … that ends at snr[-1]."""
    places = np.array(snr)
    signal = _signal(places)
    noise = signal * np.exp(-places)
    h = places[-1] - places[0]
    out: list[Call] = []
    for i in range(1, order + 1):
        r = i / order
        decay = float(np.expm1(-r * h))
        a, b, c = float(noise[i] / noise[0]), float(-signal[i] * decay), None
        if order == 2 and i == 2:
            c = float(-signal[i] * decay)  # divided by 2r of the inner state, which is 1
        elif order == 3 and i == 2:
            c = float(2 * signal[i] * (decay / (r * h) + 1))
        elif order == 3 and i == 3:
            c = float(signal[i] * (decay / h + 1) * 1.5)
        out.append(Call(a, b, c))
    return out
