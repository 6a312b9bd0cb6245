"""What a run of training has, and one step of it.

A step: make the noise of the whole batch from (seed, step); forward and backward for each piece; clip; step unless the
gradient is not finite; EMA. A step depends on earlier ones only through weights, optimizer and EMA, so a resumed run repeats
the losses of an uninterrupted one exactly.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedDataParallelKwargs
from diffusers.optimization import get_scheduler
from torch import Tensor

from mgen.generators import Generator
from mgen.training.balance import factor
from mgen.training.config import OptimConfig, TokenizerObjectiveConfig, TrainConfig
from mgen.training.data import BatchOrder
from mgen.training.discriminator import DiscriminatorTrainer
from mgen.training.launch import make_accelerator
from mgen.training.nodes import check_same_data, check_same_settings
from mgen.training.noise import Augmentation, Noise, TokenizerNoise, to_device
from mgen.training.objective import Logs, StepOptions, StepOutput
from mgen.training.parallelism import check_parallel, make_parallel
from mgen.training.parts import check_prefixes
from mgen.training.tasks import TASKS
from mgen.training.token_source import Batch
from mgen.training.tokenizer_objective import TokenizerObjective
from mgen.training.trackers import tracker_names
from mgen.training.update import NUMERICS, AdamW, Average, Numerics, Skips
from mgen.utils import seeds
from mgen.utils.changes import plain
from mgen.utils.compiling import compile_network
from mgen.utils.errors import MgenError, shown
from mgen.utils.files import check_writable
from mgen.utils.paths import check_apart


class Trainer:
    """The networks, optimizer, EMA and data of the settings `config`, and how far a run of them is; `mgen.training.loop` trains it."""

    def __init__(self, config: TrainConfig) -> None:
        if not isinstance(config, TrainConfig):
            raise MgenError(f"config is {shown(config)}: expected a TrainConfig, as train_config makes of settings")
        self.config = config
        self.augmentation = Augmentation(flip=config.data.flip, shift=config.data.shift)
        self.adversarial_start = math.inf  # the step from which the discriminator takes part
        self.adaptive = False  # whether its part has an adaptive weight
        if isinstance(config.objective, TokenizerObjectiveConfig) and config.objective.adversarial:
            self.adversarial_start = config.objective.adversarial_start
            self.adaptive = config.objective.adversarial_adaptive
            if config.precision == "fp16":
                raise MgenError(
                    "precision fp16 cannot train with an adversarial term (one loss scale for two losses): use bf16 or fp32"
                )
        check_parallel(config)
        tracker_names(config.log)  # raises an error if one is not installed
        self.output = Path(config.output)
        if config.data.kind == "folder":
            check_apart(self.output, "output", {"data.path": config.data.path, "data.val_path": config.data.val_path})
        check_writable(self.output)
        ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
        self.accelerator = make_accelerator(
            precision=config.precision, expected=config.processes, kwargs_handlers=[ddp]
        )
        check_same_settings(self.accelerator, config)
        check_pieces(config, self.accelerator.num_processes)
        torch.manual_seed(seeds.fold(config.seed, "init"))
        self.task = TASKS[config.task](config)
        check_same_data(self.accelerator, self.task)
        self.objective = self.task.objective
        # A step that does not continue from an earlier one leaves the projection of carried features without a gradient.
        model = self.objective.model
        self.carries_features = isinstance(model, Generator) and model.capabilities.carried_features
        ddp.find_unused_parameters = self.carries_features
        if not any(p.requires_grad for p in self.objective.parameters()):
            raise MgenError("optim.freeze leaves no parameter to train: freeze fewer")
        self.device = self.accelerator.device
        if config.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        self.parallel = make_parallel(config.parallel, self.accelerator, model, shards=config.hsdp_shards)
        compile_network(model, config.compile, device=self.device)  # in place: before weights are sharded or wrapped
        self.wrapped = self.parallel.prepare(self.objective)
        self.parameters = [p for p in self.objective.parameters() if p.requires_grad]
        optim = config.optim
        self.adamw = AdamW(decay_groups(model, optim), optim, self.device)
        self.schedule = make_schedule(optim, self.adamw, config.steps)
        self.schedule._step_count = 2  # torch would warn if the first step is skipped
        self.optimizer = self.accelerator.prepare(self.adamw)
        for beside in filter(None, vars(self.objective.companions).values()):
            beside.to(self.device)
        self.discriminator: DiscriminatorTrainer | None = None
        network = self.objective.companions.discriminator
        if network is not None and isinstance(config.objective, TokenizerObjectiveConfig):
            self.discriminator = DiscriminatorTrainer(network, config.objective, self.accelerator, optim.clip)
        self.ema = Average(self.averaged(), config.ema) if config.ema is not None else None
        self.skips = Skips(self.device)
        self.step, self.seconds = 0, 0.0
        self.numerics: Numerics = NUMERICS
        self.model_config = plain(model.config)  # an export may add what it measures

    def train_step(self, loader: Iterator[Batch], order: BatchOrder) -> Logs:
        """One optimizer step; returns the means of the logged values over this process's pieces, "loss" among them."""
        config, pieces, step = self.config, self.config.accumulate, self.step
        rng = seeds.generator(config.seed, "draws", step)  # the name is part of the seed: old runs depend on it
        whole = self.objective.make_noise(config.batch_size, rng, augmentation=self.augmentation, step=step)
        options = self.step_options(step)
        if options.adversarial and self.adaptive and pieces > 1:
            ahead = [next(loader) for _ in range(pieces)]
            loader, options = iter(ahead), self._with_factor(options, ahead, whole, order)
        logs: Logs = {}
        for piece in range(pieces):
            last = piece == pieces - 1
            batch = self.to_device(next(loader))
            noise = self._piece(piece, whole, order)
            with contextlib.nullcontext() if last else self.parallel.no_sync(self.wrapped):
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

    def _piece(self, piece: int, whole: Noise, order: BatchOrder) -> Noise:
        """The noise of a piece of the batch. Seeds torch's global generators, which dropout alone uses: resumed runs repeat it."""
        rows, seed, step = order.rows(piece), self.config.seed, self.step
        torch.manual_seed(seeds.fold(seed, "dropout", step, piece, self.accelerator.process_index))
        where = self.device if self.config.draws == "device" else "cpu"
        return self.objective.add_row_noise(whole.rows(rows), rows, seed, "rows", step, device=where)

    def _with_factor(self, options: StepOptions, batches: list[Batch], whole: Noise, order: BatchOrder) -> StepOptions:
        """The options with the adaptive weight of the adversarial term, by a pass over all pieces of the batch."""
        assert isinstance(self.objective, TokenizerObjective)
        total = torch.zeros((), device=self.device)
        for piece, batch in enumerate(batches):
            noise = self._piece(piece, whole, order).to(self.device)
            assert isinstance(noise, TokenizerNoise)
            with self.accelerator.autocast():
                total = total + self.objective.slopes(self.to_device(batch), noise, options) / len(batches)
        return replace(options, adversarial_factor=factor(total))

    def step_options(self, step: int) -> StepOptions:
        """The options of a step: whether the discriminator takes part, and the EMA weights for the features of an earlier step."""
        weights = None
        if self.ema is not None and self.carries_features and not self.parallel.collective:
            names = [name for name, p in self.objective.named_parameters() if p.requires_grad]
            weights = dict(zip(names, self.ema.shadow_params))
        return StepOptions(adversarial=step >= self.adversarial_start, ema_weights=weights)

    def to_device(self, batch: Batch) -> Batch:
        """The batch on the device of the run. A GPU copies it while it does other work: from pinned memory, without anyone waiting."""
        return {name: to_device(value, self.device) for name, value in batch.items()}

    def _apply(self) -> Tensor:
        """Clip and step, unless the gradient is not finite: such a step is skipped and counted, on all processes alike."""
        clip = self.config.optim.clip
        norm = self.parallel.clip(self.parameters, clip if clip is not None else math.inf).detach()
        finite, scaled = torch.isfinite(norm), self.accelerator.scaler is not None
        if self.adamw.fused or scaled:  # fp16's loss scaler skips the step itself, and must see it to lower its scale
            if not scaled:
                self.adamw.skip_unless(finite)
            self.optimizer.step()
        elif finite:  # waits for the device
            self.optimizer.step()
        self.skips.add(finite)
        if self.ema is not None and (self.numerics > 1 or finite):
            self.ema.step(self.averaged())
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return norm

    def use_numerics(self, version: Numerics) -> None:
        """Round as a run that was begun with this version of `mgen.training.update.NUMERICS`; before the first step."""
        self.numerics = version
        self.adamw.use_numerics(version)
        if self.ema is not None:
            self.ema.numerics = version

    @property
    def skipped(self) -> int:
        """Steps so far whose gradient was not finite; waits for the device. Diverged if they were too many in a row."""
        return self.skips.read()

    def averaged(self) -> list[Tensor]:
        """What the EMA averages: this process's part of the parameters."""
        return list(self.parallel.local(self.parameters))

    @contextlib.contextmanager
    def ema_weights(self) -> Iterator[None]:
        """The model with its EMA weights (or as it is, without EMA), in evaluation mode."""
        if self.ema is not None:
            self.ema.store(self.averaged())
            self.ema.copy_to(self.averaged())
        self.objective.eval()
        try:
            yield
        finally:
            if self.ema is not None:
                self.ema.restore(self.averaged())
            self.objective.train()


