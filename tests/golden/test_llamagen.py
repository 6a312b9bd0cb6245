"""LlamaGen: the tokenizer's cases (llamagen_vq.py) and the generator's (causal.py)."""

from mgen.tokenizers import LlamaGenVQ
from tests.golden import causal, harness, llamagen_vq
from tests.golden.harness import Case


def tokenizer(case: Case) -> LlamaGenVQ:
    return llamagen_vq.model(case)


FAMILIES = {
    **llamagen_vq.FAMILIES,
    **causal.families("llamagen", "weights_gpt.safetensors", lambda case: case.config["gpt_model"], tokenizer),
}


@harness.parametrize("llamagen")
def test_llamagen_gives_the_official_numbers(case: Case) -> None:
    harness.run(case, FAMILIES)
