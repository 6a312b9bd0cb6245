"""Data sources and token caches."""

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mgen.data import (
    FashionMNIST,
    ImageFolder,
    TokenCache,
    center_crop,
    find_fashion_mnist,
    load_image,
    write_cache,
)
from mgen.utils.errors import MgenError
from tests.helpers import tiny_tokenizer, write_idx


def test_fashion_mnist_from_idx_files(tmp_path: Path) -> None:
    data = FashionMNIST(root=write_idx(tmp_path), split="train")
    batch = data.__getitems__([0, 5])
    assert batch["image"].shape == (2, 1, 32, 32) and batch["label"].tolist() == [0, 2]
    assert batch["image"].min() == -1 and batch["image"][0, 0, :2].max() == -1  # padded by two
    assert len(FashionMNIST(root=tmp_path, split="test")) == 48


def test_damaged_or_missing_idx_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(MgenError, match="no such folder"):
        find_fashion_mnist(tmp_path / "nowhere")
    with pytest.raises(MgenError, match="lacks some of"):
        find_fashion_mnist(tmp_path)
    file = write_idx(tmp_path) / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(MgenError, match="cannot read"):
        FashionMNIST(root=tmp_path)
    with pytest.raises(MgenError, match="train, test"):
        FashionMNIST(root=tmp_path, split="valid")


@pytest.mark.parametrize("size", [(100, 60), (64, 64), (33, 200), (512, 300)])
def test_center_crop_takes_the_center(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "red")
    w, h = size
    image.paste(
        "blue", (w // 2 - min(w, h) // 4, h // 2 - min(w, h) // 4, w // 2 + min(w, h) // 4, h // 2 + min(w, h) // 4)
    )
    out = center_crop(image, 32)
    assert out.size == (32, 32)
    assert out.getpixel((16, 16)) == (0, 0, 255) and out.getpixel((1, 1)) == (255, 0, 0)


def test_image_folder_labels_are_subfolders(tmp_path: Path) -> None:
    for name in ("cat", "ant"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (50, 40), "white").save(tmp_path / name / "x.png")
    data = ImageFolder(root=tmp_path, image_size=16)
    assert data.class_names == ("ant", "cat") and data.labels.tolist() == [0, 1]
    assert data.__getitems__([1])["image"].shape == (1, 3, 16, 16)


def test_transparency_is_laid_on_white_and_gray_is_converted(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("L", (8, 8), 77).save(tmp_path / "gray.png")
    assert load_image(tmp_path / "clear.png").unique().tolist() == [255]
    assert load_image(tmp_path / "gray.png").shape == (3, 8, 8)
    assert load_image(tmp_path / "gray.png", channels=1)[0, 0, 0] == 77


def test_sixteen_bits_are_rounded_to_eight_and_floats_raise_an_error(tmp_path: Path) -> None:
    deep = np.array([[0, 128, 129, 257, 30000, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert load_image(tmp_path / "deep.png", channels=1).flatten().tolist() == [0, 0, 1, 1, 117, 255]
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(MgenError, match="floating-point"):
        load_image(tmp_path / "float.tif")


@pytest.mark.parametrize("flips", [False, True])
def test_cache_holds_what_the_tokenizer_says(tmp_path: Path, flips: bool) -> None:
    data, tokenizer = FashionMNIST(root=write_idx(tmp_path / "idx")), tiny_tokenizer()
    write_cache(data, tokenizer, tmp_path / "cache", flips=flips, shard_size=40, batch_size=16, progress=False)
    cache = TokenCache(tmp_path / "cache", fingerprint=tokenizer.fingerprint())
    batch = data.__getitems__([3, 50, 95])
    stored = cache.__getitems__([3, 50, 95])
    with torch.inference_mode():
        assert torch.equal(stored["tokens"][:, 0], tokenizer.encode(batch["image"]))
        if flips:
            assert torch.equal(stored["tokens"][:, 1], tokenizer.encode(batch["image"].flip(-1)))
    assert torch.equal(stored["label"], batch["label"]) and len(cache) == 96
    assert cache.spec == tokenizer.spec


def test_cache_goes_on_where_it_stopped_and_refuses_another_tokenizer(tmp_path: Path) -> None:
    data, tokenizer = FashionMNIST(root=write_idx(tmp_path / "idx")), tiny_tokenizer()
    out = write_cache(data, tokenizer, tmp_path / "cache", shard_size=40, progress=False)
    kept = out / "shard-00000.safetensors"
    stamp, expected = kept.stat().st_mtime_ns, TokenCache(out).__getitems__(range(96))["tokens"].clone()
    (out / "shard-00002.safetensors").unlink()
    with pytest.raises(MgenError, match="no such file"):
        TokenCache(out)
    write_cache(data, tokenizer, out, shard_size=40, progress=False)
    assert kept.stat().st_mtime_ns == stamp
    assert torch.equal(TokenCache(out).__getitems__(range(96))["tokens"], expected)
    other = tiny_tokenizer(seed=9)
    with pytest.raises(MgenError, match="another tokenizer"):
        TokenCache(out, fingerprint=other.fingerprint())
    with pytest.raises(MgenError, match="already holds a cache"):
        write_cache(data, other, out, shard_size=40, progress=False)


def test_a_cache_that_is_larger_than_the_memory_is_read_without_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice changes what is fetched, and nothing of what is read."""
    data = FashionMNIST(root=write_idx(tmp_path / "idx"))
    cache = TokenCache(write_cache(data, tiny_tokenizer(), tmp_path / "cache", shard_size=40, progress=False))
    before, advised = cache.__getitems__(range(96))["tokens"], list[int]()
    real = sys.modules["mgen.data.cache"].advise
    monkeypatch.setattr(
        "mgen.data.cache.advise", lambda tensors, advice: real(tensors, advised.append(advice) or advice)
    )
    cache.expect_random()
    assert not advised
    monkeypatch.setattr("mgen.data.cache.available_memory", lambda: 1000)
    cache.expect_random()
    cache.read_ahead(range(45, 80))
    assert advised == [mmap.MADV_RANDOM] and torch.equal(cache.__getitems__(range(96))["tokens"], before)


def test_a_new_decoder_leaves_the_fingerprint() -> None:
    tokenizer = tiny_tokenizer()
    before = tokenizer.fingerprint()
    with torch.no_grad():
        tokenizer.decoder.conv_out.bias.add_(1)
    assert tokenizer.fingerprint() == before
    with torch.no_grad():
        tokenizer.quantize.embedding.weight.add_(1)
    assert tokenizer.fingerprint() != before
