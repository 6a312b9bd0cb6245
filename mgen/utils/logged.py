"""The lines of metrics.jsonl and their values: names that a reader understands, and units."""

import json
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Logged:
    """title: with the unit. band: by how much runs of the same settings usually differ, a share; None: it has no usual range.

    objective: whether settings of the objective change its scale. noisy: whether its curve is smoothed.
    """

    title: str
    band: float | None = 0.1
    objective: bool = False
    noisy: bool = True


LOGGED = {
    "loss": Logged(title="training loss", objective=True),
    "val_loss": Logged(title="validation loss", objective=True),
    "val_loss_raw": Logged(title="validation loss, raw weights", objective=True),
    "lr": Logged(title="learning rate", band=0.01, noisy=False),
    "grad_norm": Logged(title="gradient norm, before clipping", band=0.5, objective=True),
    "images_per_second": Logged(title="images per second", band=None),
    "mfu": Logged(title="share of the devices' matmul peak (MFU)", band=None),
    "data_wait": Logged(title="share of the time spent waiting for data", band=None),
    "accuracy": Logged(title="accuracy, share of masked tokens or of images"),
    "mse": Logged(title="mean squared error of the predicted noise"),
    "psnr": Logged(title="PSNR of reconstructions, dB", band=0.05),
    "l1": Logged(title="mean absolute pixel error, pixels in [0, 1]"),
    "l2": Logged(title="mean squared pixel error, pixels in [0, 1]"),
    "perceptual": Logged(title="perceptual distance"),
    "logits": Logged(title="squared difference of a classifier's logits"),
    "adversarial": Logged(title="adversarial loss of the tokenizer", band=None),
    "adversarial_factor": Logged(title="adaptive weight of the adversarial loss", band=None),
    "discriminator": Logged(title="loss of the discriminator", band=None),
    "usage": Logged(title="share of the codebook used in a batch"),
    "perplexity": Logged(title="perplexity of the codebook in a batch, ids"),
    "kl": Logged(title="KL divergence per latent number, nats"),
    "latent_rms": Logged(title="root mean square of the latents"),
    "posterior_std": Logged(title="standard deviation of the posterior"),
}
NO_CURVE = ("step", "seconds", "images", "skipped")


def logged(name: str) -> Logged:
    """What a value is; one without an entry goes by its name, and by "validation" if it begins with val_."""
    if name in LOGGED:
        return LOGGED[name]
    if name.startswith("val_"):
        base = logged(name.removeprefix("val_"))
        return Logged(title=f"validation: {base.title}", band=base.band, objective=base.objective)
    return Logged(title=name.replace("_", " "), band=None)


def in_order(names: set[str]) -> list[str]:
    """Names of values in the order in which one reads them: loss, validation loss, and so on, then others by name."""
    known = list(LOGGED)
    return sorted(names - {*NO_CURVE}, key=lambda name: (known.index(name) if name in known else len(known), name))


def log_lines(data: bytes) -> list[tuple[str, dict[str, float | None]]]:
    """Each line of a metrics.jsonl as text and as its values, without those that no run writes, such as one that a crash cut off."""
    found = ((text, _values(text)) for text in data.splitlines())
    return [(text.decode(), values) for text, values in found if values is not None]


def _values(text: bytes) -> dict[str, float | None] | None:
    """The values of a line, None if it is not a mapping of numbers with a step."""
    try:
        line = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not all(value is None or _is_number(value) for value in line.values()):
        return None
    step = line.get("step")
    return line if type(step) is int and 0 <= step <= 10**9 else None


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)
