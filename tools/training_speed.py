"""Images per second of training, by itself or in turns with another checkout of this repository.

    python tools/training_speed.py --models mar-b,maskgit-r-l --batch-size 4 --out speed.json
    python tools/training_speed.py --models fmnist-maskgit --against ../before --rounds 5
    python tools/training_speed.py --models mar-b --precision bf16 --batch-size 64 --steps 20     # on a GPU

`mar-b` and `maskgit-r-l` have their published sizes, `fmnist-maskgit` and `fmnist-mar` are the embedded models; the settings of the
training are those of configs/train, the tokens are random. On a CPU the seconds are those that the processes computed, on `--threads`
threads each, so that other work on the machine counts little; on a GPU they are those of the clock. With --against the two packages
take turns of --steps steps each in one run. `mfu` is 3 × the FLOPs of the forward pass × images per second over the matmul peak of the
devices, see mgen/training/flops.py, and `data_wait` the share of the time in which a step waited for its batch.
"""

import argparse
import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mgen.cli import run  # noqa: E402
from mgen.cli.parser import Parser, whole  # noqa: E402
from mgen.utils.errors import MgenError, check_choice  # noqa: E402
from mgen.utils.files import check_writable, write_json  # noqa: E402

CHILD = Path(__file__).with_name("training_speed_child.py")
IMAGES = 512  # of the random data
# The training whose settings are taken, and images per step on a CPU.
MODELS = {
    "mar-b": ("imagenet256-mar-b", 4),
    "maskgit-r-l": ("imagenet256-autonat-l", 4),
    "fmnist-maskgit": ("fmnist-maskgit", 64),
    "fmnist-mar": ("fmnist-mar", 64),
}


class Noise:
    """Images of random pixels, with as many classes as the model wants."""

    def __init__(self, channels: int, side: int, classes: int) -> None:
        self.shape, self.num_classes = (channels, side, side), classes
        self.class_names = [str(i) for i in range(classes)]

    def __len__(self) -> int:
        return IMAGES

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        rng = torch.Generator().manual_seed(0)
        images = torch.rand(len(indices), *self.shape, generator=rng) * 2 - 1
        return {"image": images, "label": torch.tensor([i % self.num_classes for i in indices])}

    def stamp(self, rows: range) -> str:
        return "0" * 64


def prepare(model: str, folder: Path) -> dict[str, Any]:
    """The settings of the training of `model`, with a cache of random tokens in `folder`."""
    from mgen.data.write_cache import write_cache
    from mgen.generators import Generator
    from mgen.pipelines.saved import load_tokenizer
    from mgen.tokenizers import VQGAN, KLTokenizer
    from mgen.training.config import build_model
    from mgen.utils.config import read_config

    config = read_config(ROOT / "configs" / "train" / f"{MODELS[model][0]}.yaml")
    with torch.device("meta"):
        made = build_model(config["model"])
    assert isinstance(made, Generator)
    grid = made.tokens.grid
    assert grid is not None
    if model.startswith("fmnist"):
        tokenizer: Any = load_tokenizer(model)
        images = Noise(1, 32, made.num_classes)
    elif made.tokens.kind == "index":  # small ones, which make the same tokens as the published: half and half again
        tokenizer = VQGAN(image_size=2 * grid[0], in_channels=3, channels=8, multipliers=(1, 1), blocks=1, mid_blocks=1,
                          norm_groups=0, latent=4, vocab_size=made.tokens.vocab_size)  # fmt: skip
        images = Noise(3, 2 * grid[0], made.num_classes)
    else:
        tokenizer = KLTokenizer(image_size=2 * grid[0], channels=(8, 8), layers=1, norm_groups=4, encoder_attention=(),
                                middle_attention=False, latent_channels=made.tokens.channels)  # fmt: skip
        images = Noise(3, 2 * grid[0], made.num_classes)
    if not model.startswith("fmnist"):
        tokenizer.eval().save_pretrained(folder / "tokenizer")
        tokenizer = load_tokenizer(str(folder / "tokenizer"))
    flips = bool(config["data"].get("flip"))
    write_cache(images, tokenizer.eval(), folder / "cache", flips=flips, progress=False)
    config["data"] = {"kind": "cache", "path": str(folder / "cache"), "flip": flips}
    if config["objective"].get("tokenizer"):
        config["objective"]["tokenizer"] = model if model.startswith("fmnist") else str(folder / "tokenizer")
    return {**config, "steps": 10**6, "accumulate": 1, "resume": False, "output": str(folder / "run")}


