"""Attention to keys and values with room behind: the numbers of attention to the filled ones alone, in every form."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mgen.nn import attention, causal, kernels
from mgen.nn.attention import attend_filled
from mgen.nn.cache import KVCache
from mgen.nn.causal import ROOM, CausalRows, LiveKV

BF16 = torch.bfloat16


def rows(first: int, stop: int) -> CausalRows:
    return CausalRows(first, stop, None, torch.zeros(stop - first, 2, 2))


def random(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(shape).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("filled", [1, 7, 20])
def test_the_room_is_not_read(filled: int, amx: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "AMX", amx)
    torch.manual_seed(0)
    q, k, v = random(3, 2, 4, 8, dtype=dtype), random(3, 2, 20, 8, dtype=dtype), random(3, 2, 20, 8, dtype=dtype)
    k[:, :, filled:], v[:, :, filled:] = 100, 50
    expected = attention.attend(q.double(), k[:, :, :filled].double(), v[:, :, :filled].double())
    tolerance = 0.03 if dtype == BF16 else 1e-5
    torch.testing.assert_close(attend_filled(q, k, v, filled).double(), expected, atol=tolerance, rtol=tolerance)


def test_pieces_of_many_images_hide_the_room_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "AMX", False)
    torch.manual_seed(1)
    q, k, v = random(4, 2, 1, 8), random(4, 2, 12, 8), random(4, 2, 12, 8)
    whole = attend_filled(q, k, v, 5)
    monkeypatch.setattr(attention, "PIECE", 8)
    assert torch.equal(attend_filled(q, k, v, 5), whole)


def test_many_scores_are_left_to_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "AMX", False)
    torch.manual_seed(1)
    q, k, v = random(2, 2, 3, 8), random(2, 2, 12, 8), random(2, 2, 12, 8)
    explicit = attend_filled(q, k, v, 5)
    monkeypatch.setattr(attention, "LARGEST", 2 * 3 * 5 - 1)
    fused = attend_filled(q, k, v, 5)
    assert torch.equal(fused, F.scaled_dot_product_attention(q, k[:, :, :5], v[:, :, :5]))
    torch.testing.assert_close(explicit, fused, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("slow", [False, True])
def test_kept_keys_lie_in_one_piece_where_products_would_copy_them(slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "AMX", not slow)
    layer, kept = attention.Attention(16, 2).to(BF16).eval(), KVCache()
    with torch.no_grad():
        layer(random(3, 5, 16), kept=kept)
    assert kept.k.is_contiguous() == kept.v.is_contiguous() == slow


@pytest.mark.parametrize("slow", [False, True])
def test_keys_and_values_grow_where_their_room_is_read(slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "AMX", not slow)
    torch.manual_seed(2)
    length, new = 2 * ROOM + 5, [random(2, 3, 1, 4) for _ in range(2 * ROOM + 5)]
    kept, sizes, memory = LiveKV(length, rows=2), set(), set()
    for i, row in enumerate(new):
        k, v = kept.add(row, -row, rows(i, i + 1))
        joined = torch.cat(new[: i + 1], dim=2)
        assert torch.equal(k, joined) and torch.equal(v, -joined) and kept.k is not None
        sizes.add(kept.k.shape[2])
        memory.add(kept.k.untyped_storage().data_ptr())
        out, expected = kept.attend(row, i + 1), attention.attend(row, joined, -joined)
        torch.testing.assert_close(out, expected, atol=0.02, rtol=0.02)
    assert sizes == ({ROOM, 2 * ROOM, length} if slow else {length}) and len(memory) == 1


def test_a_grown_cache_keeps_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "AMX", False)
    kept, first = LiveKV(3 * ROOM, rows=4), random(4, 1, ROOM - 1, 4)
    kept.add(first, first, rows(0, ROOM - 1))
    more = random(2, 1, 3, 4)  # a smaller batch, over the end of the room
    k, _ = kept.add(more, more, rows(ROOM - 1, ROOM + 2))
    assert kept.k is not None and kept.k.shape == (4, 1, 2 * ROOM, 4)
    assert torch.equal(k, torch.cat([first[:2], more], dim=2)) and torch.equal(kept.k[2:, :, : ROOM - 1], first[2:])
    assert not kept.k[:, :, ROOM + 2 :].any()  # what stands behind is multiplied by a probability of zero


def test_a_causal_layer_gives_the_same_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "AMX", False)
    torch.manual_seed(3)
    layer = causal.CausalAttention(16, 2).to(BF16).eval()
    x = random(2, ROOM + 3, 16)
    table = causal.rotary_table((ROOM + 3,), 8)
    with torch.no_grad():
        whole = layer(x, CausalRows(0, x.shape[1], None, table))
        kept = LiveKV(x.shape[1])
        single = [layer(x[:, i : i + 1], CausalRows(i, i + 1, None, table[i : i + 1]), kept) for i in range(x.shape[1])]
    torch.testing.assert_close(torch.cat(single, dim=1), whole, atol=0.02, rtol=0.02)
