"""Resuming: the newest checkpoint that is whole, and which settings may differ from those that it was made with."""

import warnings
from dataclasses import asdict
from typing import Any

import torch

from mgen.training.checkpoints import Damaged, State, data_state, list_checkpoints, load_checkpoint, read_state
from mgen.training.config import train_config, without_unused
from mgen.training.trainer import Trainer
from mgen.utils.changes import Change, changes, plain, told
from mgen.utils.errors import MgenError, shown

# Settings that a resumed run applies from its next step on, themselves or all below them; any other change raises an error.
MAY_CHANGE = (
    "steps",
    "accumulate",
    "processes",
    "parallel",
    "hsdp_shards",
    "compile",
    "gradient_checkpointing",
    "output",
    "resume",
    "log",
    "data.index",
    "data.keep",
    "data.workers",
    "objective.sampler",
    "optim.lr",
    "optim.weight_decay",
    "optim.clip",
    "optim.schedule",
    "optim.warmup",
    "optim.hold",
    "optim.least_lr",
    "ema.decay",
    "ema.warmup",
)


def may_change(key: str) -> bool:
    """Whether a resumed run may have another value of this setting."""
    return any(key == name or key.startswith(f"{name}.") for name in MAY_CHANGE)


def resume(trainer: Trainer) -> list[Change]:
    """Restore the newest whole checkpoint of the run's output folder, if there is one; returns the settings that changed.

    Raises:
        MgenError: no checkpoint is whole, or the newest one belongs to other settings, another model or other data.
    """
    found = list_checkpoints(trainer.output)[::-1]
    why: list[str] = []
    for path in found:
        try:
            state = read_state(path)
            changed = check_same(trainer, state, str(path))
            load_checkpoint(trainer, path, state)
        except Damaged as error:
            why.append(f"{path} is damaged ({error})")
            continue
        if why and trainer.accelerator.is_main_process:
            warnings.warn(f"{'; '.join(why)}: resuming from {path.name}", stacklevel=2)
        check_agreed(trainer)
        return changed
    if why:
        raise MgenError(f"cannot resume: {why[0]}; remove it, or choose another output folder")
    return []


def check_same(trainer: Trainer, state: State, path: str) -> list[Change]:
    """The settings that have changed; MgenError if one of them may not, or if the model or the data are others."""
    config = trainer.config
    other = "use the same, or another output folder"
    try:
        given = state.settings
        if isinstance(given.get("data"), dict):
            given = {**given, "data": without_unused(given["data"])}
        old = plain(asdict(train_config(given)))
    except MgenError as error:
        raise MgenError(f"{path}/state.json: settings: {error}; {other}") from error
    # What `model` means is compared below: a name and all its sections written out are the same.
    found = [c for c in changes(old, plain(asdict(config))) if c[0].partition(".")[0] != "model"]
    fixed = [c for c in found if not may_change(c[0])]
    fixed += [(f"model.{key}", a, b) for key, a, b in changes(state.model, trainer.model_config)]
    if fixed:
        raise MgenError(
            f"{path} was trained with other settings: {told(fixed)}; {other} (init=FOLDER starts from its weights)"
        )
    if data := list(changes(plain(asdict(state.data)), plain(asdict(data_state(trainer))))):
        names = [c for c in data if c[0] == "class_names"]
        raise MgenError(
            f"{path} was trained on other data: {_told_classes(*names[0]) if names else told(data)}; {other}"
        )
    for name, kept, has in (
        ("ema_steps", state.ema_steps, trainer.ema is not None),
        ("scaler", state.scaler, trainer.accelerator.scaler is not None),
    ):
        if (kept is not None) != has:
            raise MgenError(
                f"{path}/state.json: '{name}' is {shown(kept)}, which a run of these settings never writes; {other}"
            )
    if config.steps < state.step:
        raise MgenError(
            f"'steps' is {config.steps}, but {path} has already done {state.step}: ask for at least as many"
        )
    return found


def _told_classes(key: str, old: Any, new: Any) -> str:
    """How two lists of classes differ."""
    gone, added = [n for n in old if n not in new], [n for n in new if n not in old]
    if not gone and not added:
        return "the classes stand in another order"
    return "; ".join(
        f"{word} {shown(names)}" for word, names in (("new classes", added), ("missing classes", gone)) if names
    )


def check_agreed(trainer: Trainer) -> None:
    """Raise MgenError unless all processes found the same checkpoint."""
    steps = trainer.accelerator.gather(torch.tensor([trainer.step], device=trainer.device)).tolist()
    if len(set(steps)) > 1:
        raise MgenError(
            f"the processes resume from different steps ({steps[:8]}): let all of them see the same output folder"
        )
