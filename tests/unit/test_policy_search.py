"""The search of policies: the budget, rungs, replay, the test on other images, and the files."""

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mgen.bench.flops import count_run
from mgen.cli import main
from mgen.evaluation.extractors import make_extractor
from mgen.evaluation.statistics import Reference
from mgen.reports.svg import SVG
from mgen.samplers import ParallelSampler
from mgen.tune import pareto
from mgen.tune.budget import key_of
from mgen.tune.finals import Final, Interval, Outcome, compare, interval, verdict
from mgen.tune.halving import Found, Plan, promoted, search
from mgen.tune.policies import Policies
from mgen.tune.proposals import Candidate, Proposals
from mgen.tune.strategies import own_settings
from mgen.tune.trials import Distances, Score, Trace, Trial
from mgen.utils.errors import MgenError
from mgen.zoo.recipes import recipe_settings
from tests.helpers import (
    tiny_pipeline,
    write_idx,
)
from tests.spaces import AXES, GENERATOR, MAR, space


class Cost:
    """Made up: steps, times two where they are guided, a third off for each cached step."""

    measure = "flops"

    def __call__(self, sampler: ParallelSampler) -> float:
        guided = sum(1 + s for s in sampler.guided(GENERATOR.units.length))
        return guided * (1 - 0.3 * sampler.reuse.cached)


