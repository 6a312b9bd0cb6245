"""The files of a search over policies: report.md and strategy.yaml."""

from collections.abc import Mapping, Sequence

import yaml

from mgen.reports.data import plus_minus
from mgen.reports.markdown import markdown_table
from mgen.tune.budget import shown_cost
from mgen.tune.finals import Final, Outcome, verdict
from mgen.tune.halving import Found, Plan
from mgen.tune.pareto import Point
from mgen.tune.policies import Policies, shown_changes
from mgen.tune.proposals import Proposals
from mgen.tune.strategies import own_settings
from mgen.utils.markdown import words

MOST_ROWS = 20  # of the candidates in the report; points.json has all
INSTALL = "The plot needs matplotlib: pip install 'mgen[plots]' and rerun the command. Its numbers are in points.json."


def sentence(outcome: Outcome, distance: str) -> str:
    """What is kept, what it costs, and whether it is better than the start."""
    start, chosen = outcome.start, outcome.chosen
    if chosen is start:
        return f"The start is kept: no candidate within the budget is better on the test images ({distance} {_between(start)})"
    found = verdict(chosen.interval, start.interval)
    word = {"better": "better than", "equal": "equal to", "worse": "worse than"}[found]
    overlap = " (the intervals overlap)" if found == "equal" else ""
    return (
        f"The policy found costs {_ratio(chosen, start)} as much as the start and is {word} it on the test images: {distance} "
        f"{_between(chosen)}, the start's {_between(start)}{overlap}"
    )


def _ratio(final: Final, start: Final) -> str:
    return f"{final.candidate.cost / start.candidate.cost:.2f}×"


def _between(final: Final) -> str:
    own = final.interval
    return f"{own.mean:.4f}" if own.deviation is None else f"{own.mean:.4f} [{own.low:.4f}, {own.high:.4f}]"


def recipe(outcome: Outcome, facts: Mapping[str, object], distance: str, model: str, line: str) -> str:
    """The file for `mgen sample --recipe`.

    Args:
        facts: of the measurement, for the comment.
    """
    candidate = outcome.chosen.candidate
    lines = [
        f"Made for {model} by: {line}",
        f"{sentence(outcome, distance)}.",
        f"Changes of the start: {shown_changes(candidate.changes)}",
        f"{shown_cost(candidate.cost, outcome.measure)} per image, decoding included.",
        *(f"{name}: {value}" for name, value in facts.items()),
    ]
    text = yaml.safe_dump(
        {"sampler": own_settings(candidate.sampler)},
        sort_keys=False,
        default_flow_style=None,
        width=120,
        allow_unicode=True,
    )
    return "".join(f"# {' '.join(x.split())}\n" for x in lines) + text


def report(
    outcome: Outcome,
    found: Found,
    proposals: Proposals,
    plan: Plan,
    points: Sequence[Point],
    *,
    distance: str,
    facts: Mapping[str, object],
    model: str,
    line: str,
    plotted: bool,
    notes: Sequence[str] = (),
) -> str:
    """The report: what is kept, how it was tested, what was tried, and what could not be."""
    rows = [f"# Search of a policy for {words(model)}", "", f"    {line}", "", f"{sentence(outcome, distance)}.", ""]
    rows += ["![What was tried: cost and distance](pareto.svg)" if plotted else f"> {INSTALL}", ""]
    rows += _test(outcome, distance)
    rows += [line for note in notes for line in (f"> {note}", "")]
    rows += _tried(found, plan, points, outcome, distance)
    rows += _space(proposals.policies)
    rows += _left_out(proposals)
    rows += ["**How it was searched**", ""]
    seconds = sum(trial.seconds for candidate in found.candidates for trial in candidate.trials.values())
    about = {
        "candidates measured": f"{len(found.candidates)}, in {seconds:.0f} s"
        + (", until the time was used up" if found.stopped else ""),
        "images": ", then ".join(f"{images:,}" for images in plan.rungs),
        "budget": f"{shown_cost(outcome.limit, outcome.measure)} per image; the start takes "
        f"{shown_cost(outcome.start.candidate.cost, outcome.measure)}",
        "policy chosen": shown_changes(outcome.chosen.candidate.changes),
        **facts,
    }
    rows += markdown_table(["setting", "value"], [[name, str(value)] for name, value in about.items()], left=2)
    return "\n".join(rows)


