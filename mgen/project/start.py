"""`mgen init`: from a folder of images to the settings files of a project."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mgen.data.folder import ClassRule
from mgen.generators.presets import list_models, model_config
from mgen.pipelines.saved import load_tokenizer
from mgen.project import rules
from mgen.project.draft import Draft
from mgen.project.files import all_files
from mgen.project.forecast import time_project
from mgen.project.records import Records
from mgen.project.rules import Kind
from mgen.project.settings import FILE, STAGES, Project
from mgen.project.survey import Survey, survey
from mgen.utils.errors import MgenError, suggestion
from mgen.utils.files import check_writable, filled_folder, sweep, write_text
from mgen.utils.paths import check_apart
from mgen.utils.reading import check_path

KINDS: Mapping[str, Kind] = {"maskgit": "index", "mar": "vector"}
LEAST = 10  # images
STRETCHED = ("tokenizer", "generator")  # stages whose steps `hours` changes
SHORTEST = 0.02  # of their steps


@dataclass(frozen=True, kw_only=True)
class InitRequest:
    """What `mgen init` is asked for; None leaves a choice to the rules.

    Attributes:
        data, val: folders of images. out: folder of the project. image_size: in pixels. tokenizer: name or folder of a trained one.
        generator: maskgit, mar, or a name of configs/models. hours: for all stages together. classes: see ImageFolder.
        timed: whether steps are timed, for the estimates.
    """

    data: str
    out: str
    val: str | None = None
    image_size: int | None = None
    tokenizer: str | None = None
    generator: str | None = None
    hours: float | None = None
    classes: ClassRule = "any"
    timed: bool = True


def init(request: InitRequest) -> tuple[Draft, Path]:
    """Write a project; returns what was decided, and its folder.

    Raises:
        MgenError: the data or an option is wrong, or there is something in the folder already; nothing is written then.
    """
    for name, given in (("--data", request.data), ("--val", request.val), ("--out", request.out)):
        if given is not None:
            check_path(given, name)
    out = Path(request.out)
    check_apart(out, "--out", {"--data": request.data, "--val": request.val})
    check_empty(out)
    draft = _draft(request)
    if request.timed:
        draft, seconds = _estimated(draft, request.hours)
    else:
        seconds = {}
    with filled_folder(out) as folder:
        for name, text in all_files(draft, request.out).items():
            write_text(folder / name, text)
        Records(folder, {}, seconds).write()
    Project(out)
    return draft, out


def check_empty(out: Path) -> None:
    """Raise MgenError if there is something in the folder, or it cannot be written."""
    if os.path.lexists(out) and not out.is_dir():
        raise MgenError(f"--out {out} is no folder: choose another name")
    sweep(out)  # what a killed mgen init left is no project
    if out.is_dir() and any(out.iterdir()):
        there = "a project" if (out / FILE).exists() else "other files"
        raise MgenError(
            f"--out {out} holds {there}, which mgen init does not replace: remove it, or choose another folder"
        )
    check_writable(out)


def _draft(request: InitRequest) -> Draft:
    """What follows from the options, the data and the rules."""
    kind = _kind(request)
    if request.data == "fmnist" and not Path("fmnist").exists():
        raise MgenError(
            "--data fmnist: Fashion-MNIST has settings of its own, see mgen train --config fmnist-vqgan; give a folder of images"
        )
    found = survey(request.data, classes=request.classes)
    if found.count < LEAST:
        raise MgenError(
            f"{request.data} holds {found.count} images: at least {LEAST} are needed, and a good model needs thousands"
        )
    if request.val is not None:
        _check_val(request.val, found)
    gpu = torch.cuda.is_available()
    size = request.image_size or rules.image_size(found.side, gpu=gpu)
    if request.tokenizer is not None:
        config = load_tokenizer(request.tokenizer).config
        if request.image_size not in (None, config.image_size):
            raise MgenError(
                f"--image-size {request.image_size}: the tokenizer {request.tokenizer} is for {config.image_size} px; leave the option out"
            )
        size, found = config.image_size, replace(found, color=config.in_channels == 3)
    return Draft(
        data=Path(os.path.abspath(request.data)),
        val=None if request.val is None else Path(os.path.abspath(request.val)),
        found=found,
        image_size=size,
        sized=request.image_size is not None or request.tokenizer is not None,
        kind=kind,
        preset=rules.preset(size),
        gpu=gpu,
        tokenizer=_tokenizer(request.tokenizer),
        model=None if request.generator in (None, *KINDS) else request.generator,
    )


def _kind(request: InitRequest) -> Kind:
    """The kind of tokens: of the tokenizer, of the generator, or ids; MgenError if the two don't fit."""
    wanted: str | None = None
    if request.generator is not None and request.generator in KINDS:
        wanted = KINDS[request.generator]
    elif request.generator is not None:
        if request.generator not in list_models():
            raise MgenError(
                f"--generator {request.generator}: {suggestion(request.generator, (*KINDS, *list_models()))}"
            )
        tokens = model_config(request.generator).get("tokens")
        if not isinstance(tokens, dict) or tokens.get("global_tokens"):
            raise MgenError(
                f"--generator {request.generator} has two stages or two codebooks: write its settings by hand, see docs/training.md"
            )
        wanted = str(tokens["kind"])
    made = None if request.tokenizer is None else load_tokenizer(request.tokenizer).spec.kind
    kind = made or wanted or "index"
    if wanted not in (None, kind):
        raise MgenError(
            f"--generator {request.generator} takes tokens of kind {wanted!r}, but the tokenizer {request.tokenizer} makes {kind!r}: "
            "choose another of the two"
        )
    if kind not in KINDS.values():
        raise MgenError(
            f"tokens of kind {kind!r} need settings by hand, see docs/training.md; a project trains on ids or vectors"
        )
    return "index" if kind == "index" else "vector"


