"""Weights spread over processes: the numbers of DDP, and checkpoints that any number of processes continues from."""

import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from mgen.pipelines.pipeline import MaskedPipeline
from mgen.training.checkpoints import list_checkpoints, save_checkpoint
from mgen.training.config import train_config
from mgen.training.data import BatchOrder, batches
from mgen.training.launch import make_accelerator
from mgen.training.loop import run
from mgen.training.objective import StepOutput
from mgen.training.parallelism import check_parallel, make_parallel
from mgen.training.resume import resume
from mgen.training.shard_files import read_parts
from mgen.training.sharded import group_size
from mgen.training.tensors import trained
from mgen.training.trainer import Trainer
from mgen.utils.errors import MgenError
from mgen.utils.files import write_json
from mgen.utils.reading import read_json
from tests.helpers import tiny_tokenizer, write_idx
from tests.processes import fork
from tests.system.test_training import generator_run, losses

STEPS, SAVED, KILLED = 20, 5, 14


def settings(folder: Path, output: str, parallel: str, **changed: Any) -> dict[str, Any]:
    log = {"log.checkpoint_every": SAVED, "log.preview_every": 0}
    sizes = {"model.trunk.dropout": 0.0, "steps": STEPS, "batch_size": 24, "accumulate": 2}
    return generator_run(
        folder / "idx", folder / "tokenizer", folder / output, **sizes, **log, parallel=parallel, **changed
    )


def mean_losses(trainer: Trainer, steps: int = STEPS) -> list[float]:
    """Losses of the next steps."""
    config, accelerator, data = trainer.config, trainer.accelerator, trainer.task.train_data
    rank, world = accelerator.process_index, accelerator.num_processes
    order = BatchOrder(config, data=data, rank=rank, world=world, start=trainer.step)
    loader, out = iter(batches(data, order, 0)), []
    trainer.objective.train()
    for _ in range(steps):
        logs = trainer.train_step(loader, order)
        trainer.step += 1
        out.append(accelerator.reduce(logs["loss"], "mean").item())
    return out


def averages(trainer: Trainer) -> dict[str, Tensor]:
    """All of the EMA weights by the names of the exported model."""
    assert trainer.ema is not None
    found = trainer.parallel.joined(trainer.ema.shadow_params, trainer.parameters)
    names = (name.removeprefix("model.") for name in trained(trainer.objective))
    whole = [value.full_tensor() if isinstance(value, DTensor) else value for value in found]
    return dict(zip(names, whole, strict=True))


def poison(trainer: Trainer) -> None:
    """A step with a gradient that is not finite, which comes from the second process alone, changes nothing in any of them."""
    before, real = averages(trainer), trainer.objective.forward

    def forward(*args: Any) -> StepOutput:
        out = real(*args)
        return out._replace(loss=out.loss * float("nan")) if trainer.accelerator.process_index == 1 else out

    trainer.objective.forward = forward  # type: ignore[method-assign]
    trainer.config.steps += 1
    kept = [value.clone() for value in trainer.averaged()]
    mean_losses(trainer, 1)
    assert trainer.skipped == 1
    assert all(map(torch.equal, kept, trainer.averaged()))
    after = averages(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before)


def fail_to_write(trainer: Trainer) -> None:
    """Where one process cannot write, all raise an error, and nothing is left."""
    real = HuggingFaceStorageWriter.write_data

    def write_data(self: HuggingFaceStorageWriter, *args: Any) -> Any:
        if trainer.accelerator.process_index == 1:
            raise OSError("No space left on device")
        return real(self, *args)

    trainer.output = trainer.output.with_name("full")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HuggingFaceStorageWriter, "write_data", write_data)
        save_checkpoint(trainer)
        with pytest.raises(MgenError, match="cannot write .*full.checkpoint-.*No space left on device.*free space"):
            trainer.parallel.wait_for_checkpoint()
    trainer.accelerator.wait_for_everyone()
    assert not trainer.output.exists() or not list(trainer.output.iterdir())


def train_and_be_killed(folder: Path) -> None:
    """In each of two processes: what DDP and HSDP compute, then a sharded run up to a step after which the system ends it."""
    plain = Trainer(train_config(settings(folder, "unused", "ddp")))
    spread = Trainer(train_config(settings(folder, "unused", "hsdp", hsdp_shards=1)))
    found = {"ddp": mean_losses(plain), "hsdp": mean_losses(spread)}
    of_ddp, of_hsdp = averages(plain), averages(spread)
    assert all(torch.allclose(of_ddp[name], of_hsdp[name], rtol=0, atol=1e-5) for name in of_ddp)
    poison(spread)
    fail_to_write(spread)
    if plain.accelerator.is_main_process:
        write_json(folder / "losses.json", found)
        save_file(of_ddp, folder / "ema.safetensors")
    trainer = Trainer(train_config(settings(folder, "run", "fsdp")))
    local = sum(value.numel() for value in trainer.averaged())
    assert local < 0.6 * sum(p.numel() for p in trainer.parameters)
    real = trainer.train_step

    def step(*args: Any) -> Any:
        if trainer.step == KILLED:
            while not (trainer.output / "checkpoint-0000010" / "state.json").is_file():
                time.sleep(0.02)
                trainer.parallel.poll()
            save_checkpoint(trainer)  # of which the end never comes
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    trainer.train_step = step  # type: ignore[method-assign]
    run(trainer)


