"""What a run says of itself in words: what it trains on what (config.json), and where it stands when it ends or stops."""

import math
import shlex
import statistics
from pathlib import Path

from mgen.generators import Cascade, Generator
from mgen.tokenizers.base import Tokenizer
from mgen.training.trainer import Trainer
from mgen.utils.errors import MgenError
from mgen.utils.limits import in_time
from mgen.utils.logged import log_lines
from mgen.utils.reading import check_file

Facts = dict[str, int | str | None]
Lines = list[dict[str, float | None]]  # of metrics.jsonl


def facts(trainer: Trainer) -> Facts:
    """The model and the data in numbers and words, for config.json: what decides whether two runs can be compared."""
    task, model = trainer.task, trainer.objective.model
    data = task.train_data
    out: Facts = {
        "task": trainer.config.task,
        "model": type(model).__name__,
        "trained parameters": sum(p.numel() for p in trainer.parameters),
        "training images": len(data),
        "validation images": len(task.val_data) if task.val_data is not None else 0,
        "classes": data.num_classes,
    }
    network = trainer.objective.companions.tokenizer if isinstance(model, Generator | Cascade) else model
    if network is not None:
        out |= {"image side, pixels": network.config.image_size, "image channels": network.config.in_channels}
    spec = model.tokens if isinstance(model, Generator | Cascade) else None
    spec = model.spec if isinstance(model, Tokenizer) else spec
    if spec is not None:
        out |= {"tokens per image": spec.length, "kind of tokens": spec.kind, "vocabulary, ids": spec.vocab_size}
    if isinstance(model, Generator):
        sections = trainer.model_config
        out |= {"trunk": sections["trunk"]["type"], "head": sections["head"]["type"]}
    return out


def finished(trainer: Trainer) -> str:
    """What a completed run has done, where everything is, and what to type next."""
    out, lines = trainer.output, read_lines(trainer.output / "metrics.jsonl")
    raw = f", EMA weights; raw ones in {out / 'model-raw'}" if trainer.ema is not None else ""
    pictures = sorted(p.name for p in (out / "previews").glob(f"{trainer.step:07d}-*.png"))
    rows = {
        "steps": f"{trainer.step:,}; {_images(trainer)}",
        "time": _time(trainer, lines),
        "loss": _loss(lines),
        "validation": _validation(lines, ema=trainer.ema is not None),
        "model": f"{out / 'model'}{raw}",
        "previews": f"{out / 'previews'}, the last: {', '.join(pictures)}" if pictures else "",
        "logs": str(out / "metrics.jsonl"),
        "TensorBoard": _tensorboard(out),
        "next": _next_command(trainer),
        "curves": f"mgen report {_quoted(out)} --out {_quoted(f'{out.name}.html')}",
    }
    return table(f"finished: {out / 'model'}", rows)


def stopped(trainer: Trainer) -> str:
    """Where an interrupted run stands, and how to go on."""
    out, steps, lines = trainer.output, trainer.config.steps, read_lines(trainer.output / "metrics.jsonl")
    left = trainer.seconds / trainer.step * (steps - trainer.step)
    rows = {
        "steps": f"{trainer.step:,} of {steps:,} ({100 * trainer.step // steps} %); {_images(trainer)}",
        "time": f"{_time(trainer, lines)}; about {in_time(left)} left",
        "loss": _loss(lines),
        "validation": _validation(lines, ema=trainer.ema is not None),
        "checkpoint": str(out / f"checkpoint-{trainer.step:07d}"),
        "model": f"{out / 'model'}, of an earlier step" if (out / "model").is_dir() else "not exported yet",
        "logs": str(out / "metrics.jsonl"),
        "TensorBoard": _tensorboard(out),
        "next": "rerun the same command to resume",
    }
    return table(f"stopped: {out}", rows)


def table(head: str, rows: dict[str, str]) -> str:
    """A line, and below it aligned lines of a name and a value; empty values are left out."""
    wide = max(map(len, rows))
    return "\n".join([head, *(f"  {name:<{wide}}  {value}" for name, value in rows.items() if value)])


def _images(trainer: Trainer) -> str:
    """How many images were seen, and how often each."""
    count, size = trainer.step * trainer.config.batch_size, len(trainer.task.train_data)
    return f"{count:,} images, {count / size:.3g} times the {size:,} of the data"


def _time(trainer: Trainer, lines: Lines) -> str:
    """How long it took with everything, and the usual speed of a step."""
    speeds = [value for _, value in _column(lines, "images_per_second")]
    speed = f", {statistics.median(speeds):,.3g} images per second" if speeds else ""
    return f"{in_time(trainer.seconds)}{speed}"


def _loss(lines: Lines) -> str:
    found = _column(lines, "loss")
    return f"{found[-1][1]:.4g} at step {found[-1][0]:,}" if found else ""


def _validation(lines: Lines, *, ema: bool) -> str:
    """The last loss on the validation data, and the best one."""
    found, raw = _column(lines, "val_loss"), _column(lines, "val_loss_raw")
    if not found:
        return ""
    step, value = found[-1]
    text = f"{value:.4g} at step {step:,}{' with EMA weights' if ema else ''}"
    if raw and raw[-1][0] == step:
        text += f", {raw[-1][1]:.4g} with raw ones"
    step, best = min(found, key=lambda pair: pair[1])
    return text if step == found[-1][0] else f"{text}; the best was {best:.4g} at step {step:,}"


def _tensorboard(out: Path) -> str:
    return f"tensorboard --logdir {_quoted(out / 'tensorboard')}" if (out / "tensorboard").is_dir() else ""


def _column(lines: Lines, name: str) -> list[tuple[int, float]]:
    """(step, value) of all lines that have this value, as a finite number."""
    found = [(line["step"], line.get(name)) for line in lines]
    return [
        (int(step), value) for step, value in found if step is not None and value is not None and math.isfinite(value)
    ]


def read_lines(file: Path) -> Lines:
    """The lines of the run's own metrics.jsonl; a summary is no reason to fail."""
    try:
        return [values for _, values in log_lines(check_file(file).read_bytes())]
    except (OSError, MgenError):
        return []


def _next_command(trainer: Trainer) -> str:
    """What one does with a finished model."""
    config, out = trainer.config, trainer.output
    model = _quoted(out / "model")
    if config.task == "tokenizer":
        data = config.data.path if config.data.kind in ("folder", "webdataset") and config.data.path else "fmnist"
        path = f" --data-path {_quoted(config.data.path)}" if config.data.kind == "fmnist" and config.data.path else ""
        return f"mgen cache --data {_quoted(data)}{path} --tokenizer {model} --out {_quoted(f'{out}-cache')}"
    if config.task == "classifier":
        return f"mgen eval SAMPLES --classifier {model}"
    if (out / "model" / "model_index.json").is_file():
        return f"mgen sample --model {model} --out {_quoted(f'{out}-samples')}"
    return f"mgen convert pipeline {model} --tokenizer TOKENIZER --out {_quoted(f'{out}-pipeline')}"


def _quoted(text: str | Path) -> str:
    return shlex.quote(str(text))
