"""`mgen bench`: the CPU's bf16 units, the matmul peaks of both types, and what bf16 changes."""

import resource
import sys
from typing import Any

import pytest
import torch

from mgen.bench.benchmark import bench, bf16_units, table
from mgen.bench.error import error_lines, run_error
from mgen.cli import main
from mgen.samplers import ParallelSampler
from mgen.utils.devices import cpu_bf16_units
from mgen.utils.memory import SETTINGS, keep_freed_memory
from tests.helpers import tiny_himar, tiny_net, tiny_pipeline, tiny_tokens


@pytest.mark.parametrize("flag, name", [("amx_bf16", "AMX"), ("avx512_bf16", "AVX512_BF16"), ("sse2", "none")])
def test_bf16_units_of_a_cpu(flag: str, name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"sse2": True, flag: True})
    cpu_bf16_units.cache_clear()
    try:
        assert bf16_units(torch.device("cpu")) == name
    finally:
        cpu_bf16_units.cache_clear()


def test_bench_prints_both_peaks(monkeypatch: Any) -> None:
    monkeypatch.setattr(
        "mgen.bench.benchmark.matmul_peak", lambda dtype, device: {torch.float32: 1e11}.get(dtype, 2e11)
    )
    pipe = tiny_pipeline()
    result = bench(pipe, pipe.sampler, model="tiny", batch_size=2, repeats=1, dtype="bf16")
    assert result.peaks_gflops == {"fp32": 100, "bf16": 200} and result.peak_gflops == 200
    assert "GFLOP/s: 100 fp32, 200 bf16 (2.0×)" in table(result) and "share of the bf16 peak" in table(result)


@pytest.mark.parametrize("kind", ["index", "vector", "multi-index"])
def test_error_of_bf16(kind: Any) -> None:
    net = tiny_net("uvit", tokens=tiny_tokens(kind))
    sampler = ParallelSampler.suited(net, {"steps": 4, "guidance": 2.0})
    error = run_error(net, sampler, batch_size=2, dtype="bf16")
    assert error.context is not None and 0 < error.context < 0.02
    assert (error.equal is None) == (kind == "vector") and (error.vectors is None) == (kind != "vector")
    assert (error.logits is None) == (kind == "vector") and len(error_lines(error, "bf16")) == 2
    exact = run_error(net, sampler, batch_size=2, dtype="fp32")
    assert exact.context == 0 and exact.vectors in (0, None) and exact.equal in (1, None)


def test_error_of_two_stages_is_of_the_whole_run() -> None:
    net = tiny_himar(kind="index")
    error = run_error(net, ParallelSampler.suited(net, {"steps": 2}), batch_size=1, dtype="bf16")
    assert error.context is None and error.equal is not None and len(error_lines(error, "bf16")) == 1


def test_error_needs_another_type(capsys: Any) -> None:
    assert main(["bench", "--error"]) == 2 and "--dtype bf16" in capsys.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_freed_memory_is_kept(monkeypatch: Any) -> None:
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(8):
            torch.ones(2**24)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with monkeypatch.context() as patch:
        patch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")  # the user's own
        assert not keep_freed_memory()
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    if not keep_freed_memory():
        pytest.skip("no glibc")
    faults()
    assert faults() < 10_000  # eight times 64 MiB in pages of 4 KiB are 131,072
