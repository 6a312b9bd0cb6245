"""Animations: a frame per step, empty cells where nothing is known, held at the end; the same images as the run's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mgen.pipelines.animation import EDGE, EMPTY, HOLD, LEAST, MOST_FRAMES, Film, animate, covered
from mgen.utils.grids import MARGIN, sized
from tests.helpers import tiny_pipeline

TOP = MARGIN + 15 + 4 + 2 * MARGIN  # below the title


def empty(frame: Image.Image) -> int:
    """Pixels of tokens that are not known."""
    pixels = np.asarray(frame.convert("RGB"))
    return int(sum((pixels == color).all(-1).sum() for color in (EMPTY, EDGE)))


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_tokens_appear_step_by_step_and_the_last_frame_is_held(suffix: str, tmp_path: Path) -> None:
    pipe, labels = tiny_pipeline(steps=4, order="random"), [0, 1, 2, 0]
    assert animate(pipe, labels, tmp_path / f"a{suffix}", seed=3) == 5
    frames, times = [], []
    with Image.open(tmp_path / f"a{suffix}") as film:
        for i in range(film.n_frames):
            film.seek(i)
            frames.append(film.convert("RGB"))
            film.load()  # of a WebP, only then is its duration known
            times.append(film.info["duration"])
    assert len(frames) == 5 and times[-1] == HOLD and set(times[:-1]) == {250}
    if suffix == ".gif":  # whose colors are approximate
        return
    counts = [empty(frame) for frame in frames]
    assert counts[0] == 4 * LEAST**2 and counts[-1] == 0 and sorted(counts, reverse=True) == counts
    assert all(a > b for a, b in zip(counts, counts[1:]))
    images = pipe(labels, seed=3, output_type="uint8", progress=False).images
    for i, image in enumerate(images):
        x, y = MARGIN + i % 2 * (LEAST + MARGIN), TOP + i // 2 * (LEAST + MARGIN)
        y += (i // 2) * (15 + 2 if pipe.class_names else 0)
        tile = sized(Image.fromarray(image[0].numpy()).convert("RGB"), least=LEAST)
        found = np.asarray(frames[-1])
        assert np.array_equal(found[y : y + LEAST, x : x + LEAST], np.asarray(tile)), f"image {i} is not at {x}, {y}"


def test_a_grid_is_square_and_long_runs_are_thinned() -> None:
    assert [Film(tiny_pipeline(), [0] * n).columns for n in (1, 3, 9, 10, 16)] == [1, 2, 3, 4, 4]
    pipe = tiny_pipeline(steps=64)
    film = Film(pipe, [0])
    import mgen.pipelines.animation as animation

    usual, animation.MOST_FRAMES = MOST_FRAMES, 10
    try:
        pipe([0], progress=False, output_type="tokens", callback=film)
    finally:
        animation.MOST_FRAMES = usual
    assert 10 <= len(film.frames) <= 12 and empty(film.frames[-1]) == 0


def test_cells_that_are_not_known_are_covered_exactly() -> None:
    image = Image.new("RGB", (32, 32), (9, 9, 9))
    known = torch.tensor([[True, False], [False, True]]).numpy()
    pixels = np.asarray(covered(image, known))
    assert (pixels[:16, :16] == 9).all() and (pixels[16:, 16:] == 9).all()
    assert (pixels[1:15, 17:] == EMPTY).all() and (pixels[:16, 16] == EDGE).all() and (pixels[16, :16] == EDGE).all()


def test_the_animation_goes_into_the_folder_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mgen.cli import main
    from mgen.evaluation.folder_source import from_folder

    tiny_pipeline().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    usual = ["sample", "--model", "model", "--num-images", "3", "--steps", "2", "--out", "out"]
    assert (
        main([*usual, "--animation"]) == 0 and main([*usual, "--animation", "b.webp", "--animation-images", "1"]) == 0
    )
    assert main([*usual, "--animation", "elsewhere/c.png"]) == 0
    found = sorted(p.name for p in (tmp_path / "out").iterdir() if "class" not in p.name)
    assert found == ["animation.gif", "b.webp", "grid.png", "run.json"]
    assert Image.open("elsewhere/c.png").n_frames == 3  # type: ignore[attr-defined]
    with Image.open("out/animation.gif") as three, Image.open("out/b.webp") as one:
        assert three.width > one.width
    assert from_folder(tmp_path / "out").count == 3, "an animation is no image of the run"
