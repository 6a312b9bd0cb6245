"""Ctrl-C and SIGTERM in a training: the step is finished and a checkpoint written; a second signal stops at once."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Self

import torch
from accelerate import Accelerator

from mgen.utils.errors import Terminated

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


class StopRequest:
    """While it is entered, the first signal is only noted. Outside of the main thread, where signals never arrive, it does nothing."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.received: list[int] = []
        self.first = 0.0  # when the first signal came
        self.answer: _Answer | None = None

    def __enter__(self) -> Self:
        self.usual = {}
        if threading.current_thread() is threading.main_thread():
            self.usual = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.usual.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A Ctrl-C reaches all processes of a terminal, and a launcher then passes it on: that is no second wish.
        settled = 1.0 if self.accelerator.num_processes > 1 else 0.0  # seconds
        again = bool(self.received) and time.monotonic() - self.first > settled
        self.first = time.monotonic() if not self.received else self.first
        self.received.append(number)
        if again:
            raise INTERRUPTS[signal.Signals(number)]("stopped at once, without a new checkpoint")
        if self.accelerator.is_main_process:
            # Not by print: the signal may have come amid one.
            os.write(2, b"\nmgen: stopping after this step, with a checkpoint; the same again stops at once\n")

    def agreed(self) -> int:
        """The signal after which all processes stop now, or 0. To be called by all of them, after the same steps.

        Processes on GPUs agree one step late: the answer to the question of the step before is there already, and nobody waits.
        """
        mine = max(self.received, default=0)
        if self.accelerator.num_processes == 1:
            return mine
        number = torch.tensor(mine, device=self.accelerator.device)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        if number.device.type != "cuda":
            return int(number)
        answer, self.answer = self.answer, _Answer(number)
        return 0 if answer is None else answer.read()

    @staticmethod
    def interrupt(number: int, text: str) -> KeyboardInterrupt:
        """The exception that ends a command stopped by this signal."""
        return INTERRUPTS[signal.Signals(number)](text)


class _Answer:
    """A number on its way from the GPU."""

    def __init__(self, number: torch.Tensor) -> None:
        self.number = torch.empty((), dtype=number.dtype, pin_memory=True)
        self.number.copy_(number, non_blocking=True)
        self.there = torch.cuda.Event()
        self.there.record()

    def read(self) -> int:
        self.there.synchronize()
        return int(self.number)
