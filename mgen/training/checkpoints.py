"""Checkpoints of a run. Each is written under a temporary name and renamed; only then are old ones removed."""

import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from mgen.utils.errors import MgenError
from mgen.utils.files import read_json, write_json

if TYPE_CHECKING:
    from mgen.training.loop import Trainer

SAME = ("task", "batch_size", "seed")  # settings that a resumed run must share with its checkpoint


def list_checkpoints(output: Path) -> list[Path]:
    """Complete checkpoints below `output`, oldest first."""
    found = [p.parent for p in output.glob("checkpoint-*/state.json") if p.parent.name[11:].isdigit()]
    return sorted(found, key=lambda p: int(p.name[11:]))


def save_checkpoint(trainer: "Trainer") -> None:
    """Save what an exact continuation needs: weights, optimizer, EMA, learning-rate schedule, step."""
    accelerator, output, step = trainer.accelerator, trainer.output, trainer.step
    final = output / f"checkpoint-{step:07d}"
    temporary = output / f"checkpoint-{step:07d}.tmp"
    try:
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(temporary), safe_serialization=True)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            state = {"step": step, "skipped": trainer.skipped, "seconds": trainer.seconds}
            state |= {name: getattr(trainer.config, name) for name in SAME}
            write_json(temporary / "state.json", state)
            if final.exists():
                shutil.rmtree(final)
            temporary.rename(final)
            for old in list_checkpoints(output)[: -trainer.config.log.keep]:
                shutil.rmtree(old)
    # torch and safetensors report a full disk in their own ways.
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:160]
        raise MgenError(f"cannot write {final} ({reason}): check permissions and free space") from error
    accelerator.wait_for_everyone()


def load_newest(trainer: "Trainer") -> bool:
    """Restore the newest complete checkpoint of the run's output folder; False if there is none."""
    found = list_checkpoints(trainer.output)
    if not found:
        return False
    path = found[-1]
    state = read_json(path / "state.json")
    if not {"step", "skipped", "seconds", *SAME} <= state.keys():
        raise MgenError(f"{path / 'state.json'} is incomplete: remove {path} to resume from the checkpoint before it")
    for name in SAME:
        if state[name] != getattr(trainer.config, name):
            raise MgenError(
                f"{path} was trained with {name}={state[name]}, now it is {getattr(trainer.config, name)}: "
                "use the same value or another output folder"
            )
    try:
        trainer.accelerator.load_state(str(path))
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        text = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise MgenError(f"cannot resume from {path} ({text}): remove it, or choose another output folder") from error
    trainer.step, trainer.skipped, trainer.seconds = state["step"], state["skipped"], state["seconds"]
    if trainer.ema is not None:
        trainer.ema.to(trainer.device)
    return True
