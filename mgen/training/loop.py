"""The training loop, for every task, on one process or many: steps with what is due after them, from the newest checkpoint on."""

import math
import sys
import time
from pathlib import Path

from tqdm import tqdm

from mgen.training.checkpoints import list_checkpoints, save_checkpoint
from mgen.training.config import TrainConfig
from mgen.training.data import BatchOrder, batches
from mgen.training.estimate import Need, check_step
from mgen.training.lock import locked
from mgen.training.logs import Logger
from mgen.training.nodes import check_same_output
from mgen.training.outputs import evaluate, export, preview
from mgen.training.resume import resume
from mgen.training.speed import Meter
from mgen.training.stopping import StopRequest
from mgen.training.summary import facts, finished, stopped
from mgen.training.tensors import Diverged
from mgen.training.trainer import Trainer
from mgen.utils.changes import told
from mgen.utils.devices import wait_for
from mgen.utils.errors import MgenError
from mgen.utils.files import write_json
from mgen.utils.limits import in_gb, in_time

INIT = "init.json"  # in the output folder: the weights that a run started from, and what of them did not fit


class _Forecast:
    """The line that says, after the first steps, how long a run will take, how much memory, how fast it is, and where it writes."""

    TIMED, SECONDS = 5, 10.0  # steps behind the first one, and the time after which fewer will do

    def __init__(self, memory: Need, meter: Meter, *, start: int) -> None:
        self.memory, self.meter, self.start, self.began, self.told = memory, meter, start, 0.0, False

    def step(self, trainer: Trainer) -> None:
        """To be called after every step."""
        done, left = trainer.step - self.start, trainer.config.steps - trainer.step
        if self.told or done < 1 or left < 1:
            return
        wait_for(trainer.device)  # in these few steps alone
        if done == 1:
            self.began = time.perf_counter()  # the first step is slower than others
            return
        seconds = time.perf_counter() - self.began
        if done > self.TIMED or seconds > self.SECONDS:
            self.told = True
            batch, device, output = trainer.config.batch_size, trainer.device, trainer.output
            each, peak = seconds / (done - 1), self.meter.peak
            _say(
                trainer,
                f"{left:,} more steps of {batch} images on {device}: about {in_time(left * each)} and "
                f"{in_gb(self.memory.total)} of memory; {batch / each:.3g} images per second, {self.meter.mfu(batch / each):.0%} of the "
                f"{peak.source} matmul peak ({peak.flops / 1e12:.3g} TFLOP/s in {trainer.config.precision}); writing to {output}",
            )


def train(config: TrainConfig) -> Path:
    """Run the training that `config` describes; returns the folder of the finished model."""
    return run(Trainer(config))


def run(trainer: Trainer) -> Path:
    """Train to the last step; returns the folder of the finished model.

    Raises:
        MgenError: the run cannot be resumed, another training uses its folder, or it has diverged.
        KeyboardInterrupt: it was stopped by a signal, after a checkpoint; `Terminated` for SIGTERM.
    """
    memory = check_step(trainer)
    main = trainer.accelerator.is_main_process
    with locked(trainer.output, active=main):
        check_same_output(trainer.accelerator, trainer.output)
        if not trainer.config.resume and list_checkpoints(trainer.output):
            raise MgenError(
                f"resume=false, but {trainer.output} holds checkpoints: choose another output folder or remove them"
            )
        changed = resume(trainer)
        if trainer.step:
            _say(trainer, f"resuming from step {trainer.step} of {trainer.config.steps}")
        if changed:
            _say(trainer, f"changed settings: {told(changed, 30)}")
        start = trainer.task.start
        for line in start.lines() if start is not None else ():
            _say(trainer, line)
        logger = Logger(trainer.output, trainer.config, step=trainer.step, active=main, about=facts(trainer))
        begun = trainer.step
        try:
            if start is not None and main:
                write_json(trainer.output / INIT, start.to_dict())
            _train(trainer, logger, memory)
            return _finish(trainer, logger, trained=trainer.step > begun)
        except MgenError as error:
            if not isinstance(error, Diverged) and not list_checkpoints(trainer.output):
                logger.discard()
                if main and logger.new:
                    (trainer.output / INIT).unlink(missing_ok=True)
            raise
        finally:
            logger.close()


