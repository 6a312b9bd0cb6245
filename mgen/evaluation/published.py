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
    """What a recipe of this name says was published.

    Attributes:
        note: how this evaluation differs. changed: options given that change the recipe's setting.
    """

    name: str
    settings: RecipeEvaluation
    note: str
    changed: list[str]

    def compare(self, result: Result) -> PublishedTable:
        """Every published value with the measured one and a verdict."""
        return {"recipe": self.name, "rows": [self._row(m, result) for m in self.settings.published], "note": self.note}

    def _row(self, metric: str, result: Result) -> PublishedRow:
        published, tolerance = self.settings.published[metric], self.settings.tolerance[metric]
        wanted, count = self.settings.count, result["count"]
        # Below 50,000 images the name of a distance has the count.
        measured = result["metrics"].get(metric, result["metrics"].get(f"{metric}-{wanted}"))
        if self.changed:
            verdict = f"not comparable, {', '.join(self.changed)} given"
        elif count != wanted:
            verdict = f"not comparable, {count} images instead of {wanted}"
        elif measured is None:
            verdict = "not measured"
        else:
            off = measured - published
            words = f"off by {off:+.2g}" if abs(off) >= 1e-6 * abs(published) else "equal"
            verdict = f"{words}, {'within' if abs(off) <= tolerance else 'OUTSIDE'} the tolerance"
        return {
            "metric": metric,
            "published": published,
            "tolerance": tolerance,
            "measured": measured,
            "verdict": verdict,
        }


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
    notes = [settings.note] if settings.note else []
    if request.path is not None:
        notes.append(f"{request.path} is assumed to be what the recipe names")
    if request.dtype != "fp32":
        notes.append(f"sampled in {request.dtype}")
    name = Path(request.recipe).stem
    published = Published(name=name, settings=settings, note="; ".join(notes), changed=changed)
    filled = replace(request, path=path, protocol=settings.protocol, reference=reference)
    if filled.samples:
        own = {name: getattr(settings, name) for name in SAMPLED_ONLY if getattr(request, name) is None}
        filled = replace(filled, num_images=request.num_images or settings.count, **own)
    return filled, published


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
