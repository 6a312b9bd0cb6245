"""`mgen tune --budget`: the search of policies."""

from argparse import Namespace
from pathlib import Path

from mgen.cli.tune_sides import common_settings, describe, given_references, half, notes_on, open_extractor, open_start


def search_policies(args: Namespace, line: str) -> int:
    """Search, test, and write the files."""
    # Longer than 60 lines: it sets up budget, space, sides and cost, each from those before, and hands them on.
    from mgen.bench.flops import check_duration
    from mgen.pipelines.runs import begin_run
    from mgen.pipelines.sizes import check_batch
    from mgen.tune import finals, pareto, policy_report
    from mgen.tune.axes import DEFAULT, read_space
    from mgen.tune.budget import Budget, Cost, Operations, Seconds, shown_cost
    from mgen.tune.halving import Plan, check_budget, search
    from mgen.tune.policies import Policies
    from mgen.tune.proposals import Proposals
    from mgen.tune.strategies import own_settings
    from mgen.tune.trials import Distances, Trace
    from mgen.utils.files import check_writable, write_json, write_text

    out = Path(args.out)
    check_writable(out)
    budget = Budget.of(args.budget or "1x")
    names = None if args.axes is None else [name.strip() for name in args.axes.split(",") if name.strip()]
    axes = read_space(args.space or DEFAULT, names)
    pipe, start = open_start(args)
    policies = Policies(start, pipe.transformer, axes)
    plan = Plan(trials=args.trials, rungs=args.rungs, seed=args.seed, finalists=args.finalists, seconds=args.seconds)
    extractor = open_extractor(args, pipe)
    sides, notes = describe(args, extractor, pipe, images=plan.rungs[-1]), notes_on(extractor, pipe)
    test_seeds = range(args.test_seed, args.test_seed + args.test_seeds)
    check_batch(pipe, start, args.batch_size, args.batch_size)
    tested = args.test_images * len(test_seeds) * (1 + plan.finalists)
    check_duration(pipe, start, plan.images + tested)
    settings = {
        **common_settings(args, extractor, sides),
        "start": own_settings(start),
        "budget": vars(budget),
        "rungs": list(plan.rungs),
        "space": {axis.name: vars(values) for axis, values in zip(policies.axes, policies.values)},
    }
    trace = Trace(path=out / "trace.jsonl")
    references = given_references(args, extractor, pipe.tokenizer.config.image_size)
    cost: Cost = Operations(pipe)
    if budget.measure == "seconds":  # those that are measured are written down
        begin_run(out, settings)
        cost = Seconds(pipe, trace.costs, trace.keep_cost, args.dtype)
    origin = cost(policies.sampler(policies.origin))
    limit = budget.limit(origin)
    check_budget(Proposals(policies, cost, limit), plan)
    begin_run(out, settings)
    references = references or {side: half(side, facts["reference"], extractor, args) for side, facts in sides.items()}
    print(
        f"at most {plan.trials} candidates of at most {shown_cost(limit, cost.measure)} per image (the start takes "
        f"{shown_cost(origin, cost.measure)}): about {plan.images:,} images, then {tested:,} for the test"
    )
    objective = Distances(
        pipe=pipe,
        extractor=extractor,
        references=references,
        folder=out / "features",
        batch_size=args.batch_size,
        dtype=args.dtype,
        spread=args.test_seeds == 1,
    )
    proposals = Proposals(policies, cost, limit)
    found = search(proposals, objective, trace, plan)
    outcome = finals.compare(
        proposals.start(),
        found.candidates,
        objective,
        trace,
        limit=limit,
        measure=cost.measure,
        images=args.test_images,
        seeds=test_seeds,
        finalists=plan.finalists,
    )
    distance = sides["test"]["distance"]
    points = pareto.points_of(found.candidates, outcome)
    picture = pareto.plot(points, cost.measure, limit, distance)
    if picture is not None:
        write_text(out / "pareto.svg", picture)
    write_json(out / "points.json", pareto.as_json(points, cost.measure, limit, distance))
    seeds = ", ".join(map(str, test_seeds))
    facts = {
        "images of the search": f"seed {args.seed}, against {sides['search']['reference']}",
        "images of the test": f"{args.test_images:,} of each of the seeds {seeds}, against {sides['test']['reference']}",
        "weights_sha256": settings["weights_sha256"],
        "dtype": args.dtype,
        **{f"extractor: {key}": value for key, value in settings["extractor"].items()},
    }
    write_text(out / "strategy.yaml", policy_report.recipe(outcome, facts, distance, args.model, line))
    text = policy_report.report(
        outcome,
        found,
        proposals,
        plan,
        points,
        distance=distance,
        facts=facts,
        model=args.model,
        line=line,
        plotted=picture is not None,
        notes=notes,
    )
    write_text(out / "report.md", text)
    print(policy_report.sentence(outcome, distance))
    print(out / "strategy.yaml")
    return 0
