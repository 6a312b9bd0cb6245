"""Checkpoints of a run: tensors as safetensors, numbers as JSON. Nothing in one is ever executed, and all of it is checked when it is read.

    checkpoint-0001000/
        state.json                              step, settings, the model's configuration, the data: see `State`
        model.safetensors                       weights and buffers
        optimizer.safetensors                   NAME/exp_avg, NAME/exp_avg_sq and NAME/step of each parameter
        ema.safetensors                         the averaged weights, if there are any
        discriminator.safetensors, discriminator_optimizer.safetensors

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
from mgen.training.tensors import Tensors, check_finite, not_finite, optimizer_tensors, own_tensors, trained
from mgen.training.trainer import Trainer
from mgen.utils.changes import plain
from mgen.utils.errors import MgenError, first_line
from mgen.utils.files import atomic_folder, write_json, write_tensors
from mgen.utils.reading import MOST_JSON_BYTES, parse_json, read_tensors, read_text
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
    numerics: Literal[1, 2] = 1  # see mgen.training.update.NUMERICS; runs of earlier versions don't say it

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
    """Save what an exact continuation needs; returns the folder."""
    output, step = trainer.output, trainer.step
    final = output / f"checkpoint-{step:07d}"
    if trainer.accelerator.is_main_process:
        files = _files(trainer)
        for part, tensors in files.items():
            check_finite(tensors, f"{part} after step {step}")
        try:
            with atomic_folder(final) as folder:
                for part, tensors in files.items():
                    write_tensors(folder / f"{part}.safetensors", tensors)
                write_json(folder / "state.json", asdict(_state(trainer)))
        except RuntimeError as error:  # torch reports a full disk in its own way
            raise MgenError(f"cannot write {final} ({error}): check permissions and free space") from error
        # Later ones were passed over as damaged: they must not push out whole ones.
        past = [path for path in list_checkpoints(output) if step_of(path) <= step]
        for old in past[: -trainer.config.log.keep]:
            shutil.rmtree(old)
    trainer.accelerator.wait_for_everyone()
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
        files["ema"] = dict(zip(trained(objective), trainer.ema.shadow_params, strict=True))
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
    files = _files(trainer)
    try:
        found = {part: read_tensors(path / f"{part}.safetensors")[0] for part in files}
    except MgenError as error:
        raise Damaged(str(error)) from error
    objective, adversary = trainer.objective, trainer.discriminator
    optimizers = {"optimizer": (trainer.optimizer, trained(objective))}
    if adversary is not None:
        optimizers["discriminator_optimizer"] = adversary.optimizer, trained(adversary.discriminator)
    for part, tensors in found.items():
        where = f"{path.name}/{part}.safetensors"
        if part in optimizers:
            _check_optimizer(tensors, optimizers[part][1], state.step, where)
        else:
            _check_tensors(tensors, files[part], where)
        if bad := not_finite(tensors):
            raise Damaged(f"{where}: {bad} holds NaN or infinity")
    trainer.use_numerics(state.numerics)
    with torch.no_grad():
        for part, tensors in found.items():
            if part in optimizers:
                _restore_optimizer(*optimizers[part], tensors)
            else:
                for name, value in tensors.items():
                    files[part][name].copy_(value)
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


def _check_optimizer(found: Tensors, parameters: Mapping[str, nn.Parameter], step: int, where: str) -> None:
    """Raise Damaged unless the tensors are the state of AdamW after at most `step` steps for some of the parameters."""
    wanted: Tensors = {}
    for name, parameter in parameters.items():
        if any(f"{name}/{key}" in found for key in (*MOMENTS, "step")):
            wanted |= {f"{name}/{key}": parameter for key in MOMENTS} | {f"{name}/step": torch.zeros(())}
    _check_tensors(found, wanted, where)
    for name, value in found.items():
        if name.endswith("/step") and not (value == value.round() and 0 <= value <= step):
            raise Damaged(f"{where}: {name} is {value.item()}, expected is a number of steps up to {step}")
        if name.endswith("/exp_avg_sq") and (value < 0).any():
            raise Damaged(f"{where}: {name} holds negative numbers")


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], found: Tensors
) -> None:
    fused = optimizer.param_groups[0].get("fused")
    for name, parameter in parameters.items():
        optimizer.state.pop(parameter, None)
        if f"{name}/step" in found:
            moments = {key: torch.empty_like(parameter).copy_(found[f"{name}/{key}"]) for key in MOMENTS}
            step = found[f"{name}/step"].clone()
            if fused:  # it counts steps where it computes
                step = step.to(parameter.device)
            optimizer.state[parameter] = {"step": step, **moments}
