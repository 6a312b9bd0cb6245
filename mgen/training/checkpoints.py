"""Checkpoints of a run: tensors as safetensors, numbers as JSON. Nothing in one is ever executed, and all of it is checked when it is read.

    checkpoint-0001000/
        state.json                              step, settings, the model's configuration, the data: see `State`
        model.safetensors                       weights and buffers
        optimizer.safetensors                   NAME/exp_avg, NAME/exp_avg_sq and NAME/step of each parameter
        ema.safetensors                         the averaged weights, if there are any
        discriminator.safetensors, discriminator_optimizer.safetensors

With weights that are spread over processes, `shards` takes the place of these files, see mgen.training.shard_files; a run with whole
weights reads such a checkpoint too, and the other way round.

The learning rate is a function of the step and of the settings, so no state of it is kept. A checkpoint is written under a temporary name
and renamed; only then are old ones removed.
"""

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic_core
import torch
from pydantic import Field
from torch import Tensor, nn

from mgen.training.config import Steps
from mgen.training.shard_files import SHARDS, has_shards
from mgen.training.tensors import Tensors, not_finite, optimizer_tensors, own_part, own_tensors, trained
from mgen.training.trainer import Trainer
from mgen.training.update import Numerics
from mgen.utils.changes import plain
from mgen.utils.errors import MgenError, first_line
from mgen.utils.reading import MOST_JSON_BYTES, parse_json, read_text
from mgen.utils.schema import Count, Natural, NonNegative, Positive, build, schema

NAME = re.compile("checkpoint-([0-9]{7,10})")
MOMENTS = ("exp_avg", "exp_avg_sq")


class Damaged(MgenError):
    """A checkpoint whose files are incomplete or unreadable; the one before it may be whole."""


# -- what state.json holds -------------------------------------------------------------------------------------------------


@schema
class DataState:
    """What the run is trained on; a resumed run must find the same."""

    images: Count
    class_names: tuple[str, ...]
    tokens: str | None  # fingerprint of the tokenizer that makes them, or made the cache; None: trained on images


@schema
class ScalerState:
    """The loss scale of fp16, as of torch.amp.GradScaler."""

    scale: Positive
    growth_factor: Positive
    backoff_factor: Positive
    growth_interval: Natural
    growth_tracker: Natural


@schema
class State:
    """state.json."""

    version: Literal[2] = 2
    step: Steps
    skipped: Natural
    seconds: Annotated[NonNegative, Field(le=1e10)]
    settings: dict[str, Any]  # all of them, as in config.json
    model: dict[str, Any]  # the model's full configuration
    data: DataState
    ema_steps: Natural | None = None  # None: no EMA
    scaler: ScalerState | None = None  # None: not fp16
    numerics: Numerics = 1  # see mgen.training.update.NUMERICS; runs of earlier versions don't say it

    def __post_init__(self) -> None:
        for name in ("skipped", "ema_steps"):
            if (getattr(self, name) or 0) > self.step:
                raise MgenError(f"{name} is {getattr(self, name)}, but step {self.step}")


# -- writing ---------------------------------------------------------------------------------------------------------------


def list_checkpoints(output: Path) -> list[Path]:
    """Complete checkpoints in the folder `output`, oldest first."""
    found = [
        (int(name[1]), p.parent)
        for p in output.glob("checkpoint-*/state.json")
        if (name := NAME.fullmatch(p.parent.name))
    ]
    return [path for _, path in sorted(found)]


def save_checkpoint(trainer: Trainer) -> Path:
    """Save what an exact continuation needs; returns the folder, which may be complete only later, see Parallel.poll."""
    output, step, keep = trainer.output, trainer.step, trainer.config.log.keep
    final = output / f"checkpoint-{step:07d}"
    files = _files(trainer)
    for part, tensors in files.items():
        trainer.parallel.check_finite(tensors, f"{part} after step {step}")

    def remove_old() -> None:
        # Later ones were passed over as damaged: they must not push out whole ones.
        past = [path for path in list_checkpoints(output) if step_of(path) <= step]
        for old in past[:-keep]:
            shutil.rmtree(old)

    trainer.parallel.save(final, files, asdict(_state(trainer)), remove_old)
    return final


