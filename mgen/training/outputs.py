"""What a run shows of itself: losses on the validation data, previews, and the model in the folder that users load."""

import contextlib
import sys
from collections.abc import Iterator

import torch
from tqdm import tqdm

from mgen.training.logs import Logger
from mgen.training.noise import Augmentation
from mgen.training.objective import Logs, StepOutput
from mgen.training.tensors import own_tensors, trained
from mgen.training.trainer import Trainer
from mgen.utils import seeds
from mgen.utils.compiling import uncompiled
from mgen.utils.files import atomic_folder, atomic_path


@torch.no_grad()  # in inference mode, weights that are spread over processes would be gathered for inference alone
def evaluate(trainer: Trainer, most: int = 10000, *, raw: bool = False) -> dict[str, float]:
    """Mean loss and logged values on at most `most` validation images, with EMA weights; each process takes its share.

    Args:
        raw: with the raw weights, and the loss alone, as "val_loss_raw".
    """
    data, world, seed = trainer.task.val_data, trainer.accelerator.num_processes, trainer.config.seed
    if data is None:
        return {}
    size = max(1, trainer.config.batch_size // (trainer.config.accumulate * world))
    starts = range(0, min(most, len(data)), size)
    # With fewer batches than processes, every process evaluates all of them: the weighted mean is the same.
    own = starts[trainer.accelerator.process_index :: world] if len(starts) >= world else starts
    # Processes that share weights run the model equally often: of one that has a batch less its last one again, which does not count.
    again = trainer.parallel.collective and len(own) * world < len(starts)
    options = trainer.step_options(trainer.step - 1)  # those of the last step
    sums: Logs = {}
    count = torch.zeros((), device=trainer.device)
    hidden = not trainer.accelerator.is_main_process
    bar = tqdm(
        [*own, *own[-1:]] if again else own,
        unit="batch",
        desc="validating",
        disable=hidden,
        file=sys.stderr,
        delay=5.0,
        leave=False,
    )
    with bar, raw_weights(trainer) if raw else trainer.ema_weights(), trainer.accelerator.autocast():
        for turn, start in enumerate(bar):
            batch = trainer.to_device(data.__getitems__(range(start, min(start + size, len(data), most))))
            n = len(batch["label"])
            counts = n if turn < len(own) else 0
            rng = seeds.generator(seed, "evaluate", start)
            noise = trainer.objective.make_noise(n, rng, augmentation=Augmentation())
            noise = trainer.objective.add_row_noise(noise, slice(start, start + n), seed, "evaluate rows")
            out: StepOutput = trainer.objective(batch, noise.to(trainer.device), options)
            for name, value in {"loss": out.loss, **out.logs}.items():
                sums[name] = sums.get(name, torch.zeros((), device=trainer.device)) + value.float() * counts
            count += counts
    names = sorted(sums)
    total = trainer.accelerator.reduce(torch.stack([sums[name] for name in names] + [count]), "sum")
    means = dict(zip(names, (total[:-1] / total[-1]).tolist()))
    if raw:
        return {"val_loss_raw": means["loss"]}
    values = {f"val_{name}": value for name, value in means.items()}
    trainer.task.validated = trainer.step, values
    return values


def preview(trainer: Trainer, logger: Logger) -> None:
    """Show what the model makes with raw and with EMA weights, as PNG files and in TensorBoard, on the main process."""
    if not trainer.accelerator.is_main_process and not trainer.parallel.collective:
        return
    step = f"step {trainer.step:,}"
    ways = {"raw": (raw_weights(trainer), f"{step}, raw weights" if trainer.ema is not None else step)}
    if trainer.ema is not None:
        ways["ema"] = (trainer.ema_weights(), f"{step}, EMA weights")
    for name, (weights, title) in ways.items():
        with (
            weights,
            trainer.parallel.whole(trainer.task, trainer.device) as here,
            uncompiled(),
        ):  # few calls, with shapes of their own
            picture = trainer.task.preview(trainer.device, title) if here else None
        if picture is not None:
            with atomic_path(trainer.output / "previews" / f"{trainer.step:07d}-{name}.png") as path:
                picture.save(path, format="PNG")
            logger.show(f"preview/{name}", picture, trainer.step)


@contextlib.contextmanager
def raw_weights(trainer: Trainer) -> Iterator[None]:
    """The model as it is trained, in evaluation mode."""
    trainer.objective.eval()
    try:
        yield
    finally:
        trainer.objective.train()


def export(trainer: Trainer) -> None:
    """Write `model` (with the EMA weights if there are any) and `model-raw` (only if there is an EMA), with `lora` the adapters too."""
    check_finite = trainer.parallel.check_finite
    check_finite(own_tensors(trainer.objective), f"model after step {trainer.step}")
    if trainer.ema is not None:
        names = trained(trainer.objective)
        check_finite(dict(zip(names, trainer.ema.shadow_params)), f"averaged model after step {trainer.step}")
    if not trainer.accelerator.is_main_process and not trainer.parallel.collective:
        return
    with trainer.ema_weights(), trainer.parallel.whole(trainer.task) as here:
        if here:
            with atomic_folder(trainer.output / "model") as folder:
                trainer.task.export(folder)
        if here and trainer.config.lora is not None:
            with atomic_folder(trainer.output / "lora") as folder:
                trainer.task.export_adapter(folder)
    if trainer.ema is not None:
        with trainer.parallel.whole(trainer.task) as here:
            if here:
                with atomic_folder(trainer.output / "model-raw") as folder:
                    trainer.task.export(folder)
