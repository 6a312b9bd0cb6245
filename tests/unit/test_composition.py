"""Parts compose: a head registered here serves every trunk, tokens without a grid pass every trunk and every order that needs none."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import mgen
from mgen import create_model
from mgen.generators import build_model, list_models, model_config
from mgen.generators.embedder import EMBEDDERS
from mgen.generators.presets import complete, model_name
from mgen.generators.trunk import TRUNKS
from mgen.heads import HEADS, Draw, Head, HeadInputs, HeadNoise, NoiseSpec, register_head
from mgen.samplers import ParallelSampler
from mgen.samplers.order import ORDERS, RANKED
from mgen.samplers.sequences import ON_GRID
from mgen.training.config import GeneratorObjectiveConfig, MaskConfig
from mgen.training.generator_objective import GeneratorObjective
from mgen.training.noise import Augmentation
from mgen.utils.errors import MgenError
from mgen.utils.folders import part
from mgen.utils.schema import schema
from tests.helpers import TRUNKS as TINY
from tests.helpers import tiny_config, tiny_tokens

PACKAGE = Path(mgen.__file__).parent


# -- a new head in one class: flow matching with a straight path (Lipman et al., arXiv 2210.02747) ------------------------


@schema
class FlowConfig:
    width: Annotated[int, Field(ge=1, le=4096)] = 16


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
    steps = {} if net.capabilities.one_by_one else {"steps": 4}
    drawn = sample(net, **steps, guidance=2.0)
    assert drawn.shape == (2, 16, 4) and torch.isfinite(drawn).all()
    assert not torch.equal(drawn, sample(net, **steps, guidance=1.0))


# -- tokens without a grid ----------------------------------------------------------------------------------------------

LINE: dict[str, dict[str, Any]] = {
    "index": {"kind": "index", "length": 12, "vocab_size": 16},
    "vector": {"kind": "vector", "length": 12, "channels": 4, "scale": 1.0},
}
PLACELESS = [name for name in ORDERS if name not in ON_GRID]


def drawn_by_every_order(net: Any) -> dict[str, Tensor]:
    """Tokens drawn by each order without a grid that the generator takes, with keys and values or features reused where it can."""
    able, guidance = net.capabilities, 1.5 if net.null_class else 1.0
    head = {"mask": False} if able.log_prob else {"steps": 2, "clip": 5.0}
    orders: list[Any] = [*PLACELESS, [*range(11, -1, -1)]]
    if able.one_by_one:
        settled = ["raster"] if able.order == "causal" else [order for order in orders if order not in RANKED]
        return {str(order): sample(net, order=order, guidance=guidance, head=head) for order in settled}
    out = {}
    for order in orders:
        name = order if isinstance(order, str) else "list"
        reuse = {"cached": int(able.cached_steps and name != "remasking"), "features": name != "remasking"}
        if name in RANKED and not able.log_prob:
            with pytest.raises(MgenError, match="use order random"):
                sample(net, steps=4, order=order, reuse=reuse)
        else:
            out[name] = sample(net, steps=4, order=order, guidance=guidance, head=head, reuse=reuse)
    return out


@pytest.mark.parametrize("kind", LINE)
@pytest.mark.parametrize("trunk", sorted(TINY))
def test_tokens_without_a_grid_pass_every_trunk_and_order(trunk: str, kind: str) -> None:
    torch.manual_seed(0)
    net = build_model(tiny_config(trunk, tokens=LINE[kind]))
    rng = torch.Generator().manual_seed(1)
    tokens = torch.randint(16, (4, 12), generator=rng) if kind == "index" else torch.randn(4, 12, 4, generator=rng)
    before, _, after = two_steps(net, tokens)
    assert after < before
    drawn = drawn_by_every_order(net)
    for name, made in drawn.items():
        assert made.shape == (2, *net.tokens.shape), name
        assert bool(torch.isfinite(made).all()) if kind == "vector" else int(made.max()) < 16, name
    if net.capabilities.order == "any":
        assert len(drawn) == len(PLACELESS) + 1 - (0 if kind == "index" else len(RANKED))
        with pytest.raises(MgenError, match="position in the image"):
            sample(net, steps=4, order="halton")


def test_causal_tokens_in_a_row_know_their_places() -> None:
    """Swapping two tokens that are seen changes what the last one is expected to be: attention alone could not tell."""
    torch.manual_seed(0)
    net = build_model(tiny_config("causal", tokens=LINE["index"])).eval()
    tokens = torch.arange(12).unsqueeze(0)
    swapped = tokens[:, [1, 0, *range(2, 12)]]
    known, label = torch.ones(1, 12, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        a, b = (net.context(x, known, label)[:, -1] for x in (tokens, swapped))
    assert (a - b).abs().max() > 1e-4


def test_what_needs_a_grid_says_so() -> None:
    with pytest.raises(MgenError, match="windows join tokens of a grid"):
        build_model(tiny_config("uvit", tokens=LINE["index"], windows={"side": 2}))
    cascade = model_config("fmnist-himar-ids")
    for stage in ("first", "second"):
        with pytest.raises(MgenError, match=r"tokens\.grid is needed in both stages"):
            build_model({**cascade, stage: {**cascade[stage], "tokens": LINE["index"]}})
    head = {"type": "diffusion-transformer", "width": 32, "depth": 1, "heads": 2}
    with pytest.raises(MgenError, match=r"tokens\.grid is needed"):
        build_model(tiny_config("mae", tokens=LINE["vector"], head=head))


def test_a_trunk_that_needs_a_grid_says_so() -> None:
    tokens = {"kind": "vector", "length": 32, "channels": 4}
    with pytest.raises(MgenError, match="tokens.grid is needed"):
        build_model({"tokens": tokens, "trunk": {"type": "block-causal"}, "head": {"type": "velocity"}})


# -- who knows whom -----------------------------------------------------------------------------------------------------


def own_names() -> dict[str, list[str]]:
    """Class names of the parts that others must not know."""
    return {
        "heads": [HEADS.get(name).__name__ for name in HEADS.names() if name != "toy-flow"],
        "trunks": [TRUNKS.get(name).__name__ for name in TRUNKS.names()],
        "tokenizers": [
            "VQGAN",
            "KLTokenizer",
            "LlamaGenVQ",
            "HitaTokenizer",
            "LDeTok",
            "QuantizedKL",
            "TiTok",
            "TiTokKL",
        ],
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
    assert set(TRUNKS.names()) == {
        *("adaln", "bert", "block-causal", "causal", "enat", "mae", "mage", "permuted", "uvit")
    }
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