class Bowl:
    """Made-up distances with the least at order halton and a guidance that ends at 2.2, lower with more steps; noisy with few images."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.calls = stop, list[tuple[str, str, int, int]]()

    def exact(self, sampler: ParallelSampler) -> float:
        guidance = sampler.values("guidance", GENERATOR.units.length)[-1]
        return (
            (guidance - 2.2) ** 2
            + 3 * abs(math.log2(sampler.config.steps / 8))
            + 2 * (sampler.order.name != "halton")
            + 0.5 * sampler.reuse.cached
        )

    def __call__(self, sampler: ParallelSampler, *, side: str, seed: int, images: int) -> Score:
        if len(self.calls) == self.stop:
            raise KeyboardInterrupt
        key = key_of(own_settings(sampler))
        self.calls.append((key, side, seed, images))
        noise = np.random.default_rng([seed, int(key[:8], 16), images]).normal()
        return Score(self.exact(sampler) + 1.0 + 0.5 * noise / images**0.5, 0.5 / images**0.5)


PLAN = Plan(trials=40, rungs=(10, 30, 100), seed=3)


def found_in(policies: Policies, bowl: Bowl, file: Path, limit: float, plan: Plan = PLAN) -> tuple[Found, Proposals]:
    proposals = Proposals(policies, Cost(), limit)
    return search(proposals, bowl, Trace(path=file), plan, progress=False), proposals


# -- the search --------------------------------------------------------------------------------------------------------------


def test_the_optimum_within_a_budget_is_found(tmp_path: Path) -> None:
    limit = 8.0  # the start, 8 guided steps, costs 16
    bowl = Bowl()
    found, proposals = found_in(space(), bowl, tmp_path / "t.jsonl", limit)
    best = found.candidates[0]
    assert len(found.candidates) == PLAN.trials and not found.stopped
    assert all(candidate.cost <= limit for candidate in found.candidates)
    measured = {key for key, *_ in bowl.calls}
    assert measured == {candidate.key for candidate in found.candidates}  # nothing over the budget is measured
    assert best.sampler.order.name == "halton" and max(best.trials) == 100
    # 4 guided steps cost 8, and leave a distance of 3 to the best guidance.
    assert bowl.exact(best.sampler) < 3.3 < bowl.exact(ParallelSampler(steps=4, guidance=3.0))
    assert len({candidate.key for candidate in found.candidates}) == PLAN.trials
    assert proposals.repeated + proposals.over >= 0


def test_the_start_is_the_first_candidate_if_it_is_within_the_budget(tmp_path: Path) -> None:
    bowl, policies = Bowl(), space()
    found, proposals = found_in(policies, bowl, tmp_path / "t.jsonl", 16.0)
    start = proposals.start()
    assert bowl.calls[0][0] == start.key and start.changes == {} and start.cost == 16.0
    assert start.key in {candidate.key for candidate in found.candidates}
    over, _ = found_in(policies, Bowl(), tmp_path / "u.jsonl", 15.0)
    assert start.key not in {candidate.key for candidate in over.candidates}


def test_rungs_nest_and_keep_the_best(tmp_path: Path) -> None:
    found, _ = found_in(space(), Bowl(), tmp_path / "t.jsonl", 12.0)
    sizes = [sum(images in candidate.trials for candidate in found.candidates) for images in PLAN.rungs]
    assert sizes[0] == 40 and 14 <= sizes[1] <= 30 and PLAN.finalists <= sizes[2] < sizes[1]
    for candidate in found.candidates:
        assert list(candidate.trials) == list(PLAN.rungs[: len(candidate.trials)])
    ranks = [candidate.rank for candidate in found.candidates]
    assert ranks == sorted(ranks) and ranks[0][0] == -100


def trial(images: int, distance: float, **settings: Any) -> Trial:
    own = {"steps": 1, **settings}
    return Trial(
        key=key_of(own),
        side="search",
        seed=0,
        images=images,
        distance=distance,
        deviation=None,
        seconds=0.0,
        settings=own,
    )


def test_a_third_is_promoted_and_no_one_twice() -> None:
    def candidate(distance: float, **more: float) -> Candidate:
        trials = {10: trial(10, distance)} | {int(k[1:]): trial(int(k[1:]), v) for k, v in more.items()}
        return Candidate(point=(), sampler=None, changes={}, key="", cost=1.0, trials=trials)  # type: ignore[arg-type]

    candidates = [candidate(float(i)) for i in range(6)] + [candidate(0.5, n30=9.0)]
    assert promoted(candidates, 10, 30, 1) == candidates[:2]  # three of seven, one of which is there
    assert promoted(candidates, 10, 30, 5) == candidates[:4]
    assert promoted(candidates, 30, 100, 1) == candidates[6:]


@pytest.mark.parametrize("stop", [0, 45])
def test_an_interrupted_search_is_replayed_to_the_same_end(tmp_path: Path, stop: int) -> None:
    whole, _ = found_in(space(), first := Bowl(), tmp_path / "a.jsonl", 8.0)
    with pytest.raises(KeyboardInterrupt):
        found_in(space(), Bowl(stop=stop), tmp_path / "b.jsonl", 8.0)
    rest, _ = found_in(space(), second := Bowl(), tmp_path / "b.jsonl", 8.0)
    assert len(second.calls) == len(first.calls) - stop and first.calls[stop:] == second.calls

    def results(found: Found) -> list[Any]:
        return [(c.key, c.cost, [(n, t.distance) for n, t in c.trials.items()]) for c in found.candidates]

    assert results(rest) == results(whole)


def test_the_time_ends_a_search_and_is_told(tmp_path: Path) -> None:
    plan = Plan(trials=20, rungs=(10, 30), seed=3)
    found_in(space(), Bowl(), tmp_path / "t.jsonl", 8.0, plan)
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    (tmp_path / "u.jsonl").write_text("".join(json.dumps({**line, "seconds": 2.0}) + "\n" for line in lines[:9]))
    plan = Plan(trials=20, rungs=(10, 30), seed=3, seconds=15.0)
    found, _ = found_in(space(), bowl := Bowl(), tmp_path / "u.jsonl", 8.0, plan)
    assert found.stopped and len(found.candidates) == 9 and not bowl.calls


def test_refused_points_are_counted_with_the_reason(tmp_path: Path) -> None:
    given = [*AXES, {"name": "remasking", "choices": [{"order": "remasking"}]}]
    policies = space(axes=given)
    found, proposals = found_in(policies, Bowl(), tmp_path / "t.jsonl", 8.0)
    assert sum(proposals.refused.values()) > 0
    assert any("remasking draws known tokens again" in reason for reason in proposals.refused)
    assert all(c.sampler.order.name != "remasking" or not c.sampler.reuse.cached for c in found.candidates)
    vectors = space(generator=MAR, axes=AXES, order="random")
    assert not any(name.startswith("order") for name in vectors.left_out)
    left = space(
        generator=MAR,
        axes=[*AXES, {"name": "a", "choices": [{"order": "confidence"}, {"order": "raster"}]}],
        order="random",
    ).left_out
    assert "ranks draws by probability" in left["a: order=confidence"]


def test_nothing_within_the_budget_raises(tmp_path: Path) -> None:
    bowl = Bowl()
    with pytest.raises(MgenError, match="within the budget of 0.5 FLOPs per image: the least that was found is"):
        found_in(space(), bowl, tmp_path / "t.jsonl", 0.5)
    assert not bowl.calls
    with pytest.raises(MgenError, match="nothing to search"):
        space(axes=[{"name": "head", "choices": [{"head.steps": 3}]}])
    with pytest.raises(MgenError, match="rise"):
        Plan(trials=3, rungs=(100, 100))


def test_a_small_space_ends(tmp_path: Path) -> None:
    found, proposals = found_in(space(axes=[AXES[1]]), Bowl(), tmp_path / "t.jsonl", 16.0)
    assert len(found.candidates) == 3 and proposals.repeated > 0


@pytest.mark.parametrize(
    "changed", [{"settings": {"steps": 3}}, {"distance": None}, {"side": "other"}, {"images": 0}, {"more": 1}], ids=str
)
def test_a_damaged_trace_raises(tmp_path: Path, changed: dict[str, Any]) -> None:
    found_in(space(), Bowl(), tmp_path / "t.jsonl", 16.0, Plan(trials=2, rungs=(10,)))
    first, second = (json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines())
    (tmp_path / "t.jsonl").write_text(json.dumps(first) + "\n" + json.dumps({**second, **changed}) + "\n")
    with pytest.raises(MgenError, match="t.jsonl, line 2"):
        Trace(path=tmp_path / "t.jsonl")


# -- features ----------------------------------------------------------------------------------------------------------------


def test_images_of_a_rung_begin_with_those_of_the_one_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Reference(mean=np.zeros(64), cov=np.eye(64), name="made up", count=None)
    made = []

    def objective(folder: Path) -> Distances:
        sides = {"search": reference, "test": reference}
        return Distances(
            pipe=tiny_pipeline(), extractor=make_extractor("fmnist-cnn"), references=sides, folder=folder, batch_size=4
        )

    features = Distances.features
    monkeypatch.setattr(
        Distances, "features", lambda self, s, seed, a, b: made.append((a, b)) or features(self, s, seed, a, b)
    )
    sampler = ParallelSampler(steps=2)
    steps, once = objective(tmp_path / "a"), objective(tmp_path / "b")
    few = steps(sampler, side="search", seed=0, images=5)
    many = steps(sampler, side="search", seed=0, images=11)
    assert made == [(0, 5), (5, 11)]
    whole = once(sampler, side="search", seed=0, images=11)
    assert many.distance == pytest.approx(whole.distance, rel=1e-5) and many.distance != few.distance
    assert many.deviation is not None and many.deviation > 0
    assert steps(sampler, side="search", seed=0, images=5) == few and len(made) == 3  # from the file
    file = next((tmp_path / "a").iterdir())
    file.write_bytes(file.read_bytes()[:100])
    assert steps(sampler, side="search", seed=0, images=5).distance == pytest.approx(few.distance) and made[-1] == (
        0,
        5,
    )
    test = steps(sampler, side="test", seed=1, images=5)
    assert test.deviation is None and test.distance != few.distance


# -- the test ----------------------------------------------------------------------------------------------------------------


def trials_of(distances: list[float], deviation: float | None = None) -> list[Trial]:
    own = {"steps": 1}
    return [
        Trial(
            key=key_of(own), side="test", seed=i, images=9, distance=d, deviation=deviation, seconds=0.0, settings=own
        )
        for i, d in enumerate(distances)
    ]


def test_intervals_are_those_of_student_and_of_the_bootstrap() -> None:
    values = [3.0, 3.5, 4.6, 3.1]
    found = interval(trials_of(values))
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high)) and found.deviation == pytest.approx(
        np.std(values, ddof=1)
    )
    one = interval(trials_of([3.0], 0.5))
    assert (one.low, one.high) == (pytest.approx(3 - 1.959964 * 0.5), pytest.approx(3 + 1.959964 * 0.5))
    alone = interval(trials_of([3.0]))
    assert alone == Interval(mean=3.0, deviation=None, low=3.0, high=3.0)


@pytest.mark.parametrize(
    "own, start, word", [((1, 2), (3, 4), "better"), ((1, 3), (2, 4), "equal"), ((5, 6), (3, 4), "worse")]
)
def test_verdicts(own: Any, start: Any, word: str) -> None:
    spans = [Interval(mean=sum(x) / 2, deviation=1.0, low=x[0], high=x[1]) for x in (own, start)]
    assert verdict(*spans) == word


@pytest.mark.parametrize(
    "start, own, cost, kept",
    [
        ([5.0, 5.1, 5.2], [3.0, 3.1, 3.2], 1.0, "found"),
        ([5.0, 5.1, 5.2], [5.0, 5.1, 5.3], 0.5, "found"),  # equal and cheaper
        ([5.0, 5.1, 5.2], [5.0, 5.1, 5.0], 1.0, "start"),  # equal and as dear
        ([5.0, 5.1, 5.2], [7.0, 7.1, 7.2], 0.5, "start"),
    ],
)
def test_what_is_kept(start: list[float], own: list[float], cost: float, kept: str) -> None:
    def final(values: list[float], cost: float) -> Final:
        candidate = Candidate(point=(), sampler=None, changes={}, key="", cost=cost)  # type: ignore[arg-type]
        return Final(candidate=candidate, trials=trials_of(values))

    pair = final(start, 1.0), final(own, cost)
    outcome = Outcome(start=pair[0], finalists=[pair[1]], limit=1.0, measure="flops")
    assert outcome.chosen is pair[kept == "found"]
    tight = Outcome(start=pair[0], finalists=[pair[1]], limit=0.9, measure="flops")
    assert tight.chosen is pair[1]  # the start is over the budget


def test_every_point_is_in_the_plot_and_in_the_json(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found, proposals = found_in(space(), bowl := Bowl(), file := tmp_path / "t.jsonl", 8.0)
    asked = len(bowl.calls)
    outcome = compare(
        proposals.start(), found.candidates, bowl, Trace(path=file), limit=8.0, measure="flops", images=50, seeds=[7, 8, 9],
        finalists=3, progress=False,
    )  # fmt: skip
    assert [call[1:] for call in bowl.calls[asked:]] == [("test", seed, 50) for _ in range(4) for seed in (7, 8, 9)]
    assert [final.candidate for final in outcome.finalists] == found.candidates[
        :3
    ] and outcome.chosen in outcome.finalists
    points = pareto.points_of(found.candidates, outcome)
    assert len(points) == 40 + 4 and [p.label for p in points if p.label] in (["start", "chosen"], ["chosen", "start"])
    front = [p for p in points if p.front]
    top = [p for p in points if p.side == "search" and p.images == 100]
    assert front == [p for p in top if not any(o.cost <= p.cost and o.distance < p.distance for o in top)]
    text = pareto.plot(points, "flops", 8.0, "distance <of it> & more")
    assert text is not None and "var(--" not in text
    root = ET.fromstring(text)
    assert root.tag == f"{SVG}svg"
    titles = [e.findtext(f"{SVG}title") for e in root.iter(f"{SVG}g") if e.get("class") == "point"]
    assert len(titles) == len(points) and all(title for title in titles)
    assert {"start", "chosen"} <= {"".join(e.itertext()).strip() for e in root.iter(f"{SVG}text")}
    data = json.loads(json.dumps(pareto.as_json(points, "flops", 8.0, "distance")))
    assert [p["distance"] for p in data["points"]] == [p.distance for p in points] and data["limit"] == 8.0


# -- the command -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policies")
    tiny_pipeline().save_pretrained(folder / "model")
    write_idx(folder / "idx")
    return folder


def arguments(place: Path, out: Path, **options: Any) -> list[str]:
    given = {
        "model": place / "model",
        "data_path": place / "idx",
        "out": out,
        "steps": 4,
        "trials": 4,
        "budget": "0.6x",
    }
    given |= {"rungs": "4,8", "test_images": 6, "test_seeds": 2} | options
    return ["tune", *(f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None)]


def test_the_command_writes_recipe_report_plot_and_points(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert main(arguments(place, out)) == 0
    said, trace = capsys.readouterr().out, (out / "trace.jsonl").read_bytes()
    assert "at most 4 candidates" in said and "the start's" in said and str(out / "strategy.yaml") in said
    sampler = ParallelSampler.from_settings(*recipe_settings(str(out / "strategy.yaml")))
    sampler.check(GENERATOR)
    points = json.loads((out / "points.json").read_text())
    chosen = next(point for point in points["points"] if "chosen" in point["label"])
    assert chosen["settings"] == own_settings(sampler) and chosen["cost"] <= points["limit"]
    assert count_run(tiny_pipeline().optimize(), sampler).total == chosen["cost"]
    report = (out / "report.md").read_text()
    assert "pareto.svg" in report and "Not tried" in report and "images 1, 3, 5" in report and "95 % interval" in report
    ET.fromstring((out / "pareto.svg").read_text())
    assert main(arguments(place, out)) == 0 and (out / "trace.jsonl").read_bytes() == trace
    capsys.readouterr()
    assert main(arguments(place, out, budget="0.7x")) == 2 and "budget" in capsys.readouterr().err
    draw = ["sample", "--model", str(place / "model"), "--recipe", str(out / "strategy.yaml"), "--num-images", "2"]
    assert main([*draw, "--out", str(tmp_path / "s")]) == 0
    files = {f"reference_{side}": out / f"reference-{side}.safetensors" for side in ("search", "test")}
    own = tmp_path / "space.yaml"
    own.write_text("axes: [{name: steps, choices: [{steps: 1}, {steps: 2}]}]")
    seconds = {"budget": "100s", "space": own, "test_seeds": 1, "rungs": "4", "finalists": 1, "data_path": None}
    assert main(arguments(place, tmp_path / "timed", **seconds, **files)) == 0
    lines = [json.loads(line) for line in (tmp_path / "timed" / "trace.jsonl").read_text().splitlines()]
    assert {"cost", "search", "test"} == {line["side"] for line in lines}


@pytest.mark.parametrize(
    "options, word",
    [
        ({"budget": "lots"}, "--budget"),
        ({"budget": "0.0001x", "axes": "steps"}, "within the budget"),
        ({"axes": "stepps"}, "steps"),
        ({"axes": ","}, "names no axis"),
        ({"axes": "first_stage"}, "nothing to search"),
        ({"space": "nowhere"}, "nowhere"),
        ({"rungs": "8,4"}, "rise"),
        ({"rungs": "1,4"}, "at least 2"),
        ({"rungs": "a"}, "--rungs"),
        ({"seconds": 0}, "--seconds"),
        ({"finalists": 0}, "--finalists"),
        ({"test_seeds": 0}, "--test-seeds"),
        ({"seed": 2, "test_seed": 1, "test_seeds": 3}, "2 and 1 … 3"),
        ({"knots": 2}, "--knots"),
        ({"num_images": 5}, "--num-images"),
        ({"search": "guidance"}, "--search"),
        ({"budget": None}, "--rungs is for"),
        ({"start": "autonat-l-imagenet256", "steps": 6}, "lists values for its 8 steps"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(
    options: dict[str, Any], word: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(arguments(place, tmp_path / "never", **options)) == 2
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.strip()]
    assert word in err and sum("mgen: error:" in line for line in lines) == 1 and "Traceback" not in err
    assert not (tmp_path / "never").exists()
