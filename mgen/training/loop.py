"""The training loop, for every task, on one process or many.

A step: make the noise of the whole batch from (seed, step); forward and backward for each piece; clip; step unless the
gradient is not finite; EMA. A step depends on earlier ones only through weights, optimizer and EMA, so a resumed run repeats
the losses of an uninterrupted one exactly.
"""

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedDataParallelKwargs
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm import tqdm

from mgen.generators import Generator
from mgen.training.checkpoints import (
    Diverged,
    check_finite,
    list_checkpoints,
    own_tensors,
    save_checkpoint,
    trained,
)
from mgen.training.config import OptimConfig, TokenizerObjectiveConfig, TrainConfig
from mgen.training.data import BatchOrder, batches
from mgen.training.discriminator import DiscriminatorTrainer
from mgen.training.estimate import check_step
from mgen.training.launch import make_accelerator
from mgen.training.lock import locked
from mgen.training.logs import Logger
from mgen.training.noise import Augmentation
from mgen.training.objectives import Logs, StepOptions, StepOutput
from mgen.training.parts import check_prefixes
from mgen.training.resume import resume
from mgen.training.settings import plain, told
from mgen.training.stopping import StopRequest
from mgen.training.tasks import TASKS
from mgen.training.token_source import Batch
from mgen.utils import seeds
from mgen.utils.errors import MgenError, shown
from mgen.utils.files import atomic_folder, atomic_path, check_writable

MOST_SKIPPED_IN_A_ROW = 50


