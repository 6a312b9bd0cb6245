"""Who writes which shards of a cache: the processes of a launch, or independent ones that have been given a part each."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from mgen.data.cache_format import CacheIndex, shard_path
from mgen.utils.errors import MgenError

EVERY = 1.0  # seconds between two looks at what other processes have written


@dataclass(frozen=True, kw_only=True)
class Writers:
    """The processes that write a cache together.

    Args:
        rank, world: number of this process, and of all that were launched together. wait: their barrier.
        agree: the list of flags that the first of them has, in all of them.
        part: (k, n) with 1 ≤ k ≤ n: of n independent commands this is the k-th.
    """

    rank: int = 0
    world: int = 1
    wait: Callable[[], object] = lambda: None
    agree: Callable[[list[bool]], list[bool]] = lambda flags: flags
    part: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        number, parts = self.part
        if not 1 <= number <= parts:
            raise MgenError(f"part {number}/{parts}: expected K/N with 1 ≤ K ≤ N")

    def of_part(self, shards: Sequence[int]) -> list[int]:
        """Those of these shards that are of this command's part: every n-th, whatever is there already."""
        number, parts = self.part
        return [shard for shard in shards if shard % parts == number - 1]

    def own(self, shards: Sequence[int]) -> list[int]:
        """Those of these shards that this process takes; `shards` must be the same in all processes."""
        return list(shards[self.rank :: self.world])


ALONE = Writers()


class SharedBar:
    """A progress bar of the images of all processes: own ones when they are done, those of others when their shards are there.

    Args:
        shards: all that are to be counted. others: those that other processes are writing. shown: whether this process shows the bar.
    """

    def __init__(
        self,
        folder: Path,
        index: CacheIndex,
        shards: Sequence[int],
        missing: Sequence[int],
        others: Sequence[int],
        *,
        shown: bool,
    ) -> None:
        def images(some: Sequence[int]) -> int:
            return sum(len(index.rows(shard)) for shard in some)

        self.folder, self.index, self.others = folder, index, set(others)
        total = images(shards)
        self.bar = tqdm(total=total, initial=total - images(missing), unit="img", desc="tokenizing", disable=not shown)
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._watch = threading.Thread(target=self._look_around, daemon=True) if shown and others else None

    def update(self, images: int) -> None:
        """Count images of this process."""
        with self._lock:
            self.bar.update(images)

    def count_others(self) -> None:
        """Count the shards that other processes have completed since the last look."""
        for shard in sorted(self.others):
            if shard_path(self.folder, shard).exists():
                self.others.discard(shard)
                self.update(len(self.index.rows(shard)))

    def _look_around(self) -> None:
        while not self._stop.wait(EVERY):
            self.count_others()

    def __enter__(self) -> "SharedBar":
        if self._watch is not None:
            self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._watch is not None:
            self._watch.join()
            if kind is None:
                self.count_others()
        self.bar.close()
