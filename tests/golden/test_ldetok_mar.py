"""The MAR that is trained on l-DeTok: MAR's cases under its own names, dropout outside the MLPs, sequences without a grid."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mgen.convert.readers import ldetok, mar
from mgen.generators import Generator
from mgen.generators.presets import model_name
from mgen.heads.chains import BETAS, Tables, kept_timesteps
from mgen.training.config import OptimConfig
from mgen.training.trainer import decay_groups
from tests.golden import harness, test_mar
from tests.golden.harness import Case
from tests.golden.test_ldetok import rates
from tests.official_settings import ldetok_decay


class OfMar(Case):
    """A case whose configuration stands under MAR's official names."""

    @property
    def config(self) -> dict[str, Any]:
        c = super().config
        c |= c["train_cases"].get(self.name, {})
        own = c["sampling_cases"].get(self.name, {})
        sizes = c["mar_size_dict"][c["model_size"]]
        named = {k: v for k, v in own.items() if k != "force_one_d_seq"}
        line = bool(own.get("force_one_d_seq", c["force_one_d_seq"])) or "_1d" in self.name
        return c | {
            "format": "ldetok-mar",
            "vae_scale_factor": 1.0,
            "vae_stride": c["tokenizer_patch_size"],
            "encoder_num_heads": sizes["heads"],
            "decoder_num_heads": sizes["heads"],
            "mlp_ratio": 4.0,
            "tokens": {"grid": None} if line else {},
            "head": {"noise_schedule": c.get("noise_schedule", "cosine")},
            "trunk": {"mlp_dropout": 0.0 if c["no_dropout_in_mlp"] else None},
            "dropout": any(name.startswith("keep/") for name in self.inputs),
            "sampling_cases": {self.name: named} if own else {},
        }


def of_mar(family: Callable[[Case], None]) -> Callable[[Case], None]:
    """A family of MAR's that sees this set's cases as its own."""

    def run(case: Case) -> None:
        family(OfMar(case.system, case.name, case.inputs, case.outputs, case.compared))

    return run


def diffusion_tables(case: Case) -> None:
    betas = BETAS[case.name.rsplit("_", 1)[1]]()
    for name, expected in case.outputs.items():
        kind, count = name.rsplit("_", 1)
        kept = kept_timesteps(int(count))
        if kind == "timesteps":
            case.check(name, torch.tensor(kept))
            continue
        assert kind in test_mar.TABLES, f"table {name} is of no known kind"
        table = test_mar.TABLES[kind](Tables(betas).respace(kept))
        case.check(name, torch.from_numpy(table), rtol=1e-6, atol=1e-7 if expected.abs().max() < 100 else 0)


OWN = {"lr_.*": rates, "diffusion_tables_.*": diffusion_tables}
FAMILIES = OWN | {name: of_mar(family) for name, family in test_mar.FAMILIES.items()}


@harness.parametrize("ldetok_mar")
def test_ldetok_mar_gives_the_official_numbers(case: Case) -> None:
    harness.run(case, FAMILIES)


def test_weight_decay_reaches_the_official_parameters() -> None:
    case = harness.read_cases("ldetok_mar")[0]
    made = test_mar.conversion(OfMar(case.system, case.name))
    names = {id(p): n for n, p in made.model.named_parameters()}
    groups = decay_groups(made.model, OptimConfig(weight_decay=0.02, **ldetok_decay("generator")))
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {made.mapped[official] for official in case.config["weight_decay_params"]}


def test_published_sizes_have_the_official_keys() -> None:
    names = {"mar_base": "ldetok-mar-b", "mar_large": "ldetok-mar-l"}
    for name, shapes in json.loads((harness.root() / "ldetok_mar" / "official_keys.json").read_text()).items():
        state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        with torch.device("meta"):
            net = Generator.from_config(ldetok.generator_config(state))
        assert {k: tuple(v.shape) for k, v in mar.rename(state).state.items()} == {
            k: tuple(v.shape) for k, v in net.state_dict().items()
        }
        assert model_name(ldetok.generator_config(state)) == names[name]
        assert model_name(mar.config(state)) == names[name].removeprefix("ldetok-")


@pytest.mark.slow
@torch.inference_mode()
def test_base_full_size() -> None:
    test_mar.check_full_size("ldetok_mar", "mar_base", ldetok.generator_config)
