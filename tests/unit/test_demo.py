"""The page of mgen demo without a browser: controls ⇄ samplers, streams of frames, edits, comparisons, downloads, the server's checks."""

import base64
import io
import shlex
import socket
import zipfile
from collections.abc import Generator
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mgen.cli import main
from mgen.demo import downloads, markup, server
from mgen.demo.controls import controls
from mgen.demo.frames import frame
from mgen.demo.models import IN_TURN, Models, about, class_choices, classes_of
from mgen.demo.runs import Costs, Request, Result, Stopped, differing, edit, sample, unchanged
from mgen.demo.settings import CONSTANT, NAMES, REDRAW, SAVED, sampler_of, shown_values
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.pipelines.pixels import to_uint8
from mgen.pipelines.resample import resample
from mgen.samplers import ParallelSampler
from mgen.utils.errors import MgenError
from tests.helpers import (
    tiny_continuous,
    tiny_generator,
    tiny_himar,
    tiny_hita,
    tiny_kl,
    tiny_net,
    tiny_pipeline,
    tiny_tokenizer,
    tiny_tokens,
)


def causal() -> MaskedPipeline:
    net = tiny_net("causal", tokens=tiny_tokens(side=8, vocab_size=64))
    return MaskedPipeline(tokenizer=tiny_tokenizer(), transformer=net, sampler=ParallelSampler.suited(net))


def cascade() -> MaskedPipeline:
    net = tiny_himar()
    settings = {
        "steps": 4,
        "head": {"steps": 4, "clip": 4.0},
        "first_stage": {"steps": 3, "head": {"steps": 4, "clip": 4.0}},
    }
    return MaskedPipeline(tokenizer=tiny_kl(), transformer=net, sampler=ParallelSampler.suited(net, settings))


def unconditional() -> MaskedPipeline:
    net = tiny_generator(classes={"count": 0})
    return MaskedPipeline(tokenizer=tiny_tokenizer(), transformer=net, sampler=ParallelSampler(steps=4))


def global_first() -> MaskedPipeline:
    tokens = tiny_tokens(side=8, vocab_size=32, global_tokens=6)
    net = tiny_net("bert", tokens=tokens)
    return MaskedPipeline(tokenizer=tiny_hita(), transformer=net, sampler=ParallelSampler(steps=6))


def windows() -> MaskedPipeline:
    net = tiny_generator(windows={"side": 2})
    return MaskedPipeline(tokenizer=tiny_tokenizer(), transformer=net, sampler=ParallelSampler(steps=4))


KINDS = {
    "ids": tiny_pipeline,
    "vectors": tiny_continuous,
    "causal": causal,
    "cascade": cascade,
    "unconditional": unconditional,
    "global": global_first,
}
MASKED = [kind for kind in KINDS if kind != "causal"]


def finished(run: Generator[Any, None, Result]) -> tuple[list[Any], Result]:
    """The frames of a run, and its result."""
    frames = []
    try:
        while True:
            frames.append(next(run))
    except StopIteration as end:
        return frames, end.value


def sampled(pipe: MaskedPipeline, count: int = 2, seed: int = 3) -> Result:
    classes = tuple(classes_of(pipe, IN_TURN, count))
    return finished(sample(pipe, Request(model="m", classes=classes, seed=seed, sampler=pipe.sampler), Event()))[1]


# -- controls ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_controls_that_nobody_touched_leave_the_saved_sampler(kind: str) -> None:
    pipe = KINDS[kind]()
    own = controls(pipe)
    assert set(own) == set(NAMES)
    values = {name: control.value for name, control in own.items()}
    assert sampler_of(pipe.sampler, values) is pipe.sampler
    # A hidden slider sends its least value in the place of none.
    hidden = values | {"first_steps": values["first_steps"] or 1}
    assert sampler_of(pipe.sampler, hidden).settings == pipe.sampler.settings


def test_controls_are_those_that_the_model_can_use() -> None:
    ids, vectors, chain, two = (controls(make()) for make in (tiny_pipeline, tiny_continuous, causal, cascade))
    assert ids["order"].choices[:3] == ("confidence", REDRAW, "remasking") and not ids["chain"].visible
    assert "confidence" not in vectors["order"].choices and not vectors["confidence_temperature"].visible
    assert vectors["chain"].visible and not vectors["top_k"].visible and ids["top_k"].visible
    assert not chain["steps"].enabled and not chain["order"].enabled and not chain["cached"].visible
    assert two["first_steps"].visible and not ids["first_steps"].visible
    assert controls(global_first())["global_steps"].visible
    enat = MaskedPipeline(
        tokenizer=tiny_tokenizer(),
        transformer=tiny_net("enat", tokens=tiny_tokens(side=8, vocab_size=64)),
        sampler=ParallelSampler(),
    )
    assert controls(enat)["features"].visible and not ids["features"].visible


