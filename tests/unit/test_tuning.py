"""The search of a strategy: what its points mean, that it gains, resumes after a stop, and is tested on other images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgen.cli import main
from mgen.evaluation.extractors import make_extractor
from mgen.evaluation.statistics import Reference, load_statistics
from mgen.samplers import ParallelSampler, image_seed
from mgen.samplers.binomial import reveal_shares
from mgen.tune.strategies import REACH, Space, applicable
from mgen.tune.tuning import Distance, Outcome, Trace, compare, search
from mgen.utils.errors import MgenError
from mgen.zoo.recipes import recipe_settings
from tests.helpers import tiny_generator, tiny_mar, tiny_net, tiny_pipeline, tiny_tokens, write_idx

GENERATOR, MAR = tiny_generator(), tiny_mar()
LENGTH = GENERATOR.tokens.length
RISING = {"kind": "linear", "start": 1.0, "end": 3.0, "at": "start"}


def space_of(generator: Any = GENERATOR, *, sampler: dict[str, Any] | None = None, **options: Any) -> Space:
    return Space(ParallelSampler(**{"steps": 6, "guidance": RISING, **(sampler or {})}), generator, **options)


class Bowl:
    """A made-up distance: squared differences from a strategy that lies off the start, counted."""

    def __init__(self, space: Space, stop: int | None = None) -> None:
        self.target, self.stop, self.calls = space.at(np.linspace(-1.5, 1.5, space.size)), stop, 0

    def __call__(self, sampler: ParallelSampler) -> float:
        if self.calls == self.stop:
            raise KeyboardInterrupt
        self.calls += 1
        return sum(np.square(np.subtract(sampler.config[name], goal)).sum() for name, goal in self.target.items())


@pytest.mark.parametrize(
    "generator, sampler, names",
    [
        (GENERATOR, {}, "schedule confidence_temperature temperature guidance"),
        (GENERATOR, {"order": "random"}, "schedule temperature guidance"),
        (GENERATOR, {"counts": "halton", "order": "halton"}, "schedule temperature guidance"),
        (GENERATOR, {"counts": "binomial"}, "schedule confidence_temperature temperature guidance"),
        (
            GENERATOR,
            {"stages": [{"tokens": 0.5, "steps": 4}, {"steps": 2}]},
            "schedule confidence_temperature temperature guidance",
        ),
        (MAR, {"order": "random", "head": {"steps": 4}}, "schedule temperature guidance"),
        (MAR, {"order": "random", "head": {"chain": "ddim", "steps": 4}}, "schedule guidance"),
    ],
)
def test_every_point_is_a_strategy_the_sampler_takes(generator: Any, sampler: dict[str, Any], names: str) -> None:
    space = space_of(generator, sampler=sampler, knots=3)
    assert list(space.search) == names.split() == applicable(ParallelSampler(steps=6, **sampler), generator)
    given, start = ParallelSampler(**{"steps": 6, "guidance": RISING, **sampler}), space.sampler(space.start)
    assert space.at(np.zeros(space.size)) == space.start
    assert start.remaining(unknown=LENGTH, length=LENGTH) == given.remaining(unknown=LENGTH, length=LENGTH)
    for name in ("guidance", "temperature"):
        assert start.values(name, LENGTH) == pytest.approx(given.values(name, LENGTH), abs=1e-6)
    rng = np.random.default_rng(0)
    for point in rng.uniform(-2 * REACH, 2 * REACH, (20, space.size)):
        lists = space.at(point)
        assert [len(lists[name]) for name in names.split()] == [
            6 if n in ("temperature", "guidance") else 5 for n in names.split()
        ]
        assert all(1 > a > b > 0 for a, b in zip(lists["schedule"], lists["schedule"][1:]))
        assert min(lists["guidance"]) >= 1
        made = space.sampler(lists)
        made.check(generator)
        assert (np.diff([LENGTH, *made.remaining(unknown=LENGTH, length=LENGTH)]) < 0).all()


@pytest.mark.parametrize("schedule", ["cosine", "linear", [0.9, 0.7, 0.5, 0.3, 0.1]])
def test_lists_keep_the_law_of_random_counts(schedule: Any) -> None:
    given = ParallelSampler(steps=6, counts="binomial", schedule=schedule)
    start = (space := Space(given, GENERATOR)).sampler(space.start)
    assert start.random_counts
    laws = (reveal_shares(sampler.config.schedule, steps=6, length=LENGTH) for sampler in (given, start))
    assert next(laws) == pytest.approx(next(laws), abs=1e-4)
    assert space.sampler(space.at(np.full(space.size, 1.0))).random_counts


def test_projection_keeps_fractions_falling_and_values_in_range() -> None:
    space = space_of()
    bad = {"schedule": [1.2, 0.5, 0.6, -0.1, 0.2], "guidance": [0.5] * 6, "temperature": [-1.0] * 6}
    out = space.project({**space.start, **bad, "confidence_temperature": [-1.0] * 5})
    assert out["schedule"] == [1.0, 0.5, 0.5, 0.0, 0.0] and out["guidance"] == [1.0] * 6
    assert min(out["temperature"]) > 0 and out["confidence_temperature"] == [0.0] * 5
    space.sampler(out).check(GENERATOR)


def passes(sampler: ParallelSampler, generator: Any) -> int:
    """Rows that the network is asked for, per image, in a real run."""
    count, inside = 0, False

    def counted(function: Any) -> Any:
        def call(tokens: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal count, inside
            outer, inside = inside, True
            count += 0 if outer else len(tokens)
            try:
                return function(tokens, *args, **kwargs)
            finally:
                inside = outer

        return call

    names = ["context", "cached_step", *["carry"] * generator.capabilities.carried_features]
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(generator, name, counted(getattr(generator, name)))
        for _ in sampler(generator, torch.tensor([1]), noise=sampler.make_noise(generator, [0])):
            pass
    return count


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"guidance": 1.0},
        {"guidance": RISING, "order": "random"},
        {"guidance": [1.0, 2.0, 1.0, 1.0, 2.0, 1.0], "counts": "enat", "schedule": [1.0, 0.8, 0.8, 0.5, 0.2]},
        {"guidance": [1.0, 2.0, 1.0, 1.0, 2.0, 1.0], "reuse": {"cached": 1, "full_first": 1}},
        {"guidance": [2.0, 1.0, 2.0, 1.0, 1.0, 1.0], "reuse": {"cached": 2, "late_guidance": True}},
    ],
    ids=str,
)
@pytest.mark.parametrize("carries", [False, True])
def test_forward_passes_of_the_plan_are_those_of_a_run(settings: dict[str, Any], carries: bool) -> None:
    tokens = tiny_tokens(side=8, vocab_size=64)
    generator = tiny_net("enat", tokens=tokens, decoder_depth=1) if carries else GENERATOR
    sampler = ParallelSampler(**{"steps": 6, "guidance": 2.0, **settings})
    assert sampler.plan(generator).forward_passes == passes(sampler, generator)


def test_the_limit_takes_guidance_from_the_first_steps() -> None:
    space = space_of(limit=9, sampler={"guidance": 2.0})
    assert space.start["guidance"] == [1.0, 1.0, 1.0, 2.0, 2.0, 2.0] and space.held
    rng = np.random.default_rng(1)
    for point in rng.uniform(-REACH, REACH, (20, space.size)):
        assert space.cost(space.at(point)) <= 9
    assert not space_of(limit=12).held
    with pytest.raises(MgenError, match="too few: these 6 steps take 6"):
        space_of(limit=5)


def test_search_gains_and_measures_nothing_twice(tmp_path: Path) -> None:
    space = space_of()
    bowl, trace = Bowl(space), Trace(path=tmp_path / "trace.jsonl")
    tried = search(space, bowl, trace, trials=40, progress=False)
    distances = [record["distance"] for record in tried]
    assert tried[0]["strategy"] == space.start and bowl.calls == len(tried) == 40
    assert min(distances) < 0.1 * distances[0]
    assert len({json.dumps(record["strategy"]) for record in tried}) == 40
    lines = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    assert lines == tried and {"distance", "seconds", "strategy", "passes_per_image"} < lines[0].keys()
    search(space, bowl, Trace(path=tmp_path / "trace.jsonl"), trials=40, progress=False)
    assert bowl.calls == 40


def test_a_stopped_search_resumes_with_the_same_trials(tmp_path: Path) -> None:
    space = space_of(search=["guidance", "schedule"], knots=3)
    whole = search(space, Bowl(space), Trace(path=tmp_path / "a.jsonl"), trials=30, progress=False)
    with pytest.raises(KeyboardInterrupt):
        search(space, Bowl(space, stop=11), Trace(path=tmp_path / "b.jsonl"), trials=30, progress=False)
    bowl = Bowl(space)
    rest = search(space, bowl, Trace(path=tmp_path / "b.jsonl"), trials=30, progress=False)
    assert [(r["key"], r["distance"]) for r in rest] == [(r["key"], r["distance"]) for r in whole] and bowl.calls == 19
    longer = search(space, bowl, Trace(path=tmp_path / "b.jsonl"), trials=35, progress=False)
    assert longer[:30] == rest and len(longer) == 35
    (tmp_path / "b.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(MgenError, match="line 1"):
        Trace(path=tmp_path / "b.jsonl")


def test_a_small_space_is_searched_to_its_end(tmp_path: Path) -> None:
    space = space_of(search=["temperature"], knots=1)
    tried = search(space, Bowl(space), Trace(path=tmp_path / "t.jsonl"), trials=500, progress=False)
    distances = [record["distance"] for record in tried]
    assert len(tried) < 60 and min(distances) < 0.05 * distances[0]


def test_the_start_is_kept_unless_the_test_side_agrees(tmp_path: Path) -> None:
    space, trace = space_of(), Trace(path=tmp_path / "t.jsonl")
    bowl = Bowl(space)
    tried = search(space, bowl, trace, trials=12, progress=False)
    agreeing: Outcome = compare(space, tried, bowl, trace)
    assert agreeing.better and agreeing.kept == min(tried, key=lambda r: r["distance"])["strategy"] != space.start
    against = compare(space, tried, lambda sampler: -bowl(sampler), Trace(path=tmp_path / "u.jsonl"))
    assert not against.better and against.kept == space.start
    assert [json.loads(x)["side"] for x in (tmp_path / "u.jsonl").read_text().splitlines()] == ["test", "test"]
    with pytest.raises(MgenError, match="nan"):
        compare(space, tried, lambda sampler: float("nan"), Trace(path=tmp_path / "v.jsonl"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    tiny_pipeline().save_pretrained(folder / "model")
    write_idx(folder / "idx")
    return folder


def arguments(place: Path, out: Path, **options: Any) -> list[str]:
    given = {"model": place / "model", "data_path": place / "idx", "out": out, "steps": 3, "trials": 3}
    given |= {"num_images": 5, "test_images": 6} | options
    return ["tune", *(f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None)]


def test_command_writes_a_recipe_and_says_how_it_was_tested(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert main(arguments(place, out, max_passes_per_image=5)) == 0
    said, trace = capsys.readouterr().out, (out / "trace.jsonl").read_bytes()
    assert str(out / "strategy.yaml") in said and ("is kept" in said or "is better" in said)
    settings, where = recipe_settings(str(out / "strategy.yaml"))
    sampler = ParallelSampler.from_settings(settings, where)
    sampler.check(GENERATOR)
    assert sampler.plan(GENERATOR).forward_passes <= 5 and sampler.config.guidance[0] == 1.0
    report, run = (out / "report.md").read_text(), json.loads((out / "run.json").read_text())
    assert (
        "Fréchet distance (fmnist-cnn)" in report
        and "FID" not in report.replace("not an FID", "")
        and "images 1, 3, 5" in report
    )
    assert run["search_seed"] != run["test_seed"] and run["search_reference"] != run["test_reference"]
    extractor = make_extractor("fmnist-cnn")
    halves = [load_statistics(out / f"reference-{side}.safetensors", extractor) for side in ("search", "test")]
    assert [half.count for half in halves] == [48, 48] and not np.allclose(halves[0].mean, halves[1].mean)
    assert main(arguments(place, out, max_passes_per_image=5)) == 0
    assert (out / "trace.jsonl").read_bytes() == trace
    assert main(arguments(place, out, max_passes_per_image=5, seed=7)) == 2
    assert "search_seed was 0, now it is 7" in capsys.readouterr().err
    draw = ["sample", "--model", str(place / "model"), "--recipe", str(out / "strategy.yaml"), "--num-images", "2"]
    assert main([*draw, "--out", str(tmp_path / "s")]) == 0
    files = {f"reference_{side}": out / f"reference-{side}.safetensors" for side in ("search", "test")}
    assert main(arguments(place, tmp_path / "given", data_path=None, trials=2, search="guidance", **files)) == 0
    same = arguments(place, tmp_path / "same", **{name: files["reference_test"] for name in files})
    assert main(same) == 2 and "disjoint" in capsys.readouterr().err


def test_the_distance_is_a_function_of_sampler_seed_and_reference(place: Path) -> None:
    pipe, extractor = tiny_pipeline(), make_extractor("fmnist-cnn")
    reference = Reference(mean=np.zeros(64), cov=np.eye(64), name="made up", count=None)
    common = {"pipe": pipe, "extractor": extractor, "reference": reference, "count": 7}
    one, other = ParallelSampler(steps=2), ParallelSampler(steps=3, guidance=2.0)
    whole, parts = Distance(**common, seed=0), Distance(**common, seed=0, batch_size=3)
    first = whole(one)
    assert whole(other) != first == whole(one) == pytest.approx(parts(one), rel=1e-5)
    assert Distance(**common, seed=1)(one) != first
    assert not {image_seed(0, i) for i in range(2000)} & {image_seed(1, i) for i in range(2000)}


@pytest.mark.parametrize(
    "options, word",
    [
        ({"model": "nowhere"}, "nowhere"),
        ({"steps": 1}, "at least 2"),
        ({"steps": 0}, "at least 1"),
        ({"search": ","}, "nothing to search"),
        ({"search": "temprature"}, "temperature"),
        ({"start": "nothing"}, "nothing"),
        ({"start": "autonat-l-imagenet256", "steps": 6}, "lists values for its 8 steps"),
        ({"start": "{tmp}/order.yaml", "steps": 2}, "lists 4 positions"),
        ({"start": "{tmp}/order.yaml", "steps": 2, "search": "confidence_temperature"}, "lists 4 positions"),
        ({"max_passes_per_image": 2}, "too few"),
        ({"trials": 1}, "at least 2"),
        ({"knots": 0}, "knots"),
        ({"num_images": 1}, "at least 2"),
        ({"seed": 3, "test_seed": 3}, "both 3"),
        ({"dtype": "fp8"}, "bf16"),
        ({"reference_search": "a.npz"}, "go together"),
        ({"reference_search": "a.npz", "reference_test": "a.npz"}, "disjoint"),
        ({"reference_search": "a.npz", "reference_test": "b.npz"}, "a.npz"),
        ({"reference_search": "none", "reference_test": "b.npz"}, "none"),
        ({"data_path": "nowhere"}, "no such folder"),
        ({"out": "/proc/mgen-tune"}, "cannot write"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(
    options: dict[str, Any], word: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "order.yaml").write_text("sampler: {steps: 2, order: [3, 0, 1, 2]}\n")
    options = {k: v.format(tmp=tmp_path) if isinstance(v, str) else v for k, v in options.items()}
    assert main(arguments(place, **{"out": tmp_path / "never", **options})) == 2
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.strip()]
    assert word in err and sum("mgen: error:" in line for line in lines) == 1 and "Traceback" not in err
    assert not (tmp_path / "never").exists()