def _train(trainer: Trainer, logger: Logger, memory: Need) -> None:
    """All steps from the current one on."""
    config, data, main = trainer.config, trainer.task.train_data, trainer.accelerator.is_main_process
    rank, world = trainer.accelerator.process_index, trainer.accelerator.num_processes
    order = BatchOrder(config, data=data, rank=rank, world=world, start=trainer.step)
    meter = Meter(iter(batches(data, order, config.data.workers)), trainer)
    trainer.objective.train()
    signal, forecast = 0, _Forecast(memory, meter, start=trainer.step)
    bar = tqdm(total=config.steps, initial=trainer.step, unit="step", disable=not main, file=sys.stderr, delay=1.0)
    with bar, StopRequest(trainer.accelerator) as stop:
        while trainer.step < config.steps:
            logs = trainer.train_step(meter, order)
            trainer.step += 1
            trainer.parallel.poll()
            bar.update()
            forecast.step(trainer)
            if trainer.step % config.log.every == 0 or trainer.step == config.steps:
                values = meter.values(logs)
                logger.write(trainer.step, values)
                speed = {"img/s": f"{values['images_per_second']:.3g}", "mfu": f"{values['mfu']:.0%}"}
                bar.set_postfix({"loss": f"{values['loss']:.4f}", **speed}, refresh=False)
                if trainer.step == config.steps:
                    _check_learned(trainer, values["loss"])
            signal = stop.agreed()
            _after_step(trainer, logger, meter, stopping=signal > 0)
            if signal:
                break
    trainer.parallel.wait_for_checkpoint()
    if signal:  # with the bar closed, which would stand in front of what is said
        _say(trainer, stopped(trainer))
        raise stop.interrupt(signal, f"stopped after step {trainer.step} of {config.steps}{_how_to_go_on(trainer)}")


def _after_step(trainer: Trainer, logger: Logger, meter: Meter, *, stopping: bool) -> None:
    """Evaluate, preview, save and export if one of them is due; save if the run stops now."""
    log = trainer.config.log
    if _due(trainer, log.evaluate_every):
        logger.write(trainer.step, evaluate(trainer))
    if _due(trainer, log.preview_every):
        preview(trainer, logger)
    if stopping or _due(trainer, log.checkpoint_every, at_end=True):
        trainer.seconds = time.perf_counter() - meter.began
        save_checkpoint(trainer)
    if _due(trainer, log.export_every):
        export(trainer)


def _finish(trainer: Trainer, logger: Logger, *, trained: bool) -> Path:
    """What is left to do after the last step. trained: in this start, so that what was due after that step is done."""
    log = trainer.config.log
    try:
        values = {} if trainer.task.validated[0] == trainer.step else evaluate(trainer)
        _check_learned(trainer, values.get("val_loss", 0.0))
        if trainer.ema is not None:
            values |= evaluate(trainer, raw=True)
        logger.write(trainer.step, values)
        if not (trained and _due(trainer, log.preview_every)):
            preview(trainer, logger)
        if not (trained and _due(trainer, log.export_every)):
            export(trainer)
    except KeyboardInterrupt as interrupt:
        raise type(interrupt)(f"stopped after the last step{_how_to_go_on(trainer)}") from interrupt
    trainer.accelerator.wait_for_everyone()
    _say(trainer, finished(trainer))
    trainer.accelerator.end_training()
    return trainer.output / "model"


def _how_to_go_on(trainer: Trainer) -> str:
    return f"; rerun the command to go on from {trainer.output}/checkpoint-{trainer.step:07d}"


def _check_learned(trainer: Trainer, loss: float) -> None:
    """Raise Diverged if most steps were skipped, or the last loss is not finite."""
    if 2 * trainer.skipped > trainer.step or not math.isfinite(loss):
        raise Diverged(
            f"the run has diverged: {trainer.skipped} of {trainer.step} steps had a gradient that is not finite, the last loss is "
            f"{loss:.4g}; no model was exported: start again with a smaller optim.lr, or with optim.clip"
        )


def _due(trainer: Trainer, every: int, at_end: bool = False) -> bool:
    return (every > 0 and trainer.step % every == 0) or (at_end and trainer.step == trainer.config.steps)


def _say(trainer: Trainer, text: str) -> None:
    if trainer.accelerator.is_main_process:
        tqdm.write(text, file=sys.stderr)
