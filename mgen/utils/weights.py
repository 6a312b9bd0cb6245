"""Weights of official files: safetensors, torch pickles (weights only), flax msgpack, also sharded. Nothing in a file is ever executed."""

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mgen.utils.errors import MgenError, first_line, shown
from mgen.utils.flax_file import flatten, read_flax
from mgen.utils.limits import check_memory
from mgen.utils.reading import check_file, read_json, read_tensors
from mgen.utils.schema import build, schema
from mgen.utils.wrappers import EMA, RAW, State, bare, way_in

# What diffusers and transformers call weights in a folder, full precision first.
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
ENDINGS: tuple[str, ...] = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
ENDINGS += (".fp16.safetensors", ".safetensors.index.fp16.json", ".fp16.bin", ".bin.index.fp16.json")
MOST_PICKLE = 64 * 2**20  # bytes of names and shapes beside the numbers


@schema(extra=True)
class ShardIndex:
    """`model.safetensors.index.json`: which shard holds which tensor."""

    weight_map: dict[str, str]

    def __post_init__(self) -> None:
        if not self.weight_map:
            raise MgenError("weight_map is empty: it should name the shard of every tensor")
        for name in self.weight_map.values():
            if not re.fullmatch(r"[\w.-]+\.(safetensors|bin)", name):
                raise MgenError(
                    f"shard {shown(name)} is not the name of a .safetensors or .bin file in the same folder"
                )


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights as they were found.

    Attributes:
        state: flat name → tensor. under: keys of the mappings around it, outermost first.
        averaged: whether they are an EMA. both: whether the file holds an EMA and other weights.
        notes: what was removed around them, for the user.
    """

    state: State
    under: tuple[str, ...]
    averaged: bool
    both: bool
    notes: list[str]


class Checkpoint:
    """The contents of an official file, or of shards with an index; a folder means the weights in it, by the usual names.

    Raises:
        MgenError: the file or a shard is missing, truncated, of an unknown format, or a pickle with anything but tensors and plain
            values.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = find_weights(Path(path))
        self.notes = [] if self.path == Path(path) else [f"weights of {self.path.name}"]
        self.tree: Mapping[Any, Any]
        self.tree, self._flax = _read_shards(self.path) if _is_index(self.path) else _read(self.path)

    def weights(self, *, averaged: bool = False, keys: tuple[str, ...] = (), ema: str | None = None) -> Weights:
        """The weights without wrappers.

        Args:
            averaged: take those of an EMA where both are there; else the others. keys, ema: where this format has them.
        """
        raw_keys, ema_keys = (*keys, *RAW), (*([ema] if ema else ()), *EMA)
        until = "params" if self._flax else None  # above the trees of flax modules
        try:
            raw, mean = (way_in(self.tree, k, until=until) for k in (raw_keys + ema_keys, ema_keys + raw_keys))
            under = mean if averaged else raw
            found = self.tree
            for key in under:
                found = found[key]
            state, notes = bare(flatten(dict(found)) if self._flax else found)
        except MgenError as error:
            raise MgenError(
                f"{self.path} holds {error}" if str(error).startswith("no ") else f"{self.path}: {error}"
            ) from error
        return Weights(
            state=state,
            under=under,
            averaged=any(key in ema_keys for key in under),
            both=raw != mean,
            notes=self.notes + notes,
        )


def read_state_dict(path: str | Path) -> State:
    """Flat name → tensor of an official file, those without EMA where it holds both; see `Checkpoint`."""
    return Checkpoint(path).weights().state


# -- files -----------------------------------------------------------------------------------------------------------------


def find_weights(path: Path) -> Path:
    """The file of weights that a path means: itself, the usual file of a folder, or the index beside a shard."""
    if path.is_dir():
        names = [stem + ending for ending in ENDINGS for stem in STEMS]
        found = next((path / name for name in names if (path / name).is_file()), None)
        if found is None:
            raise MgenError(
                f"no weights in {path}: expected {STEMS[0]}.safetensors, {STEMS[0]}.safetensors.index.json with its shards, "
                f"{STEMS[0]}.fp16.safetensors or {STEMS[0]}.bin (or model… for {STEMS[0]}…)"
            )
        return found
    if shard := re.fullmatch(r"(.+)-(\d{5})-of-(\d{5})\.(safetensors|bin)", path.name):
        index = path.with_name(f"{shard[1]}.{shard[4]}.index.json")
        if int(shard[3]) > 1 and not index.is_file():
            raise MgenError(
                f"{path} is one of {int(shard[3])} shards, and {index.name} is missing in its folder: get it too"
            )
        path = index if index.is_file() else path
    if not path.exists() and not path.is_symlink():
        raise MgenError(f"no such checkpoint file: {shown(str(path), 200)}")
    return check_file(path)