def data_state(trainer: Trainer) -> DataState:
    """What state.json says of the data."""
    task = trainer.task
    names = tuple(task.train_data.class_names)
    return DataState(images=len(task.train_data), class_names=names, tokens=task.tokens_fingerprint)


def _state(trainer: Trainer) -> State:
    """What state.json says of a run."""
    scaler = trainer.accelerator.scaler
    numbers = {} if scaler is None else {key.lstrip("_"): value for key, value in scaler.state_dict().items()}
    return State(
        step=trainer.step,
        skipped=trainer.skipped,
        seconds=trainer.seconds,
        settings=plain(asdict(trainer.config)),
        model=trainer.model_config,
        data=data_state(trainer),
        ema_steps=None if trainer.ema is None else trainer.ema.optimization_step,
        scaler=ScalerState(**numbers) if numbers else None,
        numerics=trainer.numerics,
    )


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.rpartition("-")[2])


def _files(trainer: Trainer) -> dict[str, Tensors]:
    """The tensors of each file."""
    objective, adversary = trainer.objective, trainer.discriminator
    files = {
        "model": own_tensors(objective),
        "optimizer": optimizer_tensors(trainer.optimizer, trained(objective)),
    }
    if trainer.ema is not None:
        averages = trainer.parallel.joined(trainer.ema.shadow_params, trainer.parameters)
        files["ema"] = dict(zip(trained(objective), averages, strict=True))
    if adversary is not None:
        files["discriminator"] = own_tensors(adversary.discriminator)
        files["discriminator_optimizer"] = optimizer_tensors(adversary.optimizer, trained(adversary.discriminator))
    return files


# -- reading ---------------------------------------------------------------------------------------------------------------


def read_state(path: Path) -> State:
    """state.json of a checkpoint.

    Raises:
        Damaged: the file cannot be read. MgenError: it holds what no run writes, or is of an older mgen.
    """
    file = path / "state.json"
    try:
        text = read_text(file, most=MOST_JSON_BYTES)
        pydantic_core.from_json(text)
    except (MgenError, ValueError) as error:
        if "recursion" not in str(error):  # no damage makes that
            raise Damaged(f"{file.name}: {first_line(error)}") from error
    data = parse_json(text, str(file))
    if isinstance(data, dict) and "version" not in data and any(path.glob("*.pkl")):
        raise MgenError(
            f"{path} was written by an older mgen, with pickles, which can run code and are no longer read: start from the exported "
            "model with init=FOLDER and another output folder, or finish the run with the version that began it"
        )
    try:
        state = build(State, data, f"{file}: ")
        if state.step != step_of(path):
            raise MgenError(f"{file}: 'step' is {state.step}, but the folder's name says {step_of(path)}")
    except MgenError as error:
        raise MgenError(f"{error}; remove {path} to resume from the checkpoint before it") from error
    return state


def load_checkpoint(trainer: Trainer, path: Path, state: State) -> None:
    """Put a checkpoint's tensors and numbers into the trainer. All are read and checked before the first is changed.

    Raises:
        Damaged: files are missing or unreadable, or their tensors are not those of the run.
    """
    files, objective, adversary = _files(trainer), trainer.objective, trainer.discriminator
    optimizers = {"optimizer": (trainer.optimizer, trained(objective))}
    if adversary is not None:
        optimizers["discriminator_optimizer"] = adversary.optimizer, trained(adversary.discriminator)
    like = files | {part: _all_states(parameters) for part, (_, parameters) in optimizers.items()}
    try:
        found = trainer.parallel.read(path, like)
        for part, tensors in found.items():
            where = f"{path.name}/{SHARDS}, {part}" if has_shards(path) else f"{path.name}/{part}.safetensors"
            if part in optimizers:
                _check_optimizer(tensors, optimizers[part][1], state.step, where)
            else:
                _check_tensors(tensors, files[part], where)
            if bad := not_finite(tensors):
                raise Damaged(f"{where}: {bad} holds NaN or infinity")
        problem = None
    except MgenError as error:
        problem = str(error)
    if problem := trainer.parallel.agree(problem):
        raise Damaged(problem)
    trainer.use_numerics(state.numerics)
    with torch.no_grad():
        for part, tensors in found.items():
            if part in optimizers:
                _restore_optimizer(*optimizers[part], tensors)
            else:
                for name, value in tensors.items():
                    own_part(files[part][name]).copy_(own_part(value))
    _restore_numbers(trainer, state)


