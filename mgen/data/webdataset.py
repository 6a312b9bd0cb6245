"""Images from tar shards, as the library webdataset writes them: any of them at random, by an index (see mgen.data.tar_index).

Shards that a command writes (`pipe:curl -sf URL`) are read as streams, from the front to the image that is asked for; they are for
trainings with data.shuffle=shards, which go through the shards one after another. What passes must be what the index says.
"""

import functools
import hashlib
import os
import warnings
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mgen.data.image_files import check_channels, load_image
from mgen.data.indexed_stream import IndexedStream
from mgen.data.read_ahead import read_through
from mgen.data.record import DataRecord
from mgen.data.tar_index import TarIndex
from mgen.data.tar_indexes import find_indexes, index_place
from mgen.data.unreadable import OnError, load_or_next
from mgen.utils.errors import MgenError, first_line, shown
from mgen.utils.reading import read_text
from mgen.utils.schema import Count, Size, checked
from mgen.utils.tar_paths import PIPE, find_tars, set_name, tar_name

CLASS_FILE = "classnames.txt"  # beside the tars: one name a line, in the order of the labels
MOST_OPEN = 64  # tars
MOST_CLASSES = 10**6
Row = int | tuple[int, bytes]  # an image by number, or with its bytes


class TarImages:
    """Images of tar shards, center-cropped to `image_size` pixels.

    Args:
        path: see `find_tars`. index: folder of the indexes; None: beside the tars. classes: "none": all images are of one class, whatever
            their labels. num_classes: None: one more than the largest label.
        on_error: "skip" leaves out images without a valid label and what is behind a damaged header, with a warning; the next image
            takes the place of one that can't be read.

    Raises:
        MgenError: a shard is missing or damaged, or an image has no label or one out of range.
    """

    @checked
    def __init__(
        self,
        path: str,
        *,
        image_size: Size,
        channels: int = 3,
        classes: Literal["folders", "none", "any"] = "any",
        num_classes: Count | None = None,
        index: str | Path | None = None,
        on_error: OnError = "raise",
    ) -> None:
        check_channels(channels)
        self.path, self.image_size, self.channels, self.on_error = path, image_size, channels, on_error
        self.shards = find_tars(path)
        self.piped = self.shards[0].startswith(PIPE)
        self._folder = None if index is None else Path(index)
        self.indexes = find_indexes(self.shards, self._folder)
        self._whole = list(self.indexes)  # with what is left out below
        self._check(classes, num_classes, on_error)
        counts = [len(own) for own in self.indexes]
        self.ends = list(accumulate(counts))
        if not self.ends[-1]:
            raise MgenError(f"no images in {shown(path, 200)}: expected members KEY.jpg (or png, webp) and KEY.cls")
        labels = torch.cat([own.labels for own in self.indexes])
        none = classes == "none" or (classes == "any" and bool((labels < 0).all()))
        self.labels = torch.zeros_like(labels) if none else labels
        self.class_names: Sequence[str] = ("images",) if none else self._names(num_classes)
        self.num_classes, self._has_classes = len(self.class_names), not none
        self._open: OrderedDict[int, tuple[int, int]] = OrderedDict()  # tar → process and descriptor
        self._stream: IndexedStream | None = None
        self._ahead: IndexedStream | None = None  # of the thread that reads ahead
        self._held: dict[int, bytes] = {}

    def _check(self, classes: str, num_classes: int | None, on_error: OnError) -> None:
        """Raise MgenError, or warn and leave images out, for what is wrong with the shards."""
        labeled = classes == "folders" or (classes == "any" and any((own.labels >= 0).any() for own in self.indexes))
        wrong, told = 0, list[str]()
        for number, (name, own) in enumerate(zip(self.shards, self.indexes)):
            wrong += own.about.problems
            told += [f"{tar_name(name)}: {text}" for text in own.about.first]
            keep = torch.ones(len(own), dtype=torch.bool)
            if labeled:
                wrong += own.about.unlabeled
                told += [f"{tar_name(name)}: {own.about.first_unlabeled}"] if own.about.unlabeled else []
                most = MOST_CLASSES if num_classes is None else num_classes
                keep = (own.labels >= 0) & (own.labels < most)
                if beyond := int((own.labels >= most).sum()):
                    first = int((own.labels >= most).nonzero()[0])
                    wrong += beyond
                    told.append(
                        f"{tar_name(name)}: {shown(own.key(first))} has label {int(own.labels[first])}, allowed is 0 … {most - 1}"
                    )
            if not bool(keep.all()) and on_error == "skip":
                # Keys stay those of the whole tar, for messages alone.
                self.indexes[number] = TarIndex(
                    own.about, own.offsets[keep], own.sizes[keep], own.labels[keep], own.keys
                )
        if not wrong:
            return
        text = f"{shown(self.path, 100)}: {wrong} problem{'s' * (wrong > 1)}, such as {'; '.join(told[:2])}"
        if on_error == "raise":
            raise MgenError(
                f"{text}. Mend the tars, or leave such images out with data.on_error=skip (mgen cache: --on-error skip)"
            )
        warnings.warn(f"{text}: left out", stacklevel=4)

    def _names(self, num_classes: int | None) -> tuple[str, ...]:
        """The names of the classes: those of the file beside the tars, else numbers."""
        largest = int(self.labels.max())
        file = Path(self.shards[0]).parent / CLASS_FILE
        if self.piped or not os.path.lexists(file):
            return tuple(map(str, range(num_classes or largest + 1)))
        try:
            text = read_text(file, most=2**26)
        except MgenError as error:
            raise MgenError(
                f"{error}: {CLASS_FILE} beside the tars names their classes, one a line: mend or remove it"
            ) from error
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
        if len(set(names)) < len(names):
            raise MgenError(f"{file} has a name twice: {shown(next(n for n in names if names.count(n) > 1))}")
        if largest >= len(names) or num_classes not in (None, len(names)):
            found = f"labels go up to {largest}" if largest >= len(names) else f"data.num_classes is {num_classes}"
            raise MgenError(f"{file} has {len(names)} names, but {found}")
        return names

    @functools.cached_property
    def record(self) -> DataRecord:
        """What the shards hold."""
        digest = hashlib.sha256()
        for own in self.indexes:
            for tensor in (own.keys, own.sizes, own.labels):
                digest.update(tensor.contiguous().numpy().data)
        return DataRecord(
            name=set_name(self.shards),
            images=len(self),
            class_names=tuple(self.class_names) if self._has_classes else (),
            image_size=self.image_size,
            channels=self.channels,
            digest=digest.hexdigest(),
        )

    @property
    def shard_rows(self) -> list[range]:
        """The images of each shard."""
        return [range(end - len(own), end) for end, own in zip(self.ends, self.indexes)]

    @property
    def row_bytes(self) -> float:
        """Bytes of an image as it is stored, on average."""
        return sum(float(own.sizes.sum()) for own in self.indexes) / len(self)

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitems__(self, indices: Sequence[Row]) -> dict[str, Tensor]:
        """A batch: image (B, C, size, size) float in [-1, 1] and label (B,); of images by number, or of `items`."""
        rows = [row[0] if isinstance(row, tuple) else int(row) for row in indices]
        contents = [row[1] if isinstance(row, tuple) else None for row in indices]
        if self.piped and None in contents:
            contents = [data for _, data in self.items(rows)]
        found = [self._image(i, data) for i, data in zip(rows, contents)]
        images = torch.stack([image for _, image in found])
        return {"image": images.float() / 127.5 - 1, "label": self.labels[torch.tensor([i for i, _ in found])]}

    def items(self, indices: Sequence[int]) -> list[tuple[int, bytes]]:
        """Images with their bytes, of streams: each is read forward in the order of the images, and anew for those further ahead."""
        found = {i: self._held[i] for i in set(indices) if i in self._held}
        for i in sorted(set(indices) - found.keys()):
            found[i] = self._streamed(i)
        return [(i, found[i]) for i in indices]

    def read_ahead(self, rows: range) -> None:
        """Read these images of one shard from front to back: the system then has their file in memory, those of streams are kept here.

        They are kept until `forget`, and not read again meanwhile.
        """
        shard, first = self._place(rows.start)
        if self.piped:
            missing = [i for i in rows if i not in self._held]
            if not missing:
                return
            stream = self._ahead = self._begin(shard)
            try:
                own = self.indexes[shard]
                for i in missing:
                    place = first + i - rows.start
                    self._held[i] = stream.read(int(own.offsets[place]), int(own.sizes[place]))
            finally:
                self._ahead = None
                stream.close()
            return
        own, last = self.indexes[shard], first + len(rows) - 1
        read_through(Path(self.shards[shard]), int(own.offsets[first]), int(own.offsets[last] + own.sizes[last]))

    def forget(self, rows: Iterable[int]) -> None:
        """Drop the bytes of these images that were read ahead."""
        for i in rows:
            self._held.pop(i, None)

    def end(self) -> None:
        """End the commands that are running."""
        if (ahead := self._ahead) is not None:
            ahead.end()  # the thread that reads it closes it
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def stamp(self, rows: range) -> str:
        """A digest of these images: places, sizes and labels, and size and time of change of their tars."""
        digest, i = hashlib.sha256(), rows.start
        while i < rows.stop:
            shard, first = self._place(i)
            own = self.indexes[shard]
            part = slice(first, first + min(rows.stop, self.ends[shard]) - i)
            size, time = own.about.bytes, own.about.mtime_ns
            if not self.piped:
                try:
                    about = os.stat(self.shards[shard])
                except OSError as error:
                    raise MgenError(
                        f"cannot read {self.shards[shard]} ({error.strerror}): run the command again"
                    ) from error
                size, time = about.st_size, about.st_mtime_ns
            digest.update(os.fsencode(tar_name(self.shards[shard])) + b"\0%d\0%d\n" % (size, time))
            for tensor in (own.offsets[part], own.sizes[part], self.labels[i : i + part.stop - part.start]):
                digest.update(tensor.contiguous().numpy().data)
            i += part.stop - part.start
        return digest.hexdigest()

    # -- bytes -------------------------------------------------------------------------------------------------------------

    def _place(self, i: int) -> tuple[int, int]:
        """Shard of an image, and its number in there."""
        if not 0 <= i < len(self):
            raise MgenError(f"there is no image {i}: {shown(self.path, 100)} has {len(self)}")
        shard = bisect_right(self.ends, i)
        return shard, i - (self.ends[shard] - len(self.indexes[shard]))

    def _image(self, i: int, data: bytes | None) -> tuple[int, Tensor]:
        """Image i (C, size, size) uint8, of which `data` are the bytes if they are here; see load_or_next."""

        def load(number: int) -> Tensor:
            shard, place = self._place(number)
            own = data if number == i and data is not None else self._contents(number)
            name = f"{tar_name(self.shards[shard])}, image {place} at byte {int(self.indexes[shard].offsets[place])}"
            return load_image(name, size=self.image_size, channels=self.channels, data=own)

        return load_or_next(load, i, len(self), on_error=self.on_error, what=shown(self.path, 100))

    def samples(self, most: int) -> list[tuple[str, bytes]]:
        """Names and bytes of some images, evenly spread; of streams the first ones."""
        rows = range(min(most, len(self))) if self.piped else range(0, len(self), -(-len(self) // most))
        return [(f"{shown(self.path, 100)}, image {i}", self._contents(i)) for i in rows]

    def _contents(self, i: int) -> bytes:
        """The bytes of an image as they are stored."""
        if self.piped:
            return self.items([i])[0][1]
        shard, place = self._place(i)
        own = self.indexes[shard]
        return self._read(shard, int(own.offsets[place]), int(own.sizes[place]))

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of a tar on this machine. Descriptors are of the process: a forked one opens its own."""
        path = self.shards[shard]
        try:
            kept = self._open.get(shard)
            if kept is None or kept[0] != os.getpid():
                while len(self._open) >= MOST_OPEN:
                    owner, old = self._open.popitem(last=False)[1]
                    if owner == os.getpid():
                        os.close(old)
                kept = self._open[shard] = os.getpid(), os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._open.move_to_end(shard)
            data = os.pread(kept[1], size, offset)
        except OSError as error:
            raise MgenError(f"cannot read {path} ({first_line(error)})") from error
        if len(data) < size:
            raise MgenError(f"{path} is cut off: it ends {size - len(data)} bytes early for the image at byte {offset}")
        return data

    def _streamed(self, i: int) -> bytes:
        shard, place = self._place(i)
        own = self.indexes[shard]
        offset, size = int(own.offsets[place]), int(own.sizes[place])
        if self._stream is None or self._stream.name != self.shards[shard] or not self._stream.ahead(offset):
            if self._stream is not None:
                self._stream.close()
            self._stream = self._begin(shard)
        return self._stream.read(offset, size)

    def _begin(self, shard: int) -> IndexedStream:
        """The stream of a shard, from its front."""
        name = self.shards[shard]
        return IndexedStream(name, self._whole[shard], index_place(name, self._folder))

    def __getstate__(self) -> dict[str, object]:
        """For processes that are started anew: without descriptors and streams."""
        return {**self.__dict__, "_open": OrderedDict(), "_stream": None, "_ahead": None, "_held": {}}
