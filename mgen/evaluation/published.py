"""A recipe's evaluation: its settings fill what a request leaves open, and its published values are compared with the measured ones."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from mgen.evaluation.recipe import RecipeEvaluation, evaluation_settings
from mgen.evaluation.request import SAMPLED_ONLY, EvalRequest
from mgen.evaluation.result import PublishedRow, PublishedTable, Result
from mgen.evaluation.statistics import BUILTIN
from mgen.utils.errors import MgenError
from mgen.zoo import embedded, local_folder, recipe


@dataclass(frozen=True, kw_only=True)
class Published:
    """Published values of a recipe's metrics, and how far a faithful run may be from them.

    Attributes:
        count: images behind the values. note: how this evaluation differs. changed: options given that change the recipe's setting.
    """

    name: str
    metrics: dict[str, float]
    tolerance: dict[str, float]
    count: int
    note: str
    changed: list[str]

    def compare(self, result: Result) -> PublishedTable:
        """Every published value with the measured one and a verdict."""
        rows: list[PublishedRow] = []
        for metric, value in self.metrics.items():
            # Below 50,000 images the name of a distance has the count.
            measured = result["metrics"].get(metric, result["metrics"].get(f"{metric}-{self.count}"))
            tolerance = self.tolerance.get(metric)
            rows.append(
                {
                    "metric": metric,
                    "published": value,
                    "tolerance": tolerance,
                    "measured": measured,
                    "verdict": self._verdict(value, tolerance, measured, result["count"]),
                }
            )
        return {"recipe": self.name, "rows": rows, "note": self.note}

    def _verdict(self, published: float, tolerance: float | None, measured: float | None, count: int) -> str:
        if self.changed:
            return f"not comparable, {', '.join(self.changed)} given"
        if count != self.count:
            return f"not comparable, {count} images instead of {self.count}"
        if measured is None:
            return "not measured"
        off = measured - published
        words = f"off by {off:+.2g}" if abs(off) >= 1e-6 * abs(published) else "equal"
        if tolerance is None:
            return f"{words}, no tolerance stated"
        return f"{words}, {'within' if abs(off) <= tolerance else 'OUTSIDE'} the tolerance"


def apply_recipe(request: EvalRequest) -> tuple[EvalRequest, Published | None]:
    """The request with its open settings taken from the recipe's `evaluation:`, and the published values.

    With --protocol, --extractor or --reconstruction the recipe decides about the sampler only: the request comes back unchanged.

    Raises:
        MgenError: the recipe's model or reference is not on this machine; the message says how to get it.
    """
    if not request.recipe or request.protocol or request.extractor or request.reconstruction:
        return request, None
    settings = evaluation_settings(request.recipe)
    if settings is None:
        return request, None
    path = request.path or model_of(request.recipe)
    reference = request.reference or find_file(settings.reference, settings.reference_get)
    changed = request.changes
    # A file under another name may still be the same reference, so this only says that it was given.
    if Path(reference).name != Path(settings.reference).name:
        changed.append("--reference")
    published = Published(
        name=Path(request.recipe).stem,
        metrics=settings.published,
        tolerance=settings.tolerance,
        count=settings.count,
        note="; ".join(_notes(request, settings)),
        changed=changed,
    )
    filled = replace(request, path=path, protocol=settings.protocol, reference=reference)
    if filled.samples:
        own = {name: getattr(settings, name) for name in SAMPLED_ONLY if getattr(request, name) is None}
        filled = replace(filled, num_images=request.num_images or settings.count, **own)
    return filled, published


def _notes(request: EvalRequest, settings: RecipeEvaluation) -> list[str]:
    notes = [settings.note] if settings.note else []
    if request.path is not None:
        notes.append(f"{request.path} is assumed to be what the recipe names")
    if request.dtype != "fp32":
        notes.append(f"sampled in {request.dtype}")
    return notes


def model_of(name: str) -> str:
    """Name or folder of a recipe's model; MgenError if it is not on this machine."""
    entry = recipe(name)
    folder = local_folder(entry)
    if folder is None:
        raise MgenError(
            f"{entry.name} is not on this machine ({entry.facts['folder']}): `mgen zoo {entry.name}` says how to get it; or give its folder"
        )
    short = str(entry.facts.get("folder", ""))  # embedded models go by their names
    return short if "/" not in short and folder == embedded(short) else str(folder)


def find_file(name: str, get: str | None) -> str:
    """A reference as a path, as a file in $MGEN_MODELS, or a built-in name as it is."""
    if name in BUILTIN or Path(name).exists():
        return name
    beside = Path(os.environ.get("MGEN_MODELS", ".")) / name
    if beside.exists():
        return str(beside)
    raise MgenError(
        f"the reference {name} was not found: {get or 'get it'}, then put it in this folder or in $MGEN_MODELS, or give --reference FILE"
    )
