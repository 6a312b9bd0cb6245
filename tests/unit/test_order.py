"""The order of a training's images: every image once an epoch, any batch by itself, shards one after another."""

import pytest

from mgen.data.order import FullOrder, Order, ShardOrder
from mgen.utils.errors import MgenError

SHARDS = [range(0, 10), range(10, 17), range(17, 30), range(30, 31)]
STEPS, BATCH = 12, 6


def rows(order: Order) -> list[list[int]]:
    return [[order.index(step, row) for row in range(BATCH)] for step in range(STEPS)]


def test_the_full_order_is_the_one_of_earlier_runs() -> None:
    """Runs of earlier versions resume with these images."""
    order = FullOrder(31, batch_size=BATCH, seed=3)
    assert rows(order)[:2] == [[7, 3, 19, 12, 4, 11], [30, 9, 22, 25, 18, 23]]
    assert sorted(sum(rows(order), [])[:31]) == list(range(31))


@pytest.mark.parametrize("streams", [1, 2, 3, 6])
@pytest.mark.parametrize("buffer", [1, 4, 13, 1000])
def test_shards_are_read_one_after_another_and_every_image_comes_once_an_epoch(streams: int, buffer: int) -> None:
    def make() -> ShardOrder:
        return ShardOrder(SHARDS, batch_size=BATCH, seed=3, buffer=buffer, streams=streams)

    order = make()
    found = rows(order)
    for step in (7, 2, 11, 0):  # any batch by itself
        again = make()
        assert [again.index(step, row) for row in range(BATCH)] == found[step]
    size, epoch = BATCH // streams, list[int]()
    for stream in range(streams):
        own = [image for batch in found for image in batch[stream * size : (stream + 1) * size]]
        length = order.bounds[stream + 1] - order.bounds[stream]
        epoch += own[:length]
        window, at = order.place(0, stream * size)[0], 0
        while at < length:  # windows are what the spans say, each span in one shard, in the order of the shards
            spans = order.spans(window)
            images = [image for span in spans for image in span]
            assert len(images) <= order.window_size and sorted(own[at : at + len(images)]) == sorted(images)
            assert all(any(span.start in shard and span.stop - 1 in shard for shard in SHARDS) for span in spans)
            at, window = at + len(images), order.following(window)
        assert at == length and (window.epoch, window.number) == (1, 0)
    assert sorted(epoch) == list(range(31))
    if buffer == 1 and streams == 1:  # no shuffling: shards stand whole, in a random order
        starts = [image for image in epoch if image in (0, 10, 17, 30)]
        assert epoch == [i for start in starts for i in next(s for s in SHARDS if s.start == start)]
        assert starts != [0, 10, 17, 30]
    if buffer == 1000:
        assert found[0] != sorted(found[0])


def test_streams_must_divide_the_batch() -> None:
    with pytest.raises(MgenError, match=r"data\.streams is 4: it must divide batch_size 6"):
        ShardOrder(SHARDS, batch_size=6, seed=0, buffer=10, streams=4)
    with pytest.raises(MgenError, match="there are 31 images"):
        ShardOrder(SHARDS, batch_size=64, seed=0, buffer=10, streams=32)
