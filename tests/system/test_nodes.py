"""Training on two machines, for which two launchers on this one stand."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mgen.training import nodes
from tests.helpers import tiny_tokenizer, write_idx
from tests.processes import fork, launch_environment, together
from tests.system.test_training import generator_run, losses

ROOT = Path(__file__).parents[2]
SCONTROL = '#!/bin/bash\nif [[ "$1" == show ]]; then echo localhost; else echo "$@" >> "$STUBS/requeued"; fi\n'
# Runs a command as two machines would, and passes a signal on.
SRUN = """#!/bin/bash
while [[ "$1" != *python* ]]; do shift; done
"$@" & first=$!
"$@" & second=$!
trap 'kill -TERM $first $second' TERM
wait $first; a=$?
wait $second; exit $(( a > $? ? a : $? ))
"""


def free_port() -> int:
    """A port of those that the script takes."""
    for port in range(20000, 32000):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)):
                return port
    raise OSError("no free port")


def test_two_machines_train_like_one_with_two_processes(tmp_path: Path) -> None:
    write_idx(tmp_path / "idx")
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    config = generator_run(tmp_path / "idx", tmp_path / "tokenizer", tmp_path / "one", **{"parallel": "fsdp"})
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    together("train", "--config", str(tmp_path / "c.yaml"), log=tmp_path / "log")
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (stubs / name).write_text(text)
        (stubs / name).chmod(0o755)
    environment = launch_environment() | {
        "PATH": f"{stubs}:{os.environ['PATH']}",
        "STUBS": str(stubs),
        "PYTHON": sys.executable,
        "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_JOB_ID": str(free_port() - 20000),
    }
    command = ["bash", str(ROOT / "tools" / "slurm_train.sh"), "--config", str(tmp_path / "c.yaml")]
    done = subprocess.run(
        [*command, f"output={tmp_path / 'two'}"], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    assert (tmp_path / "two" / "model" / "model_index.json").is_file()
    assert not (stubs / "requeued").exists()


def see_other_things(folder: Path) -> None:
    """In each of two processes: one that sees other settings, other data, another output folder."""
    from accelerate import Accelerator

    from mgen.training.config import train_config
    from mgen.training.trainer import Trainer
    from mgen.utils.errors import MgenError

    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    config = generator_run(folder / "idx", folder / "tokenizer", folder / "run")

    def told(seed: int = 0, **changed: object) -> str:
        with pytest.raises(MgenError) as error:
            Trainer(train_config({**config, "seed": seed, **changed}))
        return str(error.value)

    assert "other settings" in (text := told(seed=rank)) and "seed is 0 and 1" in text
    # The path is the same on both, what is there differs, as with folders of their own on two machines.
    (folder / f"of-{rank}").mkdir(exist_ok=True)
    os.chdir(folder / f"of-{rank}")
    write_idx(Path("images"), count=96 + 12 * rank)
    text = told(data={"kind": "fmnist", "path": "images"})
    assert "other data" in text and "training images is 96 and 108" in text
    Path("run").mkdir()
    with pytest.raises(MgenError, match=r"run on .* is not the folder of that name"):
        nodes.check_same_output(accelerator, Path("run"), patience=0.1)
    nodes.check_same_output(accelerator, folder, patience=5)
    accelerator.wait_for_everyone()
    assert not list(Path("run").iterdir()) and not list(folder.glob(".seen*"))


def test_processes_that_see_other_things_are_told(tmp_path: Path) -> None:
    write_idx(tmp_path / "idx")
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    codes, said = fork(see_other_things, tmp_path, log=tmp_path / "log")
    assert codes == [0, 0], said[-4000:]