def _test(outcome: Outcome, distance: str) -> list[str]:
    """The table of the finalists."""
    start, rows = outcome.start, []
    for final in (start, *outcome.finalists):
        candidate, own = final.candidate, final.interval
        name = "start" if final is start else shown_changes(candidate.changes)
        rows.append(
            [
                name + (" (chosen)" if final is outcome.chosen else ""),
                shown_cost(candidate.cost, outcome.measure),
                _ratio(final, start),
                plus_minus(own.mean, own.deviation),
                "–" if own.deviation is None else f"{own.low:.4f} … {own.high:.4f}",
                "–" if final is start else verdict(own, start.interval),
            ]
        )
    trials = start.trials
    seeds = ", ".join(str(trial.seed) for trial in trials)
    how = (
        f"the standard deviation between {len(trials)} seeds ({seeds}), and Student's 95 % interval of the mean over them"
        if len(trials) > 1
        else f"the standard deviation over replicates of the bootstrap over images of one seed ({seeds}), and 1.96 of it to both sides"
    )
    heads = ["sampler", "cost per image", "of the start", distance, "95 % interval", "against the start"]
    return [
        "**Tested** on images and a reference that the search did not use (lower is better)",
        "",
        *markdown_table(heads, rows),
        f"{trials[0].images:,} images of each seed; ± is {how}. *Equal* means that the intervals overlap. The best of "
        f"{len(outcome.finalists)} finalists on these images is chosen, so its mean is slightly optimistic if they are close together.",
        "",
    ]


def _tried(found: Found, plan: Plan, points: Sequence[Point], outcome: Outcome, distance: str) -> list[str]:
    """The table of the best candidates of the search."""
    front = {point.key for point in points if point.front}
    rows = []
    for candidate in found.candidates[:MOST_ROWS]:
        trial = candidate.last
        name = shown_changes(candidate.changes) + (" (front)" if candidate.key in front else "")
        rows.append(
            [
                name,
                shown_cost(candidate.cost, outcome.measure),
                f"{trial.images:,}",
                plus_minus(trial.distance, trial.deviation),
            ]
        )
    hidden = len(found.candidates) - len(rows)
    more = f" The other {hidden} are in points.json." if hidden > 0 else ""
    return [
        f"**Tried**, by images of seed {plan.seed}, those with the most images first",
        "",
        *markdown_table(["changes of the start", "cost per image", "images", distance], rows),
        "The distance falls with the number of images: compare rows with equal numbers only. ± is the standard deviation over "
        f"replicates of the bootstrap. The lowest of many distances is optimistic; those of the test are not.{more}",
        "",
    ]


def _space(policies: Policies) -> list[str]:
    """The axes and their values."""
    rows = []
    for axis, values in zip(policies.axes, policies.values):
        if values.choices:
            shown = "; ".join(map(shown_changes, values.choices))
        else:
            shown = f"{values.key} from {values.low:g} to {values.high:g}" + (", by factors" if values.log else "")
        rows.append([axis.name, shown])
    return ["**The space**: each axis is as in the start, or", "", *markdown_table(["axis", "values"], rows, left=2)]


def _left_out(proposals: Proposals) -> list[str]:
    """What was not tried, and why."""
    rows = [[name, "–", why] for name, why in proposals.policies.left_out.items()]
    rows += [["points", f"{count}", f"refused: {why}"] for why, count in proposals.refused.most_common()]
    rows += [["points", f"{proposals.over}", "over the budget, whatever is saved on the axes that cost"]] * bool(
        proposals.over
    )
    rows += [["points", f"{proposals.repeated}", "the settings of another candidate"]] * bool(proposals.repeated)
    if not rows:
        return []
    return ["**Not tried**", "", *markdown_table(["what", "how many", "why"], rows, left=1)]