class Side:
    """The processes of one checkout."""

    def __init__(
        self, name: str, checkout: Path, order: dict[str, Any], args: argparse.Namespace, folder: Path
    ) -> None:
        self.name, self.turns = name, list[dict[str, Any]]()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = []
        for rank in range(args.processes):
            environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(args.threads)}
            if args.processes > 1:
                environment |= {"WORLD_SIZE": str(args.processes), "RANK": str(rank), "LOCAL_RANK": str(rank)}
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            if args.device == "cpu":
                environment["CUDA_VISIBLE_DEVICES"] = ""
            log = (folder / f"{name}-{rank}.log").open("w")
            command = [sys.executable, str(CHILD), json.dumps(order)]
            self.processes.append(
                subprocess.Popen(
                    command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
                )
            )
        self.folder = folder
        self.about = self.answers()[0]

    def answers(self) -> list[dict[str, Any]]:
        """A line of each process."""
        lines = [process.stdout.readline() for process in self.processes if process.stdout is not None]
        for rank, line in enumerate(lines):
            if not line:
                self.close()
                log = (self.folder / f"{self.name}-{rank}.log").read_text()
                if "MgenError: " in (last := log.strip().rpartition("\n")[2]):
                    raise MgenError(f"{self.name}: {last.partition('MgenError: ')[2]}")
                raise SystemExit(f"process {rank} of {self.name} has ended:\n{log[-3000:]}")
        return [json.loads(line) for line in lines]

    def steps(self, count: int) -> dict[str, Any]:
        """So many steps; seconds are those of all processes together for `cpu`, of the slowest one for the others."""
        for process in self.processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended: see `answers`
                process.stdin.write(f"{count}\n")
                process.stdin.flush()
        found = self.answers()
        return {
            "cpu": sum(answer["cpu"] for answer in found),
            **{key: max(answer[key] for answer in found) for key in ("wall", "wait", "memory")},
            "losses": [sum(losses) / len(found) for losses in zip(*(answer["losses"] for answer in found))],
        }

    def close(self) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self.processes:
            process.wait(60)


def summary(
    side: Side, args: argparse.Namespace, batch: int, flops: float | None, peak: dict[str, Any] | None
) -> dict[str, Any]:
    """What the turns of a side come to; the fastest one counts for images per second."""
    unit = "wall" if side.about["device"].startswith("cuda") else "cpu"
    seconds = min(turn[unit] for turn in side.turns) / args.steps
    # On a CPU the processes share nothing but the machine: seconds of all of them, on one thread, are the work of a step.
    devices = args.processes if unit == "wall" else 1
    rate = batch / seconds
    return {
        "images_per_second": rate,
        "seconds_per_step": seconds,
        "mfu": 3 * flops * rate / (peak["flops"] * devices) if flops and peak else None,
        "data_wait": sum(turn["wait"] for turn in side.turns) / sum(turn["wall"] for turn in side.turns),
        "memory_bytes": max(turn["memory"] for turn in side.turns),
        "first_losses": side.turns[0]["losses"],
        "seconds_of_turns": [round(turn[unit] / args.steps, 5) for turn in side.turns],
    }


