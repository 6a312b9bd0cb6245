"""Every pair of policies of the sampler with a generator of every kind: it draws, or raises an error with a reason that names both."""

import re

import pytest

from tests import policies
from tests.forks import ROOT
from tests.policies import GENERATORS, POLICIES, alone, outcome, pairs

# What an error may say of each policy.
WORDS = {
    "head steps over time": r"head\.steps|head steps|chain",
    "head cache": r"head\.cache|cache",
    "token selection": r"select|stages",
    "guidance interval": r"interval|guid",
    "autoguidance": r"guide",
    "condition cache": r"reuse\.condition",
    "token cache": r"reuse\.tokens|lazy steps",
    "cached steps": r"reuse\.cached|cached steps",
    "carried features": r"features",
    "stages": r"stages",
    "counts binomial": r"binomial|counts",
    "remask, kept counts": r"remask",
    "remask, free counts": r"remask",
}


@pytest.mark.parametrize("name", GENERATORS)
def test_pairs(name):
    taken = [policy for policy in POLICIES if name in alone(policy)]
    assert "order random" in taken or not [p for p in taken if p.startswith("order ")]
    for a, b in pairs():
        if a in taken and b in taken and (error := outcome(name, a, b)):
            for policy in (a, b):
                word = WORDS.get(policy, policy.removeprefix("order "))
                assert re.search(word, error), f"{name}: {a} with {b}: {error!r} does not speak of {policy}"


def test_tables_of_the_documentation():
    text = (ROOT / "docs/sampling.md").read_text()
    for table in (policies.trunks_table(), policies.pairs_table()):
        assert table in text, f"docs/sampling.md lacks this table (python -m tests.policies prints it):\n{table}"