def test_every_choice_of_a_list_works() -> None:
    for make in (tiny_pipeline, tiny_continuous):
        pipe = make()
        own = controls(pipe)
        values = {name: control.value for name, control in own.items()}
        for name in ("order", "schedule", "guidance_curve"):
            for choice in own[name].choices:
                sampler_of(pipe.sampler, values | {name: choice}).check(pipe.transformer)


def test_a_flow_has_steps_and_no_chain() -> None:
    net = tiny_net("mae", tokens=tiny_tokens("vector", side=8), head={"type": "flow", "width": 32, "depth": 1})
    sampler = ParallelSampler.suited(net, {"steps": 4, "head": {"steps": 6}})
    own = controls(MaskedPipeline(tokenizer=tiny_kl(), transformer=net, sampler=sampler))
    assert own["head_steps"].visible and own["head_steps"].value == 6 and not own["chain"].visible
    made = sampler_of(sampler, {name: control.value for name, control in own.items()} | {"head_steps": 3})
    assert made.settings["head"] == {"steps": 3}


def test_a_changed_strength_keeps_the_interval_of_a_guidance() -> None:
    saved = ParallelSampler(steps=8, guidance={"kind": "constant", "end": 4.0, "interval": [0.1, 0.3]})
    made = sampler_of(saved, shown_values(saved) | {"guidance": 3.0})
    assert made.settings["guidance"] == {"kind": "constant", "end": 3.0, "interval": [0.1, 0.3]}


def test_changed_controls_change_their_setting_alone() -> None:
    curve = {"kind": "linear", "start": 1.0, "end": 3.5, "at": "tokens", "left": 1}
    saved = ParallelSampler(steps=8, guidance=curve, temperature=[1.0] * 8, reuse={"cached": 1, "prefix": False})
    values = shown_values(saved)
    assert values["guidance_curve"] == "linear" and values["guidance"] == 3.5 and values["temperature"] is None

    def changed(**new: Any) -> dict[str, Any]:
        made = sampler_of(saved, values | new).settings
        return {key: value for key, value in made.items() if value != saved.settings[key]}

    assert changed(guidance=2.0) == {"guidance": {**curve, "end": 2.0}}
    assert changed(guidance_curve=CONSTANT) == {"guidance": 3.5}
    assert changed(guidance_curve="half-linear") == {"guidance": {"kind": "half-linear", "start": 1.0, "end": 3.5}}
    assert changed(order=REDRAW) == {"order": {"name": "confidence", "redraw": True}}
    assert changed(full_first=2) == {"reuse": {"cached": 1, "prefix": False, "full_first": 2}}
    assert changed(confidence_temperature=1.0)["confidence_temperature"]["start"] == 1.0
    assert changed(top_k=5) == {"head": {"top_k": 5}}
    with pytest.raises(MgenError, match="temperature lists 8 values for 12 steps"):
        changed(steps=12)
    listed = ParallelSampler(steps=2, guidance=[1.0, 2.0])
    assert shown_values(listed)["guidance_curve"] == SAVED


# -- sampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_shows_every_step_and_ends_with_the_pipelines_images(kind: str) -> None:
    pipe = KINDS[kind]()
    classes = tuple(classes_of(pipe, IN_TURN, 3))
    request = Request(model="m", classes=classes, seed=5, sampler=pipe.sampler)
    frames, result = finished(sample(pipe, request, Event()))
    expected = pipe(list(classes), seed=5, output_type="uint8", progress=False)
    assert torch.equal(result.images, expected.images)
    stage = pipe.sampler.first_stage
    assert len(frames) == pipe.sampler.config.steps + (stage.config.steps if stage else 0) == len(result.frames)
    own = [frame.known for frame in frames if not frame.first_stage]
    assert own == sorted(own) and own[-1] == pipe.transformer.tokens.length
    assert all(picture.startswith("data:image/png;base64,") for frame in frames for picture in frame.pictures)
    assert frames[0].pictures != frames[-1].pictures and len(frames[0].pictures) == 3


def test_unknown_tokens_are_gray_until_something_is_drawn_there() -> None:
    pipe = tiny_pipeline(order="raster", steps=8, schedule="linear")
    seen: list[np.ndarray[Any, Any]] = []

    def callback(step: Any) -> None:
        picture = frame(pipe, step).pictures[0]
        seen.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.split(",")[1])))))

    pipe([0], output_type="tokens", progress=False, callback=callback)
    first = seen[0]
    assert (first[4:] == 127).all() and not (first[:4] == 127).all()  # one row of eight tokens, four pixels high
    assert not (seen[-1] == 127).all(axis=1).any()


def test_a_run_can_be_stopped() -> None:
    pipe, stop = tiny_pipeline(steps=8), Event()
    run = sample(pipe, Request(model="m", classes=(0,), seed=0, sampler=pipe.sampler), stop)
    next(run)
    stop.set()
    with pytest.raises(Stopped):
        finished(run)