def measure(model: str, args: argparse.Namespace) -> dict[str, Any]:
    """A row of the outcome."""
    from mgen.training.config import train_config

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        batch = args.batch_size or MODELS[model][1]
        settings = prepare(model, folder) | {
            "batch_size": batch,
            "accumulate": args.accumulate,
            "precision": args.precision,
        }
        for text in args.set:
            from mgen.utils.config import apply_overrides

            settings = apply_overrides(settings, [text])
        order = {"settings": settings, "compile": args.compile, "threads": args.threads}
        # A checkout of before has no word for a setting of today: it gets none.
        plain = prepare_plain(settings, args.set_here)
        train_config(plain)  # raises an error for a setting that isn't one
        sides = [Side("here", ROOT, {**order, "settings": plain}, args, folder)]
        if args.against is not None:
            sides.append(Side("against", args.against.resolve(), order, args, folder))
        try:
            for side in sides:
                side.steps(args.warmup)
            for turn in range(args.rounds):
                for side in sides if turn % 2 == 0 else sides[::-1]:
                    side.turns.append(side.steps(args.steps))
                    print(
                        f"{model} {side.name}: {side.turns[-1]['cpu']:.3f} CPU s, {side.turns[-1]['wall']:.3f} s",
                        file=sys.stderr,
                    )
        finally:
            for side in sides:
                side.close()
        flops, peak = sides[0].about.get("forward_flops"), sides[0].about.get("peak")
        found = {side.name: summary(side, args, batch, flops, peak) for side in sides}
        about = {
            key: getattr(args, key) for key in ("precision", "compile", "processes", "threads", "accumulate", "steps")
        }
        row = {"model": model, "batch_size": batch, **about, "device": sides[0].about["device"]}
        row |= {"parameters": sides[0].about["parameters"], "forward_flops_per_image": flops, "peak": peak, **found}
        if len(sides) > 1:
            pairs = zip(sides[0].turns, sides[1].turns)
            unit = "wall" if row["device"].startswith("cuda") else "cpu"
            ratios = sorted(other[unit] / own[unit] for own, other in pairs)
            row["times_as_fast"] = found["here"]["images_per_second"] / found["against"]["images_per_second"]
            row["times_as_fast_by_turn"] = [round(ratio, 4) for ratio in ratios]
            row["same_first_loss"] = abs(found["here"]["first_losses"][0] / found["against"]["first_losses"][0] - 1)
        return row


def prepare_plain(settings: dict[str, Any], changes: list[str]) -> dict[str, Any]:
    """The settings with what is set for this checkout alone."""
    from mgen.utils.config import apply_overrides

    return apply_overrides(settings, changes) if changes else settings


def command(argv: Sequence[str] | None = None) -> None:
    """Measure and print; see --help."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", default=",".join(MODELS), help=f"comma-separated, of {', '.join(MODELS)} (default: all)"
    )
    parser.add_argument(
        "--batch-size", type=whole(1), help="images per step, over all processes (default: 4, of fmnist 64)"
    )
    parser.add_argument("--accumulate", type=whole(1), default=1, help="pieces of a process's share of the batch")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--compile", choices=["off", "regional", "full"], default="off")
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--processes", type=whole(1), default=1)
    parser.add_argument("--threads", type=whole(1), default=1, help="of each process on a CPU")
    parser.add_argument("--steps", type=whole(1), default=2, help="steps of a turn")
    parser.add_argument("--rounds", type=whole(1), default=3, help="turns; the fastest one counts")
    parser.add_argument("--warmup", type=whole(0), default=1, help="steps before the first turn")
    parser.add_argument(
        "--against", type=Path, metavar="PATH", help="another checkout, which takes turns with this one"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="another setting of the training"
    )
    parser.add_argument(
        "--set-here", action="append", default=[], metavar="key=value", help="the same, for this checkout alone"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the rows as JSON")
    args = parser.parse_args(argv)
    models = [check_choice("--models", name.strip(), MODELS) for name in args.models.split(",")]
    if args.against is not None and not (args.against / "mgen").is_dir():
        raise MgenError(f"--against {args.against} holds no folder mgen: give the root of a checkout")
    if args.out is not None:
        check_writable(args.out.parent)
    rows = [measure(model, args) for model in models]
    outcome = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "rows": rows}
    print(json.dumps(outcome, indent=2))
    if args.out is not None:
        write_json(args.out, outcome)


if __name__ == "__main__":
    sys.exit(run(command))
