"""The stages of a project, one after another: each is skipped if it is finished and nothing it depends on has changed."""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mgen.project import digests, work
from mgen.project.records import Records
from mgen.project.settings import STAGES, Project
from mgen.training.lock import locked
from mgen.training.resume import may_change
from mgen.utils.changes import told
from mgen.utils.errors import MgenError, check_choice
from mgen.utils.launched import is_first, launched
from mgen.utils.limits import in_time
from mgen.utils.paths import check_apart


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage.

    Attributes:
        about: what it does, for the line before it. needs: stages that must be finished.
        settings: what it is done with. inputs: name → digest of what it reads. run: does or resumes it; returns its result in a line.
        output: file or folder that is there when it is finished. again: whether it is simply done again after a change, being quick.
    """

    about: str
    needs: tuple[str, ...]
    settings: Callable[[Project], Any]
    inputs: Callable[[Project], dict[str, str]]
    run: Callable[[Project], str]
    output: str
    again: bool = False


TABLE = {
    "classifier": Stage(
        about="training two small classifiers, to measure with",
        needs=(),
        settings=lambda p: asdict(p.classifier_config(0)),  # the second differs by its seed
        inputs=lambda p: {"data": digests.data_digest(p)},
        run=work.train_classifiers,
        output="classifier/second/model",
    ),
    "tokenizer": Stage(
        about="training the tokenizer",
        needs=("classifier",),
        settings=lambda p: asdict(p.tokenizer_config()),
        inputs=lambda p: {"data": digests.data_digest(p), **digests.perceptual_digest(p)},
        run=work.train_tokenizer,
        output="tokenizer/model",
    ),
    "check": Stage(
        about="checking what the tokenizer loses",
        needs=("classifier", "tokenizer"),
        settings=lambda p: asdict(p.settings.check),
        inputs=lambda p: {"data": digests.data_digest(p), **digests.tokenizer_digest(p), **digests.extractor_digest(p)},
        run=work.check,
        output="check/check.json",
        again=True,
    ),
    "cache": Stage(
        about="turning all images into tokens",
        needs=("tokenizer",),
        settings=lambda p: {"flips": p.settings.data.flip, "data": asdict(p.settings.data)},
        inputs=lambda p: {"data": digests.data_digest(p), **digests.encoder_digest(p)},
        run=work.write_caches,
        output="cache/train/index.json",
    ),
    "generator": Stage(
        about="training the generator",
        needs=("check", "cache"),
        settings=lambda p: asdict(work.generator_config(p)),
        inputs=lambda p: {"data": digests.data_digest(p), **digests.encoder_digest(p)},
        run=work.train_generator,
        output="generator/model",
    ),
    "report": Stage(
        about="sampling images and measuring them",
        needs=("classifier", "generator"),
        settings=lambda p: asdict(p.settings.report),
        inputs=lambda p: {"data": digests.data_digest(p), **digests.generator_digest(p), **digests.extractor_digest(p)},
        run=work.report,
        output="report/report.html",
        again=True,
    ),
}


LAUNCHED = ("tokenizer", "generator")  # stages that several processes can share


def run_project(
    folder: str | Path, stages: Sequence[str] = (), *, redo: bool = False, accept_tokenizer: bool = False
) -> Path:
    """Run the stages of a project, all or those named; returns the file or folder that the last one wrote.

    Args:
        redo: do the named stages anew; what they had written is removed. accept_tokenizer: go on with a tokenizer that the check finds
            not good enough.

    Raises:
        MgenError: something in the settings or the data is wrong, a stage was done with other settings or inputs, or one that is needed
            is not finished.
        KeyboardInterrupt: it was stopped; the same call goes on.
    """
    project = Project(folder)
    check_apart(project.folder, "the project", {f"data.{key}": project.data[key] for key in ("path", "val_path")})
    own = project.stages
    chosen = [stage for stage in own if not stages or stage in stages]
    for name in stages:
        check_choice("--stage", name, STAGES)
        if name not in own:
            why = "the data have a single class" if name == "classifier" else "project.yaml names a trained tokenizer"
            raise MgenError(f"--stage {name}: this project has no such stage, since {why}")
    if redo and not stages:
        raise MgenError("--redo needs --stage: name the stages to do anew")
    rank, world = launched()
    if world > 1 and (len(chosen) > 1 or chosen[0] not in LAUNCHED):
        raise MgenError(
            f"several processes run one training of a project: launch them with --stage {' or --stage '.join(LAUNCHED)}, and run the other "
            "stages without a launcher"
        )
    with locked(project.folder, active=rank == 0):
        records = Records.read(project.folder, active=rank == 0)
        for name in chosen if redo else ():
            if rank == 0:
                _remove(project, name)
            records.forget(name)  # in every process: one for which the stage is finished would leave the others waiting
        for name in chosen:
            number = f"[{own.index(name) + 1}/{len(own)}] {name}"
            _run(project, records, name, number, accept_tokenizer)
    return project.folder / TABLE[chosen[-1]].output


def _run(project: Project, records: Records, name: str, number: str, accept_tokenizer: bool) -> None:
    """Do a stage, or go on with it, unless it is finished."""
    stage = TABLE[name]
    for needed in stage.needs:
        if needed in project.stages and (needed not in records.stages or records.stages[needed].finished is None):
            raise MgenError(
                f"the stage {name} needs {needed}, which is not finished: leave --stage out to run all stages that are not finished"
            )
    settings, inputs = stage.settings(project), stage.inputs(project)
    if name in records.stages:
        record = records.stages[name]
        why = _changed(project, records, name, settings, inputs)
        if not why and record.finished is not None and (project.folder / stage.output).exists():
            say(f"{number}: finished, nothing has changed. {record.said}")
            _check_good(project, name, accept_tokenizer)
            return
    estimate = records.estimates.get(name)
    say(f"{number}: {stage.about}" + (f", about {in_time(estimate)} by the estimate of mgen init" if estimate else ""))
    records.begin(name, settings, inputs)
    began = time.perf_counter()
    try:
        said = stage.run(project)
    finally:
        records.add_time(name, time.perf_counter() - began)
    records.complete(name, said)
    say(f"{number}: done in {in_time(records.stages[name].seconds)}. {said}")
    _check_good(project, name, accept_tokenizer)


def _changed(project: Project, records: Records, name: str, settings: Any, inputs: dict[str, str]) -> bool:
    """Whether a stage must run since something has changed; MgenError if it can't go on from what it has."""
    found, other = records.changed(name, settings, inputs)
    if TABLE[name].again or not (found or other):
        return bool(found or other)
    fixed = [change for change in found if not may_change(change[0])]
    if not fixed and not other:
        return True
    what = told(fixed) if fixed else f"{' and '.join(other)} changed since"
    later = [
        stage
        for stage in project.stages[project.stages.index(name) :]
        if stage in records.stages and not TABLE[stage].again
    ]
    raise MgenError(
        f"the stage {name} was begun with other {'settings' if fixed else 'inputs'}: {what}. To do it anew, with what depends on it: "
        f"mgen train --project {project.folder} --stage {','.join(later)} --redo; or take the change back"
    )


def _check_good(project: Project, name: str, accept: bool) -> None:
    """Raise MgenError after a check whose verdict is bad, unless it is accepted."""
    if name == "check" and not accept and (why := work.bad_tokenizer(project)):
        raise MgenError(
            f"{why} See {project.folder / 'check'}. Change tokenizer.yaml and run --stage tokenizer,check --redo, or go on as it is with "
            "--accept-tokenizer"
        )


def _remove(project: Project, name: str) -> None:
    """Remove what a stage has written; MgenError for a link in the place of its folder."""
    folder = project.folder / TABLE[name].output.split("/")[0]
    if folder.is_symlink():
        raise MgenError(
            f"--redo: {folder} is a link, and what it leads to is not removed: remove the link and run the command again"
        )
    if folder.is_dir():
        shutil.rmtree(folder)


def say(text: str) -> None:
    """Print a line on stderr, in the first process."""
    if is_first():
        print(text, file=sys.stderr, flush=True)
