"""A tar that a command writes, whose members are compared with its index as they pass.

An index tells which label an image has and where it lies. A command may write something else the next time, and there is no time of
change that would tell; but to reach an image all that is in front of it must be read anyway.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mgen.data.tar_index import DAMAGES, Forward, Found, TarIndex, key_bytes, walk
from mgen.data.tar_stream import PATIENCE, TarStream
from mgen.utils.errors import MgenError, first_line, shown


class IndexedStream(TarStream):
    """See TarStream. Key, place, size and label of every sample that passes must be those of the index, else MgenError is raised.

    Args:
        index: of the whole tar. file: that of the index, for messages.
    """

    def __init__(self, name: str, index: TarIndex, file: Path) -> None:
        super().__init__(name)
        self.index, self.index_file = index, file
        self._bytes, self._found = Forward(self.file), Found()
        self._walk: Iterator[None] = walk(self._bytes, self._found, 2**62)
        self._rows = list(zip(index.offsets.tolist(), index.sizes.tolist(), index.labels.tolist()))
        self._keys = bytes(index.keys.numpy().data).split(b"\0")
        self._number = 0  # samples that have passed

    def ahead(self, offset: int) -> bool:
        """Whether the bytes from `offset` on are still to come."""
        return not self.closed and self.owner == os.getpid() and offset >= self._bytes.place

    def read(self, offset: int, size: int) -> bytes:
        """The bytes of an image of the index, none of which has been read yet.

        Raises:
            MgenError: the stream ends before, or what has passed is not what the index says.
        """
        while (sample := self._found.sample).image is None or sample.image[0] < offset:
            if not self._step():
                raise (
                    self._ended() if self._bytes.ended else self._changed("it ends before the last image of the index")
                )
        data = self._bytes.read(size)
        if len(data) < size:
            raise self._ended()
        # A label may stand behind its image.
        while self._rows[self._number][2] >= 0 and sample.label is None:
            if self._found.sample is not sample or not self._step():
                raise self._changed(f"{shown(sample.key)} has lost its label")
        # An index with problems may lack what is behind a damaged header.
        if self._number == len(self.index) - 1 and not self.index.about.problems:
            self._expect_end()
        return data

    def _step(self) -> bool:
        """Go on to the next member, and compare what has passed; whether there is one."""
        try:
            next(self._walk)
        except StopIteration:
            return False
        except DAMAGES as error:
            if self._bytes.ended:
                raise self._ended() from error
            raise self._changed(f"it is damaged ({first_line(error)})") from error
        found = self._found
        for (offset, size, label), key in zip(found.rows, found.keys):
            self._compare(key, (offset, size), label)
            self._number += 1
        found.rows.clear()
        found.keys.clear()
        if found.sample.image is not None:
            self._compare(found.sample.key, found.sample.image, found.sample.label)
        return True

    def _compare(self, key: str, image: tuple[int, int], label: int | None) -> None:
        """Raise MgenError unless the index has this sample; label: None if it has not passed yet."""
        number, index = self._number, self.index
        if number >= len(index):
            raise self._changed(f"{shown(key)} has come behind the {len(index)} images of the index")
        expected = self._rows[number]
        if key_bytes(key) != self._keys[number]:
            raise self._changed(f"image {number} is {shown(key)}, in the index {shown(index.key(number))}")
        if image != expected[:2]:
            raise self._changed(
                f"{shown(key)} has {image[1]} bytes at {image[0]}, in the index {expected[1]} at {expected[0]}"
            )
        if label not in (None, expected[2]):
            told = "none" if expected[2] < 0 else expected[2]
            raise self._changed(f"{shown(key)} has label {'none' if label == -1 else label}, in the index {told}")

    def _expect_end(self) -> None:
        """Go on to the end of the tar; MgenError for an image behind the last one of the index."""
        with contextlib.suppress(_Ended):  # it had all images
            while self._step():
                pass

    def _changed(self, how: str) -> MgenError:
        return MgenError(
            f"{shown(self.name, 200)} has changed since its index was made ({how}): remove {self.index_file}, and it is made anew"
        )

    def _ended(self) -> "_Ended":
        status, said = self.status(PATIENCE)
        how = "closed its output" if status is None else f"ended with status {status}"
        return _Ended(
            f"{shown(self.name, 200)} {how} after {self._bytes.place} bytes, before the image that its index has{said}: run "
            f"it by hand to see why, or remove its index {self.index_file} if the shard has changed"
        )


class _Ended(MgenError):
    """The command has ended."""
