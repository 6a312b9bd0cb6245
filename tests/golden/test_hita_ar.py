"""Hita's generator: training, step-by-step contexts, complete runs whose tokens the tokenizer of the sibling set decodes."""

from mgen.tokenizers import HitaTokenizer
from tests.golden import causal, harness, test_hita
from tests.golden.harness import Case


def tokenizer(case: Case) -> HitaTokenizer:
    made = test_hita.conversion(Case("hita", case.name)).model
    assert isinstance(made, HitaTokenizer)
    return made


FAMILIES = causal.families("hita-gpt", "weights.safetensors", lambda case: case.config, tokenizer)


@harness.parametrize("hita_ar")
def test_hita_gives_the_official_numbers(case: Case) -> None:
    harness.run(case, FAMILIES)