def train_to_the_end(folder: Path) -> None:
    run(Trainer(train_config(settings(folder, "run", "fsdp"))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the output `run` of a sharded training whose two processes were killed."""
    folder = tmp_path_factory.mktemp("sharded")
    write_idx(folder / "idx")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    codes, said = fork(train_and_be_killed, folder, log=folder / "log")
    assert codes == [-signal.SIGKILL] * 2, said[-4000:]
    return folder


def test_a_damaged_shard_is_passed_over(folder: Path) -> None:
    shutil.copytree(folder / "run", folder / "damaged")
    found = list_checkpoints(folder / "damaged")
    assert [path.name[-2:] for path in found] == ["05", "10"]
    assert not list((folder / "damaged").rglob("*.metadata"))  # DCP's index, a pickle
    files = sorted((found[-1] / "shards").iterdir())
    assert [file.suffix for file in files] == [".safetensors"] * 2
    files[0].unlink()
    trainer = Trainer(train_config(settings(folder, "damaged", "fsdp")))
    with pytest.warns(UserWarning, match="damaged.*a file is missing.*resuming from checkpoint-0000005"):
        resume(trainer)
    assert trainer.step == 5
    shutil.rmtree(found[-1])
    whole = load_file(sorted((found[0] / "shards").iterdir())[0])
    name = next(name for name in whole if name.startswith("ema/"))
    save_file(whole | {name: whole[name] * float("nan")}, sorted((found[0] / "shards").iterdir())[0])
    with pytest.raises(MgenError, match="cannot resume"):
        resume(Trainer(train_config(settings(folder, "damaged", "fsdp"))))


@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling link"])
def test_what_is_no_file_in_the_place_of_a_shard_is_passed_over(folder: Path, kind: str) -> None:
    output = f"no-file-{kind}"
    shutil.copytree(folder / "run", folder / output)
    shard = sorted((list_checkpoints(folder / output)[-1] / "shards").iterdir())[0]
    shard.unlink()
    if kind == "pipe":
        os.mkfifo(shard)
    elif kind == "folder":
        shard.mkdir()
    else:
        shard.symlink_to("nowhere")
    trainer = Trainer(train_config(settings(folder, output, "fsdp")))
    with pytest.warns(UserWarning, match=rf"damaged.*{shard.name}.*resuming from checkpoint-0000005"):
        resume(trainer)
    assert trainer.step == 5


@pytest.mark.parametrize("name", ["shards/shard-00001-model-00001-of-00001", "model"])
def test_pipes_are_never_opened(tmp_path: Path, name: str) -> None:
    file = tmp_path / f"{name}.safetensors"
    file.parent.mkdir(exist_ok=True)
    os.mkfifo(file)
    with pytest.raises(MgenError, match=rf"^cannot read .*{file.name}: it is no regular file$"):
        read_parts(tmp_path, {"model": {"weight": torch.zeros(2)}})


def test_killed_run_continues_on_one_process_and_then_on_two(folder: Path) -> None:
    # On one process, with whole weights, up to step 17: the newest checkpoint is that of step 15.
    trainer = Trainer(train_config(settings(folder, "run", "fsdp")))
    real = trainer.train_step

    def step(*args: Any) -> Any:
        if trainer.step == 17:
            raise KeyboardInterrupt
        return real(*args)

    trainer.train_step = step  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(trainer)
    assert (folder / "run" / "checkpoint-0000015" / "model.safetensors").is_file()
    codes, said = fork(train_to_the_end, folder, log=folder / "log")
    assert codes == [0, 0], said[-4000:]
    assert "resuming from step 15 of 20" in said
    assert not list((folder / "run").glob(".checkpoint*"))  # what the killed processes had begun
    expected = read_json(folder / "losses.json")
    assert list(losses(folder / "run").values()) == pytest.approx(expected["ddp"], abs=1e-5)
    assert expected["hsdp"] == pytest.approx(expected["ddp"], abs=1e-5)
    made = load_file(folder / "run" / "model" / "transformer" / "diffusion_pytorch_model.safetensors")
    averaged = load_file(folder / "ema.safetensors")
    assert all(torch.allclose(made[name], averaged[name], rtol=0, atol=1e-5) for name in averaged)
    pipe = MaskedPipeline.from_pretrained(folder / "run" / "model")
    assert len(pipe([1, 2], seed=0, progress=False).images) == 2
    assert len(list((folder / "run" / "previews").iterdir())) == 2


@pytest.mark.parametrize(
    "changed, told",
    [
        ({"task": "tokenizer", "objective": {}, "model": {"class": "VQGAN"}}, "task generator.*parallel=ddp"),
        ({"precision": "fp16"}, "bf16 or fp32"),
        ({"compile": "full"}, "compile=regional"),
        ({"objective": {"reuse": 0.5}}, "objective.reuse"),
        ({"parallel": "ddp", "hsdp_shards": 2}, "hsdp_shards is for parallel=hsdp"),
    ],
)
def test_what_cannot_be_sharded_is_an_error(changed: dict[str, Any], told: str) -> None:
    config = train_config(
        {"task": "generator", "output": "o", "steps": 1, "model": "maskgit", "parallel": "fsdp"} | changed
    )
    with pytest.raises(MgenError, match=told):
        check_parallel(config)


def test_other_engines_of_the_launcher_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(MgenError, match="asks for FSDP.*parallel=fsdp"):
        make_accelerator()


def test_groups_must_divide_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    alone: Any = SimpleNamespace(num_processes=1)
    assert not make_parallel("hsdp", alone, nn.Linear(1, 1), shards=1).collective
    with pytest.raises(MgenError, match="hsdp_shards is 4, but one process"):
        make_parallel("hsdp", alone, nn.Linear(1, 1), shards=4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert group_size(8, None) == 4 and group_size(8, 2) == 2
    with pytest.raises(MgenError, match="hsdp_shards is 3, but 8 processes"):
        group_size(8, 3)
    with pytest.raises(MgenError, match="a node has 4 processes, but 6"):
        group_size(6, None)