def check_pieces(config: TrainConfig, world: int) -> None:
    """Raise MgenError unless the batch can be cut into equal pieces."""
    if config.batch_size % (config.accumulate * world):
        raise MgenError(
            f"batch_size {config.batch_size} is not a multiple of accumulate × processes = {config.accumulate} × {world}: change one "
            "of them"
        )


def make_schedule(
    config: OptimConfig, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate's schedule over so many steps."""
    held = max(0, round(config.hold * steps) - config.warmup)  # steps between the warm-up and the fall
    # A fall of no steps would be a division by zero, or a learning rate of 0 all along: one of one step begins behind the run's end.
    end = max(steps - held, config.warmup + 1)
    schedule = get_scheduler(config.schedule, optimizer, num_warmup_steps=config.warmup, num_training_steps=end)
    if held:
        schedule.lr_lambdas = [falls_later(held, config.warmup, f) for f in schedule.lr_lambdas]
    if config.least_lr:
        least = config.least_lr / config.lr
        schedule.lr_lambdas = [falls_to(least, config.warmup, f) for f in schedule.lr_lambdas]
    return schedule


def falls_later(held: int, warmup: int, factor: Callable[[int], float]) -> Callable[[int], float]:
    """The factor of a learning rate that stays for `held` steps after `warmup` ones, and then goes on as `factor` of a step."""
    return lambda step: factor(step if step < warmup else max(warmup, step - held))


def falls_to(least: float, warmup: int, factor: Callable[[int], float]) -> Callable[[int], float]:
    """The factor of a learning rate that falls to `least` of it instead of to 0, after `warmup` steps; `factor` of a step: to 0."""
    return lambda step: factor(step) if step < warmup else least + (1 - least) * factor(step)


def decay_groups(model: torch.nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Parameter groups of the optimizer: with weight decay, and without if there are such parameters."""
    check_prefixes(model, config.no_decay, "optim.no_decay")
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = name.startswith(tuple(config.no_decay)) or (not config.decay_all and parameter.ndim < 2)
            groups.setdefault(0.0 if exempt else config.weight_decay, []).append(parameter)
    return [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()]