def test_errors_of_a_run_come_out_of_its_thread() -> None:
    pipe = tiny_pipeline()
    request = Request(model="m", classes=(7,), seed=0, sampler=pipe.sampler)
    with pytest.raises(MgenError, match="out of range"):
        finished(sample(pipe, request, Event()))


# -- editing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MASKED)
def test_tokens_that_are_not_masked_stay_exactly(kind: str) -> None:
    pipe = KINDS[kind]()
    result = sampled(pipe)
    masked = [0, 1, 8, 9, 27]
    chosen = None if kind == "unconditional" else 2
    frames, new = finished(edit(pipe, result, 1, masked, seed=9, stop=Event(), chosen=chosen))
    assert len(frames) >= pipe.sampler.config.steps
    given = [place for place in range(64) if place not in masked]
    old, made = (r.tokens[:, -64:] for r in (result, new))
    assert torch.equal(old[0], made[0]) and torch.equal(old[1, given], made[1, given])
    assert not torch.equal(old[1, masked], made[1, masked])
    assert unchanged(result, new, 1, masked) == len(given)
    with torch.inference_mode():
        assert torch.equal(new.images[1:], to_uint8(pipe.decode(new.tokens[1:])))
    assert torch.equal(result.images[0], new.images[0])
    assert new.classes[1] == (result.classes[1] if chosen is None else 2) and new.edited == {1}
    assert new.before is result and result.edited == frozenset()
    with pytest.raises(MgenError, match="no token is masked"):
        finished(edit(pipe, result, 0, [], seed=0, stop=Event()))
    with pytest.raises(MgenError, match="places"):
        finished(edit(pipe, result, 0, [64], seed=0, stop=Event()))


def test_whole_windows_are_sampled_again() -> None:
    pipe = windows()
    result = sampled(pipe)
    _, new = finished(edit(pipe, result, 0, [0], seed=9, stop=Event()))
    changed = (result.tokens[0] != new.tokens[0]).nonzero().flatten().tolist()
    assert changed and set(changed) <= {0, 1, 8, 9}


def test_causal_models_do_not_edit_and_say_why() -> None:
    pipe = causal()
    result = sampled(pipe)
    with pytest.raises(MgenError, match="one token after the other"):
        finished(edit(pipe, result, 0, [3], seed=0, stop=Event()))


def test_resampling_checks_what_it_is_given() -> None:
    pipe = tiny_pipeline()
    tokens = pipe([0], output_type="tokens", progress=False).tokens
    some = torch.zeros(1, 64, dtype=torch.bool)
    some[0, 3] = True
    for masked in (some[:, :5], some.long(), None, some.expand(2, 64)):
        with pytest.raises(MgenError, match="masked is .* bool mask"):
            resample(pipe, tokens, masked, [0])  # type: ignore[arg-type]
    with pytest.raises(MgenError, match="masked is"):
        resample(pipe, None, some, [0])  # type: ignore[arg-type]
    made, images = resample(pipe, tokens, some, ["0001"], seed=4)
    assert images.dtype == torch.uint8 and (made != tokens).sum() <= 1


# -- comparing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_pipeline, tiny_continuous])
def test_two_settings_start_from_the_same_noise(make: Any) -> None:
    pipe = make()
    one, same = sampled(pipe), sampled(pipe)
    assert differing(one, same) == [0, 0]
    pipe.sampler = pipe.sampler.override(guidance=4.0)
    other = sampled(pipe)
    assert all(0 < n <= 64 for n in differing(one, other))
    table = markup.comparison(one, other, (0.5, None))
    assert "<code>guidance</code>" in table and f"{sum(differing(one, other))} of 128" in table and "0.5" in table
    assert "are the same" in markup.comparison(one, same, (None, None))


def test_operations_are_counted_once() -> None:
    pipe, costs = tiny_pipeline(), Costs()
    request = Request(model="m", classes=(0,), seed=0, sampler=pipe.sampler)
    first = costs.tflops(pipe, request)
    pipe.transformer = tiny_net("bert", tokens=tiny_tokens(side=8, vocab_size=64))
    assert first and costs.tflops(pipe, request) == first


# -- models, texts, downloads ----------------------------------------------------------------------------------------------


def test_models_are_the_given_and_the_embedded_ones(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "mine")
    mine = str(tmp_path / "mine")
    models = Models([mine], device="cpu")
    assert models.names == [mine, "fmnist-maskgit", "fmnist-mar"]
    assert models.get(mine) is models.get(mine)
    with pytest.raises(MgenError, match="no model 'nothing'"):
        Models(["nothing"], device="cpu")
    tiny_pipeline().save_pretrained(tmp_path / "hidden")
    with pytest.raises(MgenError, match="choose one from the list"):
        models.get(str(tmp_path / "hidden"))