def _tokenizer(given: str | None) -> str | None:
    """The tokenizer as project.yaml names it: a folder by its absolute path, else a name."""
    return os.path.abspath(given) if given is not None and Path(given).is_dir() else given


def _check_val(folder: str, found: Survey) -> None:
    """Raise MgenError unless the validation images have classes of the training images only."""
    val = survey(folder, classes="any" if found.has_classes else "none")
    if other := [name for name in val.counts if found.has_classes and name not in found.counts]:
        raise MgenError(f"--val {folder} has the class {other[0]!r}, which {found.root} lacks: rename or remove it")


def _estimated(draft: Draft, hours: float | None) -> tuple[Draft, dict[str, float]]:
    """The draft with times and memory by timing some steps, with the steps that fit into `hours`; and the seconds of each stage."""
    with tempfile.TemporaryDirectory(prefix="mgen-") as folder:
        for name, text in all_files(draft, folder).items():
            write_text(Path(folder) / name, text)
        timed, other = time_project(Project(folder))
    seconds = dict(other)
    for stage, one in timed.items():
        count = 2 if stage == "classifier" else 1
        seconds[stage] = seconds.get(stage, 0.0) + count * one.seconds * one.steps
    if hours is not None:
        fixed = sum(value for stage, value in seconds.items() if stage not in STRETCHED)
        left = 3600 * hours - fixed
        stretch = left / sum(seconds[stage] for stage in STRETCHED if stage in seconds)
        if stretch < SHORTEST:
            need = fixed + SHORTEST * sum(seconds[stage] for stage in STRETCHED if stage in seconds)
            raise MgenError(
                f"--hours {hours:g} is too short on this machine: at least {need / 3600:.2g} hours. For a quick try, use --no-timing and "
                "write fewer steps into tokenizer.yaml and generator.yaml"
            )
        draft = replace(draft, stretch=stretch)
        seconds = {stage: value * (stretch if stage in STRETCHED else 1.0) for stage, value in seconds.items()}
    ordered = {stage: seconds[stage] for stage in STAGES if stage in seconds}
    draft = replace(
        draft,
        hours={stage: value / 3600 for stage, value in ordered.items()},
        memory={stage: one.memory for stage, one in timed.items()},
        accumulate={stage: one.accumulate for stage, one in timed.items()},
    )
    return draft, ordered
