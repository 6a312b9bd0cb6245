"""A published figure beside the measured one: what a recipe says of its evaluation, laid under the options of a command."""

import os
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgen.utils.errors import MgenError
from mgen.zoo import embedded, local_folder, recipe
from mgen.zoo.recipes import evaluation_settings


@dataclass(kw_only=True)
class Published:
    """Metrics of a recipe, metric → number, and how far a faithful run may be from them."""

    name: str
    metrics: dict[str, float]
    tolerance: dict[str, float]
    count: int
    note: str
    changed: list[str]

    def compare(self, outcome: dict[str, Any]) -> dict[str, Any]:
        """For a result: every published figure with what was measured and a verdict."""
        rows = []
        for metric, value in self.metrics.items():
            row: dict[str, Any] = {"metric": metric, "published": value, "tolerance": self.tolerance.get(metric)}
            metrics = outcome["metrics"]  # below 50,000 images a distance carries the count in its name
            row["measured"] = metrics.get(metric, metrics.get(f"{metric}-{self.count}"))
            rows.append(row | {"verdict": self._verdict(row, outcome)})
        return {"recipe": self.name, "rows": rows, "note": self.note}

    def _verdict(self, row: dict[str, Any], outcome: dict[str, Any]) -> str:
        if self.changed:
            return f"not comparable, {', '.join(self.changed)} given"
        if outcome["count"] != self.count:
            return f"not comparable, {outcome['count']} images instead of {self.count}"
        if row["measured"] is None:
            return "not measured"
        off = row["measured"] - row["published"]
        told = f"off by {off:+.2g}" if abs(off) >= 1e-6 * abs(row["published"]) else "equal"
        if row["tolerance"] is None:
            return f"{told}, no tolerance stated"
        return f"{told}, {'within' if abs(off) <= row['tolerance'] else 'OUTSIDE'} the tolerance"


# Options that make another measurement of what a recipe describes; a reference under another name may be the same file.
CHANGES = (
    "steps",
    "guidance",
    "temperature",
    "order",
    "head_steps",
    "chain",
    "set",
    "labels",
    "seed",
    "image_size",
    "quantization",
)


def settle(args: Namespace, *, model: bool) -> Published | None:
    """Fill what the options leave open from the recipe's `evaluation:`; None without a recipe, or where other measuring is asked for.

    The recipe decides the measuring if no --protocol and no --extractor was given; else it is a recipe of the sampler alone.

    Args:
        model: whether images are drawn; of stored ones labels, seed, size and rounding are what they are.

    Raises:
        MgenError: the recipe's model or reference is not on this machine; the message says how to get it.
    """
    if not args.recipe or args.protocol or args.extractor or args.reconstruction:
        return None
    settings = evaluation_settings(args.recipe)
    if settings is None:
        return None
    named = args.path
    if named is None:
        entry = recipe(args.recipe)
        folder = local_folder(entry)
        if folder is None:
            raise MgenError(
                f"{entry.name} is not on this machine ({entry.facts['folder']}): `mgen zoo {entry.name}` says how to get it; or give "
                "its folder"
            )
        name = entry.facts.get("folder", "")  # embedded models go by their names
        args.path = name if "/" not in name and folder == embedded(name) else str(folder)
    args.protocol = settings.protocol
    if args.reference is None:
        args.reference = find_file(settings.reference, settings.reference_get)
    changed = [f"--{name.replace('_', '-')}" for name in CHANGES if getattr(args, name) not in (None, [])]
    if Path(args.reference).name != Path(settings.reference).name:
        changed.append("--reference")
    notes = [settings.note] if settings.note else []
    if named is not None:
        notes.append(f"{named} is taken for what the recipe names")
    if args.dtype != "fp32":
        notes.append(f"drawn in {args.dtype}")
    for name in ("labels", "seed", "image_size", "quantization") if model else ():
        if getattr(args, name) is None:
            setattr(args, name, getattr(settings, name))
    if model:
        args.num_images = args.num_images or settings.count
    return Published(
        name=Path(args.recipe).stem,
        metrics=settings.published,
        tolerance=settings.tolerance,
        count=settings.count,
        note="; ".join(notes),
        changed=changed,
    )


def find_file(name: str, get: str | None) -> str:
    """A reference by name: as a path, or under $MGEN_MODELS; a built-in one as it is."""
    from mgen.evaluation.statistics import BUILTIN

    if name in BUILTIN or Path(name).exists():
        return name
    beside = Path(os.environ.get("MGEN_MODELS", ".")) / name
    if beside.exists():
        return str(beside)
    raise MgenError(
        f"the reference {name} is not here: {get or 'get it'}, then put it into this folder or $MGEN_MODELS, or name it by --reference FILE"
    )