def _is_index(path: Path) -> bool:
    return path.suffix == ".json" and ".index." in path.name


def _read_shards(path: Path) -> tuple[Mapping[Any, Any], bool]:
    """The tensors of all shards that an index names."""
    index = build(ShardIndex, read_json(path), f"{path}: ")
    out: dict[Any, Any] = {}
    for shard in sorted(set(index.weight_map.values())):
        file = path.parent / shard
        if not file.is_file():
            raise MgenError(f"{path} names the shard {shard}, which is missing in {path.parent}: get it too")
        own, _ = _read(file)
        expected = {name for name, place in index.weight_map.items() if place == shard}
        if odd := sorted(map(str, expected ^ own.keys())):
            raise MgenError(f"{file} and {path.name} do not belong together: {shown(odd[0])} is in one of them only")
        out |= own
    return out, False


def _read(path: Path) -> tuple[Mapping[Any, Any], bool]:
    """The contents of one file, and whether it is a tree of flax."""
    with path.open("rb") as file:
        head = file.read(16)
    named = path.suffix == ".safetensors"
    if named or (head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size):
        return read_tensors(path)[0], False
    if is_archive(path):
        check_archive(path)
        return _read_torch(path, mmap=True), False
    if head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04"):
        check_memory(
            path.stat().st_size, f"reading {path}", "re-save it as safetensors, or use a machine with more memory"
        )
        return _read_torch(path, mmap=False), False
    if head[:4] == b"PK\x03\x04":
        raise MgenError(f"{path} is truncated (the end of a torch file is missing): download it again")
    if head and (head[0] & 0xF0 == 0x80 or head[0] in (0xDE, 0xDF)):
        return read_flax(path), True
    raise MgenError(f"{path} is neither safetensors, nor a torch file, nor flax msgpack: is the download complete?")


def is_archive(path: Path) -> bool:
    """Whether a file is a zip file, as torch.save writes, or claims to be one."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # its end says so, and nonsense besides
        return True


def check_archive(path: Path) -> None:
    """Raise MgenError for a zip file that torch.save did not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise MgenError(f"cannot read {path} ({first_line(error, 160)}): damaged, download it again") from error
    names = {Path(member.filename).name for member in members}
    if "constants.pkl" in names:
        raise MgenError(
            f"{path} is a TorchScript archive, which holds code: re-save its state dict alone, or as safetensors"
        )
    if "data.pkl" not in names:
        raise MgenError(f"{path} is a zip archive that torch.save did not write: give the file of weights")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise MgenError(f"{path} is a compressed archive, as torch.save writes none: re-save it, or as safetensors")
    if sum(m.file_size for m in members if m.filename.endswith("data.pkl")) > MOST_PICKLE:
        raise MgenError(f"{path} holds more than {MOST_PICKLE // 2**20} MiB of names: no state dict is like this")


@contextmanager
def only_globals(allowed: list[Any]) -> Iterator[None]:
    """Let torch.load make objects of these types besides its own, and of none that other libraries have allowed.

    torch.distributed allows traceback.FrameSummary, which opens the file it is given: a pipe would hang, a device fill the memory.
    """
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals(allowed):
            yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)


def _read_torch(path: Path, *, mmap: bool) -> Mapping[Any, Any]:
    try:
        # Training scripts save their arguments as a Namespace, which only holds attributes and runs nothing.
        with warnings.catch_warnings(), only_globals([argparse.Namespace]):
            warnings.simplefilter("ignore", UserWarning)  # torch remarks on old pickle protocols
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise MgenError(
            f"{path} holds Python objects other than tensors, and mgen never runs code from a checkpoint: "
            "re-save its state dict alone, or as safetensors"
        ) from error
    except Exception as error:  # a pickle of nonsense can make the functions that rebuild tensors fail in any way
        raise MgenError(
            f"cannot read {path} ({first_line(error, 160)}): truncated or damaged, download it again"
        ) from error
    if not isinstance(data, Mapping):
        raise MgenError(f"{path} holds no state dict (a mapping from names to tensors): it is a {type(data).__name__}")
    return data
