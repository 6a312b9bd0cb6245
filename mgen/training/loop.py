"""The training loop, for every task, on one process or many.

A step: draw the randomness of the whole batch from (seed, step); for each piece, forward and backward; clip; step unless
the gradient is not finite; EMA. Nothing in a step depends on what ran before it except weights, optimizer and EMA, so a
resumed run repeats the losses of an uninterrupted one exactly.
"""

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedDataParallelKwargs
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm import tqdm

from mgen.training.checkpoints import list_checkpoints, load_newest, save_checkpoint
from mgen.training.config import OptimConfig, TrainConfig, model_named
from mgen.training.data import BatchOrder, batches
from mgen.training.launch import make_accelerator
from mgen.training.logs import Logger
from mgen.training.objectives import GeneratorObjective, TokenizerObjective
from mgen.training.tasks import Task
from mgen.utils import seeds
from mgen.utils.errors import MgenError
from mgen.utils.files import atomic_folder, atomic_path

MOST_SKIPPED_IN_A_ROW = 50


class Trainer:
    """One run of the settings `config`; `run()` trains, from the newest checkpoint if there is one."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        if config.precision == "fp16" and getattr(config.objective, "adversarial", False):
            raise MgenError(
                "precision fp16 cannot train with an adversarial term (one loss scale for two losses): use bf16 or fp32"
            )
        # Models that carry features leave their projection without a gradient in steps that do not continue from an earlier one.
        carries = getattr(model_named(config.model["class"]), "carries", False)
        unused = DistributedDataParallelKwargs(find_unused_parameters=carries)
        self.accelerator = make_accelerator(
            precision=config.precision, expected=config.processes, kwargs_handlers=[unused]
        )
        self.output = Path(config.output)
        torch.manual_seed(seeds.fold(config.seed, "init"))
        self.task = Task(config)
        self.objective = self.task.objective
        self.parameters = [p for p in self.objective.parameters() if p.requires_grad]
        if not self.parameters:
            raise MgenError("optim.freeze leaves no parameter to train")
        o = config.optim
        groups = decay_groups(self.objective.model, o)
        optimizer = torch.optim.AdamW(groups, lr=o.lr, betas=o.betas, eps=o.eps, foreach=True)
        self.schedule = get_scheduler(o.schedule, optimizer, num_warmup_steps=o.warmup, num_training_steps=config.steps)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.objective, optimizer)
        self.device = self.accelerator.device
        if self.task.tokenizer is not None:
            self.task.tokenizer.to(self.device)
        self._prepare_adversarial()
        self.ema: EMAModel | None = None
        if config.ema is not None:
            # diffusers' ramp is min(decay, (1 + t) / (10 + t)); min_decay lifts it to a constant.
            floor = 0.0 if config.ema.warmup else config.ema.decay
            self.ema = EMAModel(self.parameters, decay=config.ema.decay, min_decay=floor, foreach=True)
            self.accelerator.register_for_checkpointing(self.ema)
            if isinstance(self.objective, GeneratorObjective):
                names = [name for name, p in self.objective.named_parameters() if p.requires_grad]
                self.objective.ema_weights = partial(self._named_ema_weights, names)
        self.accelerator.register_for_checkpointing(self.schedule)
        self.step, self.skipped, self.skipped_in_a_row, self.seconds = 0, 0, 0, 0.0

    def _named_ema_weights(self, names: list[str]) -> dict[str, Tensor]:
        assert self.ema is not None
        return dict(zip(names, self.ema.shadow_params))

    def _prepare_adversarial(self) -> None:
        self.wrapped_discriminator = self.discriminator_optimizer = None
        if self.task.discriminator is not None:
            optimizer = torch.optim.AdamW(
                self.task.discriminator.parameters(),
                lr=self.config.objective.discriminator_lr,
                betas=self.config.objective.discriminator_betas,
                weight_decay=0.0,
            )
            self.wrapped_discriminator, self.discriminator_optimizer = self.accelerator.prepare(
                self.task.discriminator, optimizer
            )
        for helper in getattr(self.objective, "_helpers", ()):
            if helper is not None:
                helper.to(self.device)

    # -- one step ------------------------------------------------------------------------------------------------------

    def _to_device(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.device, non_blocking=True) for name, value in values.items()}

    def train_step(self, loader: Iterator[dict[str, Tensor]], order: BatchOrder) -> dict[str, Tensor]:
        """One optimizer step; returns the means of the logged values over this process's pieces, "loss" among them."""
        config, pieces = self.config, self.config.accumulate
        whole = self.objective.draw(config.batch_size, seeds.generator(config.seed, "draws", self.step))
        adversarial = self.wrapped_discriminator is not None and getattr(self.objective, "adversarial_on", False)
        logs: dict[str, Tensor] = {}
        for piece in range(pieces):
            rows = {name: value[order.rows(piece)] for name, value in whole.items()}
            rows |= self.objective.draw_rows(order.rows(piece), config.seed, "rows", self.step)
            batch = self._to_device(next(loader))
            # The global generators serve dropout only; seeding them here makes resumed and whole runs agree.
            torch.manual_seed(seeds.fold(config.seed, "dropout", self.step, piece, self.accelerator.process_index))
            last = piece == pieces - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                loss, parts = self.wrapped(batch, self._to_device(rows))
                loss = loss * (self.objective.share(rows, whole) / pieces)
                self.accelerator.backward(loss)
            if adversarial:
                parts = {**parts, "discriminator": self._discriminator_backward(last)}
            for name, value in {"loss": loss.detach() * pieces, **parts}.items():
                logs[name] = logs.get(name, 0.0) + value.detach().float() / pieces
        logs["grad_norm"] = self._apply()
        if adversarial:
            self._discriminator_apply()
        return logs

    def _apply(self) -> Tensor:
        """Clip and step, unless the gradient is not finite: that step is skipped and counted, on all processes alike."""
        clip = self.config.optim.clip
        norm = self.accelerator.clip_grad_norm_(self.parameters, clip if clip is not None else math.inf)
        assert isinstance(norm, Tensor)
        finite = bool(torch.isfinite(norm))
        if finite or self.accelerator.scaler is not None:
            self.optimizer.step()  # fp16's loss scaler skips the step itself, and must see it to lower its scale
        if finite:
            self.skipped_in_a_row = 0
            if self.ema is not None:
                self.ema.step(self.parameters)
        else:
            self.skipped += 1
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
                raise MgenError(
                    f"{MOST_SKIPPED_IN_A_ROW} steps in a row had a gradient that is not finite: the run has diverged; "
                    "resume from a checkpoint with a smaller optim.lr or with optim.clip"
                )
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return norm.detach()

    def _discriminator_backward(self, last: bool) -> Tensor:
        """Gradient of the discriminator on the images that the tokenizer has just made."""
        assert isinstance(self.objective, TokenizerObjective) and self.wrapped_discriminator is not None
        with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped_discriminator):
            loss = self.wrapped_discriminator(*self.objective.last)
            self.accelerator.backward(loss / self.config.accumulate)
        return loss

    def _discriminator_apply(self) -> None:
        assert self.task.discriminator is not None and self.discriminator_optimizer is not None
        norm = self.accelerator.clip_grad_norm_(
            self.task.discriminator.parameters(), self.config.optim.clip or math.inf
        )
        if torch.isfinite(torch.as_tensor(norm)):
            self.discriminator_optimizer.step()
        self.discriminator_optimizer.zero_grad(set_to_none=True)

    # -- the run -------------------------------------------------------------------------------------------------------

    def run(self) -> Path:
        """Train to the last step; returns the folder of the finished model."""
        config, log, main = self.config, self.config.log, self.accelerator.is_main_process
        if not config.resume and list_checkpoints(self.output):
            raise MgenError(
                f"resume=false, but {self.output} holds checkpoints: choose another output folder or remove them"
            )
        if load_newest(self):
            self._say(f"going on from step {self.step} of {config.steps}")
        order = BatchOrder(
            count=len(self.task.train_data),
            batch=config.batch_size,
            pieces=config.accumulate,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            seed=config.seed,
            start=self.step,
            stop=config.steps,
        )
        logger = Logger(self.output, config, step=self.step, active=main)
        loader = iter(batches(self.task.train_data, order, config.data.workers))
        bar = tqdm(total=config.steps, initial=self.step, unit="step", disable=not main, file=sys.stderr)
        began, since = time.perf_counter() - self.seconds, self.step
        tick = time.perf_counter()
        self.objective.train()
        while self.step < config.steps:
            if hasattr(self.objective, "adversarial_on"):
                self.objective.adversarial_on = self.step >= config.objective.adversarial_start
            self.objective.step = self.step
            logs = self.train_step(loader, order)
            self.step += 1
            bar.update()
            if self.step % log.every == 0 or self.step == config.steps:
                values = self._mean(logs)
                now = time.perf_counter()
                self.seconds = now - began
                values |= {
                    "lr": self.optimizer.param_groups[0]["lr"],
                    "images_per_second": (self.step - since) * config.batch_size / (now - tick),
                    "seconds": self.seconds,
                    "images": self.step * config.batch_size,
                    "skipped": self.skipped,
                }
                tick, since = now, self.step
                logger.write(self.step, values)
                bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
            if self._due(log.evaluate_every):
                logger.write(self.step, self.evaluate())
            if self._due(log.preview_every):
                self._preview()
            if self._due(log.checkpoint_every, at_end=True):
                self.seconds = time.perf_counter() - began
                save_checkpoint(self)
            if self._due(log.export_every):
                self._export()
        bar.close()
        return self._finish(logger)

    def _finish(self, logger: Logger) -> Path:
        if not self._due(self.config.log.evaluate_every):
            logger.write(self.step, self.evaluate())
        self._preview()
        self._export()
        logger.close()
        self.accelerator.wait_for_everyone()
        self._say(f"finished: {self.output / 'model'}")
        self.accelerator.end_training()
        return self.output / "model"

    def _export(self) -> None:
        """Write `model` (EMA weights if there are) and `model-raw` (without EMA there is no such folder)."""
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

    def _mean(self, logs: dict[str, Tensor]) -> dict[str, float]:
        names = sorted(logs)
        stacked = torch.stack([logs[name].to(self.device) for name in names])
        return dict(zip(names, self.accelerator.reduce(stacked, "mean").tolist()))

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
        """Mean loss and logged values on the validation data, with EMA weights; each process takes its share."""
        data = self.task.val_data
        if data is None:
            return {}
        size = max(1, self.config.batch_size // (self.config.accumulate * self.accelerator.num_processes))
        starts = range(0, min(most, len(data)), size)
        world = self.accelerator.num_processes
        # With fewer batches than processes, all processes measure all: the weighted mean is the same.
        mine = starts[self.accelerator.process_index :: world] if len(starts) >= world else starts
        sums: dict[str, Tensor] = {}
        count = torch.zeros((), device=self.device)
        config = dataclasses.replace(self.objective.data, flip=False, shift=0)
        self.objective.data, kept = config, self.objective.data
        with self._ema_weights(), self.accelerator.autocast():
            for start in mine:
                batch = self._to_device(data.__getitems__(range(start, min(start + size, len(data), most))))
                n = len(batch["label"])
                draws = self.objective.draw(n, seeds.generator(self.config.seed, "evaluate", start))
                draws |= self.objective.draw_rows(slice(start, start + n), self.config.seed, "evaluate rows")
                loss, logs = self.objective(batch, self._to_device(draws))
                for name, value in {"loss": loss, **logs}.items():
                    sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value.float() * n
                count += n
        self.objective.data = kept
        names = sorted(sums)
        total = self.accelerator.reduce(torch.stack([sums[name] for name in names] + [count]), "sum")
        return {f"val_{name}": value for name, value in zip(names, (total[:-1] / total[-1]).tolist())}

    def _preview(self) -> None:
        """Grids from EMA and from raw weights as PNG files, on the main process."""
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


def train(config: TrainConfig) -> Path:
    """Run the training that `config` describes; returns the folder of the finished model."""
    return Trainer(config).run()


def decay_groups(model: torch.nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Parameter groups of the optimizer: those with weight decay, and those without if there are."""
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = name.startswith(tuple(config.no_decay)) if config.no_decay else False
            exempt = exempt or (not config.decay_all and parameter.ndim < 2)
            groups.setdefault(0.0 if exempt else config.weight_decay, []).append(parameter)
    return [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()]
