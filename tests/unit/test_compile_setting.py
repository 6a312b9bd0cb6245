"""The setting `compile`: blocks of every kind compile whole, with equal numbers; copies, errors and names stay right."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

from mgen.bench.flops import count_run
from mgen.cli import main, run
from mgen.generators.presets import list_models, model_config
from mgen.nn.attention import attend
from mgen.nn.precision import computing
from mgen.utils import compiling
from mgen.utils.compiling import check_compiler, compile_network, uncompiled
from mgen.utils.errors import MgenError
from tests.compiled import fresh, graphs  # noqa: F401  # the fixture is of every test here
from tests.helpers import tiny_architecture, tiny_himar, tiny_net, tiny_pipeline, tiny_tokens
from tests.training_steps import training_step

BACKEND = {"backend": "eager", "fullgraph": True}


def near(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return all(torch.allclose(x, y, rtol=1e-4, atol=1e-5) for x, y in zip(a, b))


JOINT = {"type": "diffusion-transformer", "width": 32, "depth": 2, "heads": 2}
NETS: dict[str, Callable[[], Any]] = {
    "uvit": lambda: tiny_net("uvit"),
    "bert": lambda: tiny_net("bert"),
    "mage": lambda: tiny_net("mage"),
    "mae, diffusion": lambda: tiny_net("mae", tokens=tiny_tokens("vector")),
    "mae, joint": lambda: tiny_net("mae", tokens=tiny_tokens("vector"), head=JOINT),
    "mae, channels": lambda: tiny_net("mae", tokens=tiny_tokens("multi-index")),
    "enat": lambda: tiny_net("enat"),
    "adaln": lambda: tiny_net("adaln"),
    "causal": lambda: tiny_net("causal"),
    "permuted": lambda: tiny_net("permuted"),
    "block-causal": lambda: tiny_architecture("xar-b"),
    "rectified flow": lambda: tiny_architecture("emigm-xs"),
}


QUICK = ("uvit", "mae, diffusion", "adaln", "causal")


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in NETS])
def test_blocks_have_no_graph_breaks_in_training(kind: str) -> None:
    """fullgraph: a break raises an error."""
    net = NETS[kind]().train()
    for module in net.modules():  # dropout draws in another order where it is compiled
        for name in ("dropout", "attn_dropout", "out_dropout", "hidden_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    plain = training_step(net, masked=10)
    assert graphs() == 0
    compile_network(net, "regional", **BACKEND)
    assert near(training_step(net, masked=10), plain) and graphs() >= 1
    with uncompiled():
        made = graphs()
        assert near(training_step(net, masked=11), training_step(net, masked=11)) and graphs() == made


def test_other_mask_sizes_are_compiled_once() -> None:
    """The encoder sees another number of tokens in every step: after the second one sizes are free."""
    net = tiny_net("mae", tokens=tiny_tokens("vector")).train()
    compile_network(net, "regional", **BACKEND)
    training_step(net, masked=10)
    training_step(net, masked=7)
    made = graphs()
    for masked in (12, 5):
        training_step(net, masked=masked)
    assert graphs() == made <= 8


def test_bf16_has_no_graph_breaks() -> None:
    """Under autocast with weights in bf16, where attention takes another form on some CPUs."""
    net = tiny_net("uvit")
    labels, known, ids = torch.tensor([0, 1]), torch.arange(16).expand(2, -1) < 5, torch.zeros(2, 16).long()
    with torch.inference_mode(), computing(net, torch.bfloat16, torch.device("cpu")):
        plain = net.context(ids, known, labels)
    compile_network(net, "regional", **BACKEND)
    with torch.inference_mode(), computing(net, torch.bfloat16, torch.device("cpu")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.allclose(net.context(ids, known, labels), plain, atol=1e-2)


def test_a_cascade_is_compiled() -> None:
    net = tiny_himar()
    compile_network(net, "regional", **BACKEND)
    kinds = {type(module).__name__ for module in net.modules() if module._compiled_call_impl is not None}
    assert kinds == {"ScaledBlock", "ResBlock", "MapBlock"}


def test_every_kind_of_block_is_known() -> None:
    """The layers that a trunk or head repeats are all compiled, of every published architecture."""
    seen: dict[tuple[str, ...], str] = {}
    for name in list_models("*"):
        config = model_config(name)
        stages = [config[key] for key in ("first", "second") if key in config] or [config]
        seen.setdefault((config["trunk"]["type"], *(stage["head"]["type"] for stage in stages)), name)
    assert len(seen) > 8
    for name in seen.values():
        net = tiny_architecture(name)
        repeated = [type(block).__name__ for m in net.modules() if isinstance(m, nn.ModuleList) for block in m]
        kept = {"Embedding", "Linear", "RMSNorm", "LayerNorm"}  # tables of codebooks
        assert set(repeated) - kept <= set(net._repeated_blocks), name


def test_a_copy_is_not_compiled() -> None:
    """Operations are counted on a copy on the meta device, where compiled passes of the original have no place."""
    pipe = tiny_pipeline(steps=2)
    plain = count_run(pipe, pipe.sampler).flops
    for mode in ("regional", "full"):
        assert pipe.compile(mode, backend="eager") is pipe
        assert count_run(pipe, pipe.sampler).flops == plain
        assert graphs() == 0
    assert "forward" in vars(pipe.transformer.trunk)


def test_a_guide_is_compiled_with_its_pipeline() -> None:
    pipe = tiny_pipeline(steps=2)
    plain = pipe([0], guide=tiny_pipeline(), output_type="tokens", progress=False).tokens
    pipe.guide = tiny_pipeline()
    pipe.compile(backend="eager")
    assert any(module._compiled_call_impl is not None for module in pipe.guide.modules())
    assert torch.equal(pipe([0], output_type="tokens", progress=False).tokens, plain) and graphs() >= 1


@pytest.mark.parametrize("mode", ["partial", "on", None])
def test_an_unknown_mode_is_an_error(mode: Any) -> None:
    with pytest.raises(MgenError, match="regional"):
        tiny_pipeline().compile(mode)


def test_off_does_nothing_and_tokenizers_have_no_blocks() -> None:
    pipe = tiny_pipeline()
    pipe.compile("off")
    assert all(module._compiled_call_impl is None for module in pipe.transformer.modules())
    with pytest.raises(MgenError, match="VQGAN has no repeated blocks"):
        compile_network(pipe.tokenizer, "regional", **BACKEND)


def test_a_compiler_behind_a_launcher_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "ccache").touch(0o755)
    for name, value in {"PATH": str(tmp_path), "CC": "ccache gcc", "CXX": "ccache g++"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: True)  # Triton
    assert compiling._missing("cuda") is None and compiling._missing("cpu") is None
    monkeypatch.setenv("CC", " ")
    assert "a C compiler" in (compiling._missing("cuda") or "")


def test_without_a_compiler_one_line_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    check_compiler.cache_clear()
    assert main(["sample", "--compile", "--device", "cpu", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mgen: error: compile on cpu needs a C++ compiler") and "leave compile off" in said
    assert said.count("\n") == 1 and not (tmp_path / "out").exists()
    monkeypatch.setattr(compiling, "_missing", lambda device: None)  # one that is there but doesn't work

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("C++ compile error\nmore")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(MgenError, match=r"cannot compile for cpu \(C\+\+ compile error\)"):
        check_compiler("cpu")
    check_compiler.cache_clear()


def test_a_compiler_that_fails_in_a_run_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> int:
        raise torch._dynamo.exc.TorchRuntimeError("no such kernel")

    assert run(fail) == 2
    assert "torch.compile failed (no such kernel)" in capsys.readouterr().err


@pytest.mark.slow
def test_inductor_gives_the_same_numbers() -> None:
    """The real compiler, once: a training step and a sampling pass."""
    net = tiny_net("mae", tokens=tiny_tokens("vector")).train()
    plain = training_step(net, masked=10)
    compile_network(net, "regional")
    assert near(training_step(net, masked=10), plain)
    net.eval()
    known = torch.arange(16).expand(2, -1) < 5
    with torch.inference_mode():
        compiled = net.context(torch.ones(2, 16, 4), known, torch.tensor([0, 1]))
        with uncompiled():
            assert torch.allclose(net.context(torch.ones(2, 16, 4), known, torch.tensor([0, 1])), compiled, atol=1e-5)


def test_attention_in_bf16_has_no_graph_breaks() -> None:
    q, k, v = torch.randn(3, 2, 4, 16, 8).bfloat16()
    compiled = torch.compile(attend, **BACKEND)
    for readable in (None, torch.arange(16).expand(2, 16) < 9):
        assert torch.equal(compiled(q, k, v, readable=readable), attend(q, k, v, readable=readable))