def test_a_line_tells_what_a_model_is() -> None:
    assert about(tiny_pipeline()).startswith("8×8 ids of 64 · 32×32 pixels · 3 classes · trunk uvit")
    assert "two stages" in about(cascade()) and "no classes" in about(unconditional())
    assert "+ 6 global" in about(global_first()) and "vectors of 4 numbers" in about(tiny_continuous())


def test_classes_by_name_and_in_turn() -> None:
    pipe = tiny_pipeline()
    named = MaskedPipeline(
        tokenizer=pipe.tokenizer,
        transformer=pipe.transformer,
        sampler=pipe.sampler,
        class_names=["crane", "ox", "crane"],
    )
    assert class_choices(named) == [("all classes in turn", IN_TURN), ("crane (0)", 0), ("ox", 1), ("crane (2)", 2)]
    assert classes_of(named, 2, 2) == [2, 2] and classes_of(named, IN_TURN, 4) == [0, 1, 2, 0]
    assert classes_of(unconditional(), None, 2) == [None, None] and class_choices(unconditional()) == []


def test_texts_on_the_page_are_escaped() -> None:
    told = [
        markup.board(["data:,"], ["<b>${x}</b>"], 32),
        markup.message("<script>", error=True),
        markup.facts(["<i>"]),
        markup.editor("data:,", 32, (2, 2), [1], "<u>")["html"],
    ]
    assert not any(tag in text for text in told for tag in ("<b>", "<script>", "<i>", "<u>"))
    assert markup.shown_side(32, 100) == 96 and markup.shown_side(256, 128) == 128


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_makes_the_same_images_again(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    KINDS[kind]().save_pretrained("mine")
    pipe = Models(["mine"], device="cpu").get("mine")
    values = {name: control.value for name, control in controls(pipe).items()}
    changed = {} if kind == "causal" else {"steps": 5, "schedule": "arccos"}
    sampler = sampler_of(pipe.sampler, values | changed)
    chosen = classes_of(pipe, None if kind == "unconditional" else 1, 3)
    result = finished(sample(pipe, Request(model="mine", classes=tuple(chosen), seed=7, sampler=sampler), Event()))[1]
    Path(downloads.RECIPE).write_text(downloads.recipe(pipe, result.request), encoding="utf-8")
    command = yaml.safe_load(Path(downloads.RECIPE).read_text())["run"]
    assert main([*shlex.split(command)[1:], "--device", "cpu"]) == 0
    with zipfile.ZipFile(io.BytesIO(downloads.images_zip(result))) as archive:
        names = archive.namelist()
        assert len(names) == 3
        for name in names:
            page, again = Image.open(io.BytesIO(archive.read(name))), Image.open(Path("samples") / name)
            assert np.array_equal(np.asarray(page), np.asarray(again)), name
    assert Image.open(io.BytesIO(downloads.grid_png(pipe, result))).width > 96


def test_the_command_of_a_recipe_names_classes_as_mgen_sample_reads_them() -> None:
    pipe = tiny_pipeline()
    names = ["a, b", "7", "golden retriever"]
    named = MaskedPipeline(
        tokenizer=pipe.tokenizer, transformer=pipe.transformer, sampler=pipe.sampler, class_names=names
    )

    def classes(*ids: int) -> list[str]:
        return shlex.split(downloads.command(named, Request(model="m", classes=ids, seed=0, sampler=pipe.sampler)))

    assert classes(2, 2)[6:8] == ["--classes", "golden retriever"]
    assert classes(0, 1, 0)[6:8] == ["--classes", "id:0,7"]
    assert "--classes" not in classes(0, 1, 2, 0)


# -- the server --------------------------------------------------------------------------------------------------------


def test_hosts_are_addresses() -> None:
    assert server.check_host("localhost") == "127.0.0.1" and server.check_host("::1") == "::1"
    for host in ("nobody", "1.2.3", "²", "http://127.0.0.1", "127.0.0.1:80"):
        with pytest.raises(MgenError, match="is no address"):
            server.check_host(host)


def test_a_port_in_use_raises_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(MgenError, match="in use.*choose another port"):
            server.listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(MgenError, match="cannot listen on --host 192.0.2.1"):
        server.listen("192.0.2.1", 47861)


def test_without_gradio_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    assert main(["demo", "--device", "cpu"]) == 2
    assert capsys.readouterr().err.strip().endswith('pip install "mgen[demo]"')


def test_only_the_page_itself_needs_gradio() -> None:
    folder = Path(server.__file__).parent
    needs = {file.stem for file in folder.glob("*.py") if "import gradio" in file.read_text()}
    assert needs == {"page", "panel", "session", "sample_tab", "edit_tab", "compare_tab", "server"}
