"""Parts compose: a head registered here serves every trunk, tokens without a grid pass every trunk that has learned positions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mgen
from mgen import create_model
from mgen.generators import build_model, list_models, model_config
from mgen.generators.embedder import EMBEDDERS
from mgen.generators.presets import complete, model_name
from mgen.generators.trunk import TRUNKS
from mgen.heads import HEADS, Draw, Head, HeadInputs, HeadNoise, NoiseSpec, register_head
from mgen.samplers import ParallelSampler
from mgen.training.config import GeneratorObjectiveConfig, MaskConfig
from mgen.training.noise import Augmentation
from mgen.training.objectives import GeneratorObjective
from mgen.utils.errors import MgenError
from mgen.utils.folders import part
from tests.helpers import TRUNKS as TINY
from tests.helpers import tiny_config, tiny_tokens

PACKAGE = Path(mgen.__file__).parent


# -- a new head in one class: flow matching with a straight path (Lipman et al., arXiv 2210.02747) ------------------------


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    width: int = 16


@register_head("toy-flow", FlowConfig)
class FlowHead(Head):
    token_kinds, metric, has_log_prob = ("vector",), "mse", False

    def __init__(self, config: FlowConfig, inputs: HeadInputs) -> None:
        super().__init__()
        self.config, self.width, self.channels = config, inputs.width, inputs.tokens.channels
        self.hidden = nn.Linear(self.width + self.channels + 1, config.width)
        self.velocity = nn.Linear(config.width, self.channels)

    def predict(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(z.shape[:-1], x.shape[:-1])
        parts = [part.expand(*shape, part.shape[-1]) for part in (z, x, t.unsqueeze(-1))]
        return self.velocity(F.silu(self.hidden(torch.cat(parts, dim=-1))))

    def training_noise(self, length: int, copies: int, rng: torch.Generator) -> HeadNoise:
        return HeadNoise(
            torch.rand(copies, length, generator=rng), torch.randn(copies, length, self.channels, generator=rng)
        )

    def loss(self, z: Tensor, target: Tensor, *, noise: HeadNoise | None = None, label_smoothing: float = 0.0) -> Any:
        assert noise is not None
        x = torch.lerp(noise.noise, target.expand_as(noise.noise), noise.t.unsqueeze(-1))
        error = (self.predict(z, x, noise.t) - (target - noise.noise)).square().mean(-1)
        return error, error.detach()

    def check(self, settings: Any, *, temperatures: Sequence[float]) -> None:
        pass

    def noise_spec(self, settings: Any) -> NoiseSpec:
        return NoiseSpec(normal=True, shape=(1, self.channels))

    def plan(self, settings: Any) -> int:
        return 4

    def sample(
        self, z: Tensor, *, noise: Tensor, plan: int, temperature: float = 1.0, guidance: float | None = None
    ) -> Draw:
        x = noise[0]
        for step in range(plan):
            v = self.predict(z, x if guidance is None else x.repeat(2, 1, 1), x.new_full((1, 1), step / plan))
            x = x + (v if guidance is None else torch.lerp(*v.chunk(2)[::-1], guidance)) / plan
        return Draw(x, None)


def two_steps(net: Any, tokens: Tensor) -> list[float]:
    """The loss before and after two optimizer steps on the same tokens, masks and noise."""
    objective = GeneratorObjective(net.train(), GeneratorObjectiveConfig(label_smoothing=0.0, **masks_for(net)))
    batch = {"tokens": tokens.unsqueeze(1), "label": torch.arange(len(tokens)) % 3}
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        rng = torch.Generator().manual_seed(0)
        noise = objective.make_noise(len(tokens), rng, augmentation=Augmentation())
        noise = objective.add_row_noise(noise, slice(0, len(tokens)), "rows")
        loss = objective(batch, noise).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def masks_for(net: Any) -> dict[str, Any]:
    if net.trunk.type_name != "mage":
        return {}
    return {"mask": MaskConfig(distribution="truncated-gaussian", mean=0.55, low=0.5, rounding="ceil")}


def sample(net: Any, **settings: Any) -> Tensor:
    sampler = ParallelSampler.suited(net.eval(), settings)
    sampler.check(net)
    *_, last = sampler(net, torch.tensor([0, 2]), noise=make_noise(sampler, net))
    assert last.known.all()
    return last.tokens


def make_noise(sampler: ParallelSampler, net: Any) -> Any:
    return getattr(sampler, "make_noise", getattr(sampler, "draw", None))(net, [1, 2])


@pytest.mark.parametrize("trunk", sorted(TINY))
def test_a_new_head_trains_and_samples_under_every_trunk(trunk: str) -> None:
    torch.manual_seed(0)
    net = build_model(tiny_config(trunk, tokens=tiny_tokens("vector"), head={"type": "toy-flow", "width": 16}))
    tokens = torch.randn(4, 16, 4, generator=torch.Generator().manual_seed(1))
    before, _, after = two_steps(net, tokens)
    assert after < before
    steps = {} if trunk == "causal" else {"steps": 4}
    drawn = sample(net, **steps, guidance=2.0)
    assert drawn.shape == (2, 16, 4) and torch.isfinite(drawn).all()
    assert not torch.equal(drawn, sample(net, **steps, guidance=1.0))


# -- tokens without a grid ----------------------------------------------------------------------------------------------

LINE = {"kind": "index", "length": 32, "vocab_size": 16}
LEARNED = sorted(name for name in TINY if not TRUNKS.get(name).needs_grid)


@pytest.mark.parametrize("trunk", LEARNED)
def test_tokens_without_a_grid_pass_every_trunk_with_learned_positions(trunk: str) -> None:
    torch.manual_seed(0)
    net = build_model(tiny_config(trunk, tokens=LINE))
    tokens = torch.randint(16, (4, 32), generator=torch.Generator().manual_seed(1))
    before, _, after = two_steps(net, tokens)
    assert after < before
    for order in ("confidence", "random", "raster", [*range(31, -1, -1)]):
        drawn = sample(net, steps=4, order=order, guidance=1.5 if net.null_class else 1.0)
        assert drawn.shape == (2, 32) and int(drawn.max()) < 16
    with pytest.raises(MgenError, match="position in the image"):
        sample(net, steps=4, order="halton")


def test_a_trunk_that_needs_a_grid_says_so() -> None:
    with pytest.raises(MgenError, match="tokens.grid is needed"):
        build_model(tiny_config("causal", tokens=LINE))


# -- who knows whom -----------------------------------------------------------------------------------------------------


def own_names() -> dict[str, list[str]]:
    """Class names of the parts that others must not know."""
    return {
        "heads": [HEADS.get(name).__name__ for name in HEADS.names() if name != "toy-flow"],
        "trunks": [TRUNKS.get(name).__name__ for name in TRUNKS.names()],
        "tokenizers": ["VQGAN", "KLTokenizer", "LlamaGenVQ", "HitaTokenizer", "LDeTok", "QuantizedKL"],
    }


@pytest.mark.parametrize(
    ("files", "kinds"),
    [
        (sorted((PACKAGE / "generators" / "trunks").glob("*.py")), ("heads", "tokenizers")),
        ([PACKAGE / "generators" / f"{n}.py" for n in ("embedder", "embedders", "trunk", "masked_autoencoder")], ("heads", "tokenizers")),
        (sorted((PACKAGE / "heads").glob("*.py")), ("trunks", "tokenizers")),
    ],
    ids=["trunks", "embedders", "heads"],
)  # fmt: skip
def test_parts_do_not_name_each_other(files: list[Path], kinds: Sequence[str]) -> None:
    names = [name for kind in kinds for name in own_names()[kind]]
    for file in files:
        code = re.sub(r'""".*?"""|#[^\n]*', "", file.read_text(encoding="utf-8"), flags=re.S)
        found = [name for name in names if re.search(rf"\b{name}\b", code)]
        assert not found, f"{file.name} names {found}"


def test_registries_are_filled_by_decorators() -> None:
    assert set(TRUNKS.names()) == {"adaln", "bert", "causal", "enat", "mae", "mage", "uvit"}
    assert {"categorical", "channels", "diffusion", "diffusion-transformer"} <= set(HEADS.names())
    assert EMBEDDERS.names() == ["dequantize", "lookup", "projection"]
    with pytest.raises(MgenError, match="registered twice"):
        register_head("diffusion", FlowConfig)(FlowHead)


# -- models by name -----------------------------------------------------------------------------------------------------


def test_models_are_files() -> None:
    names = list_models()
    assert names == sorted(file.stem for file in (part("configs") / "models").glob("*.yaml"))
    assert list_models("mar-*") == ["mar-b", "mar-h", "mar-l"]
    for name in names:
        assert model_name(model_config(name)) == name
    with torch.device("meta"):
        assert sum(p.numel() for p in create_model("mar-b").parameters()) == 207_924_768


def test_sections_are_overridden() -> None:
    with torch.device("meta"):
        net = create_model("mar-b", head={"type": "channels"}, trunk={"dropout": 0.0})
    assert (
        net.tokens.kind == "multi-index"
        and net.tokens.vocab_size == 64
        and net.config["embedder"] == {"type": "dequantize"}
    )
    assert net.config["trunk"]["dropout"] == 0.0 and net.config["trunk"]["attn_dropout"] == 0.1
    for wrong, text in (
        ({"trunk": {"encoder_dimm": 3}}, "did you mean"),
        ({"head": {"type": "difusion"}}, "did you mean 'diffusion'"),
        ({"trunk": {"type": "uvit", "dim": "wide"}}, "takes a whole number"),
        ({"had": {}}, "unknown key 'model.had'"),
        ({"head": {"type": "categorical"}}, "draws tokens of kind index"),
    ):
        with pytest.raises(MgenError, match=text):
            create_model("mar-b", **wrong)
    with pytest.raises(MgenError, match="did you mean 'mar-b'"):
        create_model("mar-bb")


@pytest.mark.parametrize("name", ["fmnist-maskgit", "fmnist-mage", "fmnist-mar", "fmnist-himar", "fmnist-causal"])
def test_a_saved_generator_is_the_same(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net: Any = create_model(name).eval()
    net.save_pretrained(tmp_path)
    loaded = type(net).from_pretrained(tmp_path)
    assert complete(loaded.config) == complete(net.config)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), loaded.state_dict().values()))
