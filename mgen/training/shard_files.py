"""Checkpoints that every process writes its part of, by torch.distributed.checkpoint (DCP), as safetensors.

    checkpoint-0001000/
        state.json
        shards/shard-00001-model-00001-of-00001.safetensors     of the first process, and so on: PART/NAME → a piece of the tensor
                                                                where the piece lies is in the file's metadata

Any number of processes can read them. DCP's own format has an index that is a pickle; this one, of its HuggingFace storage, has none.
"""

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.tensor import DTensor

from mgen.training.tensors import Tensors
from mgen.utils.errors import MgenError, first_line
from mgen.utils.reading import check_file

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

SHARDS = "shards"
FAULTS = (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, AssertionError, CheckpointException)


def has_shards(folder: Path) -> bool:
    """Whether a checkpoint is one of these."""
    return (folder / SHARDS).is_dir()


class Writing:
    """Tensors of a checkpoint that are being written, by all processes. They are copied at once and may change from then on.

    Args:
        folder: of the checkpoint. group: gloo, of all processes; the thread that writes uses it as long as this goes on.
    """

    def __init__(self, folder: Path, parts: Mapping[str, Tensors], group: "ProcessGroup") -> None:
        flat = {f"{part}/{name}": value for part, found in parts.items() for name, value in found.items()}
        writer = HuggingFaceStorageWriter(str(folder / SHARDS), save_distributed=True)
        self.future: Future[Any] = Future()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that its interface may change
                begun = dcp.async_save(flat, storage_writer=writer, process_group=group)
            self.future = begun if isinstance(begun, Future) else begun.upload_completion
        except FAULTS as error:
            self.future.set_exception(error)

    def done(self) -> bool:
        """Whether it has ended, well or not: in the first process, those of all processes; in another perhaps its own alone."""
        return self.future.done()

    def wait(self) -> str | None:
        """Wait for the end; returns why it failed, None: it did not."""
        try:
            self.future.result()
        except FAULTS as error:
            return _told(error)
        return None


def read_parts(folder: Path, like: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensors]:
    """The tensors of each part of a checkpoint, of whole files or of shards.

    Args:
        like: by part and name what is expected: of a tensor that is spread over processes only this one's piece is read. Others arrive in
            main memory. One with another shape or type, or that is not expected, arrives without its values, on the meta device.

    Raises:
        MgenError: files are missing or damaged.
    """
    if has_shards(folder):
        files = sorted((folder / SHARDS).glob("*.safetensors"))
        flat = {f"{part}/{name}": value for part, found in like.items() for name, value in found.items()}
        return _by_part(_read(files, flat, str(folder / SHARDS)), like)
    return {
        part: _read([file], found, str(file))
        for part, found in like.items()
        for file in [folder / f"{part}.safetensors"]
    }


def _by_part(flat: Tensors, parts: Mapping[str, object]) -> dict[str, Tensors]:
    out: dict[str, Tensors] = {part: {} for part in parts}
    for key, value in flat.items():
        part, _, name = key.partition("/")
        if part in out:  # a run without averages leaves those of another
            out[part][name] = value
    return out


def _read(files: Sequence[Path], like: Mapping[str, Tensor], where: str) -> Tensors:
    for file in files:
        check_file(file)  # opening a pipe would wait forever
    try:
        about = _Files(files).read_metadata()
        found = {name: _empty(name, of, like.get(name)) for name, of in about.state_dict_metadata.items()}
        wanted = {name: value for name, value in found.items() if value.device.type != "meta"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it reads in this process alone
            dcp.load(wanted, storage_reader=_Files(files), no_dist=True)
    except FAULTS as error:
        raise MgenError(
            f"{where} cannot be read ({_told(error)}): truncated, incomplete or of another format"
        ) from error
    return found


def _empty(name: str, about: object, like: Tensor | None) -> Tensor:
    """A tensor to read into; ValueError if pieces of it are missing."""
    assert isinstance(about, TensorStorageMetadata)
    there = sum(chunk.sizes.numel() for chunk in about.chunks)
    if there != about.size.numel():
        raise ValueError(f"{name[:100]} has {there} of {about.size.numel()} numbers: a file is missing")
    dtype = about.properties.dtype
    if like is None or (like.shape, like.dtype) != (about.size, dtype):
        return torch.empty(about.size, dtype=dtype, device="meta")
    return torch.empty_like(like) if isinstance(like, DTensor) else torch.empty(about.size, dtype=dtype)


def _told(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return first_line(error)


class _Files(HuggingFaceStorageReader):
    """Reads tensors of these files alone, whatever else lies beside them."""

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__(str(files[0].parent if files else "."))
        self.files = [str(file) for file in files]

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        self.fs.ls = lambda path: self.files  # type: ignore[method-assign]
        return super().read_metadata()
