"""Label plans: which class each image of a run has."""

from collections import Counter

import pytest

from mgen.pipelines.labels import LabelPlan
from mgen.utils.errors import MgenError


def test_label_plans() -> None:
    classes = [3, 5, 8, 2]
    plans = {n: LabelPlan(n, classes=classes, count=10, seed=1) for n in ("balanced", "sorted", "random")}
    labels = {name: [plan(i) for i in range(10)] for name, plan in plans.items()}
    assert labels["balanced"] == [3, 5, 8, 2, 3, 5, 8, 2, 3, 5]
    assert labels["sorted"] == [3, 3, 3, 5, 5, 8, 8, 8, 2, 2]
    assert set(labels["random"]) <= set(classes)
    for name in ("balanced", "sorted"):
        for count in (1, 3, 4, 50, 997):
            plan = LabelPlan(name, classes=range(7), count=count, seed=0)
            found = Counter(plan(i) for i in range(count))
            assert max(found.values()) - min(found.values() if count >= 7 else [0]) <= 1
    mar = LabelPlan("sorted", classes=range(1000), count=50000, seed=0)  # its np.arange(1000).repeat(50)
    assert [mar(i) for i in (0, 49, 50, 49999)] == [0, 0, 1, 999]


def test_random_labels_depend_on_seed_and_index_alone_and_are_uniform() -> None:
    few, many, other = (
        LabelPlan("random", classes=range(10), count=n, seed=s) for n, s in ((20, 1), (10000, 1), (20, 2))
    )
    assert [few(i) for i in range(20)] == [many(i) for i in range(20)] != [other(i) for i in range(20)]
    found = Counter(many(i) for i in range(10000))
    assert sum((found[c] - 1000) ** 2 / 1000 for c in range(10)) < 27.9  # chi-square of 9 degrees of freedom, p = 0.001


def test_label_plans_without_classes_and_wrong_ones() -> None:
    assert all(LabelPlan(name, classes=[None], count=3, seed=0)(2) is None for name in ("balanced", "sorted", "random"))
    with pytest.raises(MgenError, match="did you mean 'sorted'"):
        LabelPlan("sortd", classes=[0], count=1, seed=0)
    with pytest.raises(MgenError, match="at least one"):
        LabelPlan("sorted", classes=[], count=1, seed=0)
    with pytest.raises(IndexError):
        LabelPlan("sorted", classes=[0], count=3, seed=0)(3)