def _restore_numbers(trainer: Trainer, state: State) -> None:
    trainer.step, trainer.seconds = state.step, state.seconds
    trainer.skips.set(state.skipped)
    if trainer.ema is not None and state.ema_steps is not None:
        trainer.ema.optimization_step = state.ema_steps
    if (scaler := trainer.accelerator.scaler) is not None and state.scaler is not None:
        numbers = asdict(state.scaler)
        scaler.load_state_dict(numbers | {"_growth_tracker": numbers["growth_tracker"]})
    schedule = trainer.schedule  # every one of them is a function of the step
    schedule.last_epoch, schedule._step_count = state.step, state.step + 1
    for group, base, factor in zip(trainer.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * factor(state.step)


def _check_tensors(found: Tensors, wanted: Mapping[str, Tensor], where: str) -> None:
    """Raise Damaged unless names, shapes and types are as wanted."""
    _check_names(found, wanted, where)
    for name, value in found.items():
        if (value.shape, value.dtype) != (wanted[name].shape, wanted[name].dtype):
            raise Damaged(f"{where}: {name[:100]} is {_about(value)}, expected is {_about(wanted[name])}")


def _about(value: Tensor) -> str:
    return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"


def _check_names(found: Iterable[str], wanted: Iterable[str], where: str) -> None:
    for name in sorted(set(wanted) ^ set(found)):
        raise Damaged(f"{where}: {name[:100]} is {'missing' if name in wanted else 'not of this run'}")


def _all_states(parameters: Mapping[str, nn.Parameter]) -> Tensors:
    """Tensors as those of the state of AdamW for all of the parameters."""
    out: Tensors = {}
    for name, parameter in parameters.items():
        out |= {f"{name}/{key}": parameter for key in MOMENTS} | {f"{name}/step": torch.zeros(())}
    return out


def _check_optimizer(found: Tensors, parameters: Mapping[str, nn.Parameter], step: int, where: str) -> None:
    """Raise Damaged unless the tensors are the state of AdamW after at most `step` steps for some of the parameters."""
    begun = {n: p for n, p in parameters.items() if any(f"{n}/{key}" in found for key in (*MOMENTS, "step"))}
    wanted = _all_states(begun)
    _check_tensors(found, wanted, where)
    for name, value in found.items():
        if name.endswith("/step") and not (value == value.round() and 0 <= value <= step):
            raise Damaged(f"{where}: {name} is {value.item()}, expected is a number of steps up to {step}")
        if name.endswith("/exp_avg_sq") and (own_part(value) < 0).any():
            raise Damaged(f"{where}: {name} holds negative numbers")


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], found: Tensors
) -> None:
    fused = optimizer.param_groups[0].get("fused")
    for name, parameter in parameters.items():
        optimizer.state.pop(parameter, None)
        if f"{name}/step" in found:
            moments = {key: torch.empty_like(parameter) for key in MOMENTS}
            for key, moment in moments.items():
                own_part(moment).copy_(own_part(found[f"{name}/{key}"]))
            step = found[f"{name}/step"].clone()
            if fused:  # it counts steps where it computes
                step = step.to(parameter.device)
            optimizer.state[parameter] = {"step": step, **moments}