class Trainer:
    """One run of the settings `config`; `run()` trains, from the newest checkpoint if there is one."""

    def __init__(self, config: TrainConfig) -> None:
        if not isinstance(config, TrainConfig):
            raise MgenError(f"config is {shown(config)}: expected a TrainConfig, as train_config makes of settings")
        self.config = config
        self.augmentation = Augmentation(flip=config.data.flip, shift=config.data.shift)
        self.adversarial_start = math.inf  # the step from which the discriminator takes part
        if isinstance(config.objective, TokenizerObjectiveConfig) and config.objective.adversarial:
            self.adversarial_start = config.objective.adversarial_start
            if config.precision == "fp16":
                raise MgenError(
                    "precision fp16 cannot train with an adversarial term (one loss scale for two losses): use bf16 or fp32"
                )
        self.output = Path(config.output)
        check_writable(self.output)
        ddp = DistributedDataParallelKwargs()
        self.accelerator = make_accelerator(
            precision=config.precision, expected=config.processes, kwargs_handlers=[ddp]
        )
        check_pieces(config, self.accelerator.num_processes)
        torch.manual_seed(seeds.fold(config.seed, "init"))
        self.task = TASKS[config.task](config)
        self.objective = self.task.objective
        # A step that does not continue from an earlier one leaves the projection of carried features without a gradient.
        model = self.objective.model
        self.carries_features = isinstance(model, Generator) and model.capabilities.carried_features
        ddp.find_unused_parameters = self.carries_features
        self.parameters = [p for p in self.objective.parameters() if p.requires_grad]
        if not self.parameters:
            raise MgenError("optim.freeze leaves no parameter to train: freeze fewer")
        optim = config.optim
        groups = decay_groups(model, optim)
        optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, foreach=True)
        self.schedule = get_scheduler(
            optim.schedule, optimizer, num_warmup_steps=optim.warmup, num_training_steps=config.steps
        )
        self.schedule._step_count = 2  # torch would warn if the first step is skipped
        self.wrapped, self.optimizer = self.accelerator.prepare(self.objective, optimizer)
        self.device = self.accelerator.device
        for beside in filter(None, vars(self.objective.companions).values()):
            beside.to(self.device)
        self.discriminator: DiscriminatorTrainer | None = None
        network = self.objective.companions.discriminator
        if network is not None and isinstance(config.objective, TokenizerObjectiveConfig):
            self.discriminator = DiscriminatorTrainer(network, config.objective, self.accelerator, optim.clip)
        self.ema: EMAModel | None = None
        if config.ema is not None:
            # diffusers' ramp is min(decay, (1 + t) / (10 + t)); min_decay lifts it to a constant.
            decay, floor = config.ema.decay, 0.0 if config.ema.warmup else config.ema.decay
            self.ema = EMAModel(self.parameters, decay=decay, min_decay=floor, foreach=True)
        self.step, self.skipped, self.skipped_in_a_row, self.seconds = 0, 0, 0, 0.0
        self.model_config = plain(model.config)  # an export may add what it measures
        check_step(self)

    # -- one step ------------------------------------------------------------------------------------------------------

    def train_step(self, loader: Iterator[Batch], order: BatchOrder) -> Logs:
        """One optimizer step; returns the means of the logged values over this process's pieces, "loss" among them."""
        config, pieces, step = self.config, self.config.accumulate, self.step
        rng = seeds.generator(config.seed, "draws", step)  # the name is part of the seed: old runs depend on it
        whole = self.objective.make_noise(config.batch_size, rng, augmentation=self.augmentation, step=step)
        options = self.step_options(step)
        logs: Logs = {}
        for piece in range(pieces):
            rows, last = order.rows(piece), piece == pieces - 1
            noise = self.objective.add_row_noise(whole.rows(rows), rows, config.seed, "rows", step)
            batch = self.to_device(next(loader))
            # The global generators are used by dropout only; seeding them here makes resumed and whole runs agree.
            torch.manual_seed(seeds.fold(config.seed, "dropout", step, piece, self.accelerator.process_index))
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                out: StepOutput = self.wrapped(batch, noise.to(self.device), options)
                loss = out.loss * (self.objective.share(noise, whole) / pieces)
                self.accelerator.backward(loss)
            values = {"loss": loss.detach() * pieces, **out.logs}
            if self.discriminator is not None and options.adversarial:
                assert out.compared is not None
                values["discriminator"] = self.discriminator.backward(out.compared, pieces, last=last)
            for name, value in values.items():
                logs[name] = logs.get(name, torch.zeros((), device=self.device)) + value.detach().float() / pieces
        logs["grad_norm"] = self._apply()
        if self.discriminator is not None and options.adversarial:
            self.discriminator.step()
        return logs

    def step_options(self, step: int) -> StepOptions:
        """The options of a step: whether the discriminator takes part, and the EMA weights for the features of an earlier step."""
        weights = None
        if self.ema is not None and self.carries_features:
            names = [name for name, p in self.objective.named_parameters() if p.requires_grad]
            weights = dict(zip(names, self.ema.shadow_params))
        return StepOptions(adversarial=step >= self.adversarial_start, ema_weights=weights)

    def to_device(self, batch: Batch) -> Batch:
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    def _apply(self) -> Tensor:
        """Clip and step, unless the gradient is not finite: such a step is skipped and counted, on all processes alike."""
        clip = self.config.optim.clip
        norm = self.accelerator.clip_grad_norm_(self.parameters, clip if clip is not None else math.inf)
        assert isinstance(norm, Tensor)
        finite = bool(torch.isfinite(norm))
        if finite or self.accelerator.scaler is not None:
            self.optimizer.step()  # fp16's loss scaler skips the step itself, and must see it to lower its scale
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        self.skipped += not finite
        if finite and self.ema is not None:
            self.ema.step(self.parameters)
        if self.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise Diverged(
                f"{MOST_SKIPPED_IN_A_ROW} steps in a row had a gradient that is not finite: the run has diverged; "
                "resume from a checkpoint with a smaller optim.lr or with optim.clip"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return norm.detach()

    # -- the run -------------------------------------------------------------------------------------------------------

    def run(self) -> Path:
        """Train to the last step; returns the folder of the finished model.

        Raises:
            MgenError: the run cannot be resumed, another training uses its folder, or it has diverged.
            KeyboardInterrupt: it was stopped by a signal, after a checkpoint; `Terminated` for SIGTERM.
        """
        main = self.accelerator.is_main_process
        with locked(self.output, active=main):
            if not self.config.resume and list_checkpoints(self.output):
                raise MgenError(
                    f"resume=false, but {self.output} holds checkpoints: choose another output folder or remove them"
                )
            changed = resume(self)
            if self.step:
                self._say(f"resuming from step {self.step} of {self.config.steps}")
            if changed:
                self._say(f"changed settings: {told(changed, 30)}")
            logger = Logger(self.output, self.config, step=self.step, active=main)
            try:
                self._train(logger)
                return self._finish(logger)
            except MgenError as error:
                if not isinstance(error, Diverged) and not list_checkpoints(self.output):
                    logger.discard()
                raise
            finally:
                logger.close()

    def _train(self, logger: Logger) -> None:
        """All steps from the current one on."""
        config, data, main = self.config, self.task.train_data, self.accelerator.is_main_process
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        order = BatchOrder(config, count=len(data), rank=rank, world=world, start=self.step)
        loader = iter(batches(data, order, config.data.workers))
        now = time.perf_counter()
        self.began, self.logged = now - self.seconds, (now, self.step)
        self.objective.train()
        bar = tqdm(total=config.steps, initial=self.step, unit="step", disable=not main, file=sys.stderr, delay=1.0)
        with bar, StopRequest(self.accelerator) as stop:
            while self.step < config.steps:
                logs = self.train_step(loader, order)
                self.step += 1
                bar.update()
                if self.step % config.log.every == 0 or self.step == config.steps:
                    values = self._log_values(logs)
                    logger.write(self.step, values)
                    bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
                    if self.step == config.steps:
                        self._check_learned(values["loss"])
                signal = stop.agreed()
                self._after_step(logger, stopping=signal > 0)
                if signal:
                    raise stop.interrupt(
                        signal, f"stopped after step {self.step} of {config.steps}{self._how_to_go_on()}"
                    )

    def _log_values(self, logs: Logs) -> dict[str, float]:
        """The logged values of a step, as means over the processes, with learning rate and speed since the last reading."""
        size, now, (then, step) = self.config.batch_size, time.perf_counter(), self.logged
        self.seconds, self.logged = now - self.began, (now, self.step)
        names = sorted(logs)
        means = self.accelerator.reduce(torch.stack([logs[name].to(self.device) for name in names]), "mean")
        return dict(zip(names, means.tolist())) | {
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_second": (self.step - step) / (now - then) * size,
            "seconds": self.seconds,
            "images": self.step * size,
            "skipped": self.skipped,
        }

    def _after_step(self, logger: Logger, *, stopping: bool) -> None:
        """Evaluate, preview, save and export if one of them is due; save if the run stops now."""
        log = self.config.log
        if self._due(log.evaluate_every):
            logger.write(self.step, self.evaluate())
        if self._due(log.preview_every):
            self._preview()
        if stopping or self._due(log.checkpoint_every, at_end=True):
            self.seconds = time.perf_counter() - self.began
            save_checkpoint(self)
        if self._due(log.export_every):
            self._export()

    def _finish(self, logger: Logger) -> Path:
        try:
            values = {} if self._due(self.config.log.evaluate_every) else self.evaluate()
            logger.write(self.step, values)
            self._check_learned(values.get("val_loss", 0.0))
            self._preview()
            self._export()
        except KeyboardInterrupt as interrupt:
            raise type(interrupt)(f"stopped after the last step{self._how_to_go_on()}") from interrupt
        self.accelerator.wait_for_everyone()
        self._say(f"finished: {self.output / 'model'}")
        self.accelerator.end_training()
        return self.output / "model"

    def _how_to_go_on(self) -> str:
        return f"; rerun the command to go on from {self.output}/checkpoint-{self.step:07d}"

    def _check_learned(self, loss: float) -> None:
        """Raise Diverged if most steps were skipped, or the last loss is not finite."""
        if 2 * self.skipped > self.step or not math.isfinite(loss):
            raise Diverged(
                f"the run has diverged: {self.skipped} of {self.step} steps had a gradient that is not finite, the last loss is "
                f"{loss:.4g}; no model was exported: start again with a smaller optim.lr, or with optim.clip"
            )

    def _export(self) -> None:
        """Write `model` (with the EMA weights if there are any) and `model-raw` (only if there is an EMA)."""
        check_finite(own_tensors(self.objective), f"model after step {self.step}")
        if self.ema is not None:
            names = trained(self.objective)
            check_finite(dict(zip(names, self.ema.shadow_params)), f"averaged model after step {self.step}")
        if self.accelerator.is_main_process:
            with self._ema_weights(), atomic_folder(self.output / "model") as folder:
                self.task.export(folder)
            if self.ema is not None:
                with atomic_folder(self.output / "model-raw") as folder:
                    self.task.export(folder)

    def _due(self, every: int, at_end: bool = False) -> bool:
        return (every > 0 and self.step % every == 0) or (at_end and self.step == self.config.steps)

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(text, file=sys.stderr)

    @contextlib.contextmanager
    def _ema_weights(self) -> Iterator[None]:
        """The model with its EMA weights (or as it is, without EMA), in evaluation mode."""
        if self.ema is not None:
            self.ema.store(self.parameters)
            self.ema.copy_to(self.parameters)
        self.objective.eval()
        try:
            yield
        finally:
            if self.ema is not None:
                self.ema.restore(self.parameters)
            self.objective.train()

    @torch.inference_mode()
    def evaluate(self, most: int = 10000) -> dict[str, float]:
        """Mean loss and logged values on at most `most` validation images, with EMA weights; each process takes its share."""
        data, world, seed = self.task.val_data, self.accelerator.num_processes, self.config.seed
        if data is None:
            return {}
        size = max(1, self.config.batch_size // (self.config.accumulate * world))
        starts = range(0, min(most, len(data)), size)
        # With fewer batches than processes, every process evaluates all of them: the weighted mean is the same.
        own = starts[self.accelerator.process_index :: world] if len(starts) >= world else starts
        options = self.step_options(self.step - 1)  # those of the last step
        sums: Logs = {}
        count = torch.zeros((), device=self.device)
        with self._ema_weights(), self.accelerator.autocast():
            for start in own:
                batch = self.to_device(data.__getitems__(range(start, min(start + size, len(data), most))))
                n = len(batch["label"])
                rng = seeds.generator(seed, "evaluate", start)
                noise = self.objective.make_noise(n, rng, augmentation=Augmentation())
                noise = self.objective.add_row_noise(noise, slice(start, start + n), seed, "evaluate rows")
                out: StepOutput = self.objective(batch, noise.to(self.device), options)
                for name, value in {"loss": out.loss, **out.logs}.items():
                    sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value.float() * n
                count += n
        names = sorted(sums)
        total = self.accelerator.reduce(torch.stack([sums[name] for name in names] + [count]), "sum")
        return {f"val_{name}": value for name, value in zip(names, (total[:-1] / total[-1]).tolist())}

    def _preview(self) -> None:
        """Write grids from EMA and raw weights as PNG files, on the main process."""
        if not self.accelerator.is_main_process:
            return
        from torchvision.io import encode_png

        self.objective.eval()
        grids = {"raw": self.task.preview(self.device)}
        self.objective.train()
        if self.ema is not None:
            with self._ema_weights():
                grids["ema"] = self.task.preview(self.device)
        for name, grid in grids.items():
            if grid is not None:
                with atomic_path(self.output / "previews" / f"{self.step:07d}-{name}.png") as path:
                    path.write_bytes(encode_png(grid.cpu()).numpy().tobytes())


def check_pieces(config: TrainConfig, world: int) -> None:
    """Raise MgenError unless the batch can be cut into equal pieces."""
    if config.batch_size % (config.accumulate * world):
        raise MgenError(
            f"batch_size {config.batch_size} is not a multiple of accumulate × processes = {config.accumulate} × {world}: change one "
            "of them"
        )


def train(config: TrainConfig) -> Path:
    """Run the training that `config` describes; returns the folder of the finished model."""
    return Trainer(config).run()


def decay_groups(model: torch.nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Parameter groups of the optimizer: with weight decay, and without if there are such parameters."""
    check_prefixes(model, config.no_decay, "optim.no_decay")
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = name.startswith(tuple(config.no_decay)) or (not config.decay_all and parameter.ndim < 2)
            groups.setdefault(0.0 if exempt else config.weight_decay, []).append(parameter)
    return [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()]
