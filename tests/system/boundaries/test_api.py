"""The Python API checks its arguments as the command line does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

import mgen
import mgen.pipelines.pretrained
from mgen.data import load_image
from mgen.pipelines.editing import box_mask, edit, outpaint_canvas, restyle
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.pipelines.resample import resample
from mgen.pipelines.saved import load_tokenizer
from mgen.samplers import ParallelSampler
from mgen.training.config import train_config
from mgen.training.loop import train
from mgen.utils.errors import MgenError
from tests.helpers import tiny_continuous, tiny_kl, tiny_pipeline, tiny_tokenizer
from tests.system.boundaries.harness import Raises, row


@pytest.fixture(scope="module")
def pipe() -> MaskedPipeline:
    made = tiny_pipeline(steps=2)
    return MaskedPipeline(made.tokenizer, made.transformer, made.sampler, class_names=["bag", "crane", "crane"])


PICTURE, MASK = torch.zeros(1, 32, 32, dtype=torch.uint8), torch.ones(32, 32, dtype=torch.bool)
PIXELS = torch.zeros(1, 1, 32, 32)
IDS, KNOWN = torch.zeros(2, 64, dtype=torch.int64), torch.ones(2, 64, dtype=torch.bool)
CALLS = [
    row("classes bool", dict(class_labels=[True]), "class ids"),
    row("class int", dict(class_labels=5), "0 … 2"),
    row("class bool", dict(class_labels=True), "class ids"),
    row("class None", dict(class_labels=None), "class_labels", "expected a list"),
    row("class str", dict(class_labels="bog"), "class_labels", "did you mean 'bag'"),
    row("class float", dict(class_labels=1.0), "class_labels", "expected a list"),
    row("classes bytes", dict(class_labels=b"bag"), "expected a list"),
    row("classes dict", dict(class_labels={0: 1}), "expected a list"),
    row("classes set", dict(class_labels={0}), "expected a list"),
    row("classes generator", dict(class_labels=(i for i in range(2))), "expected a list"),
    row("classes empty", dict(class_labels=[]), "empty"),
    row("classes float", dict(class_labels=[1.0]), "class ids"),
    row("classes nested", dict(class_labels=[[0]]), "class ids"),
    row("classes 2-d tensor", dict(class_labels=torch.zeros(1, 2, dtype=torch.int64)), "expected a list"),
    row("classes float tensor", dict(class_labels=torch.zeros(2)), "class ids"),
    row("classes bool array", dict(class_labels=np.array([True])), "class ids"),
    row("class beyond", dict(class_labels=[3]), "0 … 2"),
    row("class negative", dict(class_labels=[-1]), "0 … 2"),
    row("class 10**400", dict(class_labels=[10**400]), "0 … 2"),
    row("class endless range", dict(class_labels=range(10**12)), "class 3 is out of range"),
    row("class name unknown", dict(class_labels=["bog"]), "did you mean 'bag'"),
    row("class name twice", dict(class_labels=["crane"]), "could be class 1", "2 (crane)", "give the id"),
    row("class name empty", dict(class_labels=[""]), "bag"),
    row("class id as text", dict(class_labels=["0"]), "nor a class name"),
    row("seed str", dict(seed="1"), "seed", "whole number"),
    row("seed float", dict(seed=1.5), "seed", "whole number"),
    row("seed bool", dict(seed=True), "seed", "whole number"),
    row("seed 400 digits", dict(seed=10**400), "seed", "64 bits"),
    row("seed 5000 digits", dict(seed=10**5000), "seed", "64 bits"),
    row("indices short", dict(indices=[0]), "1 entries for 2"),
    row("indices int", dict(indices=5), "expected a list"),
    row("indices negative", dict(indices=[0, -1]), "-1"),
    row("indices str", dict(indices=["0", "1"]), "'0'"),
    row("indices 400 digits", dict(indices=[0, 10**400]), "digits"),
    row("steps 0", dict(steps=0), "steps", "at least 1"),
    row("steps 10**12", dict(steps=10**12), "steps", "at most"),
    row("steps per token", dict(steps=5000), "64 tokens", "at most 16 steps"),
    row("steps str", dict(steps="8"), "steps"),
    row("steps bool", dict(steps=True), "steps"),
    row("guidance str", dict(guidance="3"), "guidance"),
    row("guidance nan", dict(guidance=float("nan")), "guidance", "finite"),
    row("guidance set", dict(guidance={1}), "guidance"),
    row("guidance huge", dict(guidance=1e300), "guidance", "10,000"),
    row("sampler str", dict(sampler="maskgit"), "ParallelSampler"),
    row("sampler mapping", dict(sampler={"steps": 2}), "ParallelSampler"),
    row("batch_size 0", dict(batch_size=0), "batch_size", "at least 1"),
    row("batch_size -1", dict(batch_size=-1), "batch_size", "at least 1"),
    row("batch_size str", dict(batch_size="2"), "batch_size", "whole number"),
    row("batch_size float", dict(batch_size=1.5), "batch_size", "whole number"),
    row("output list", dict(output_type=["pil"]), "output_type"),
    row("output other", dict(output_type="png"), "output_type", "pil"),
    row("output None", dict(output_type=None), "output_type"),
    row("dtype other", dict(dtype="fp8"), "dtype", "bf16"),
    row("dtype torch.float64", dict(dtype=torch.float64), "dtype", "float16"),
    row("dtype list", dict(dtype=["bf16"]), "dtype", "bf16"),
    row("callback", dict(callback=5), "callback", "function"),
    row("complete", dict(complete="yes"), "complete", "true or false"),
    row("progress", dict(progress=2), "progress", "true or false"),
    row("tokens alone", dict(tokens=IDS), "go together"),
    row("known alone", dict(known=KNOWN), "go together"),
    row("tokens negative", dict(tokens=IDS - 1, known=KNOWN), "id -1", "0 … 63"),
    row("tokens beyond", dict(tokens=IDS + 64, known=KNOWN), "id 64", "0 … 63"),
    row("tokens float", dict(tokens=IDS.float(), known=KNOWN), "float32", "int64"),
    row("tokens bool", dict(tokens=IDS.bool(), known=KNOWN), "bool"),
    row("tokens list", dict(tokens=IDS.tolist(), known=KNOWN), "tensor"),
    row("tokens short", dict(tokens=IDS[:, :5], known=KNOWN), "(2, 5)", "(2, 64)"),
    row("tokens 3-d", dict(tokens=IDS[..., None], known=KNOWN), "(2, 64, 1)"),
    row("tokens wrong batch", dict(tokens=IDS[:1], known=KNOWN[:1]), "(1, 64)", "(2, 64)"),
    row("known int", dict(tokens=IDS, known=KNOWN.long()), "int64", "bool"),
    row("known wrong batch", dict(tokens=IDS, known=KNOWN[:1]), "(1, 64)", "(2, 64)"),
    row("known list", dict(tokens=IDS, known=[True]), "tensor"),
    row("first_stage of one stage", dict(first_stage=(IDS, KNOWN)), "no first stage"),
    row("classes without values", dict(class_labels=IDS[:, 0].to("meta")), "class_labels is", "meta device"),
    row("indices without values", dict(indices=IDS[:, 0].to("meta")), "indices is", "meta device"),
    row("seed without a value", dict(seed=IDS[0, 0].to("meta")), "seed"),
    row("indices sparse", dict(indices=IDS[:, 0].to_sparse()), "indices is"),
    row("tokens without values", dict(tokens=IDS.to("meta"), known=KNOWN), "no values"),
    row("known without values", dict(tokens=IDS, known=KNOWN.to("meta")), "no values"),
    row("both steps", dict(steps=2, num_inference_steps=2), "steps and num_inference_steps", "one of them"),
    row("both guidances", dict(guidance=2.0, guidance_scale=2.0), "guidance and guidance_scale", "one of them"),
    row("num_inference_steps 0", dict(num_inference_steps=0), "steps", "at least 1"),
    row("num_inference_steps str", dict(num_inference_steps="8"), "steps"),
    row("guidance_scale nan", dict(guidance_scale=float("nan")), "guidance", "finite"),
    row("num_images_per_prompt 0", dict(num_images_per_prompt=0), "num_images_per_prompt", "at least 1"),
    row("num_images_per_prompt many", dict(num_images_per_prompt=10**9), "num_images_per_prompt", "at most"),
    row("num_images_per_prompt str", dict(num_images_per_prompt="2"), "num_images_per_prompt", "whole number"),
    row("generator int", dict(generator=5), "generator", "torch.Generator"),
    row("generator of numbers", dict(generator=[0, 1]), "generator", "torch.Generator"),
    row("generators short", dict(generator=[torch.Generator()]), "1 generators for 2 images"),
    row("generators and indices", dict(generator=[torch.Generator()] * 2, indices=[0, 1]), "indices"),
    row("generator and seed", dict(generator=torch.Generator(), seed=0), "seed and generator", "one of them"),
    row("return_dict", dict(return_dict="no"), "return_dict", "true or false"),
    row("on_step_end int", dict(callback_on_step_end=5), "callback_on_step_end", "function"),
    row("on_step_end latents", dict(callback_on_step_end_tensor_inputs=["latents"]), "latents", "known, tokens"),
    row("on_step_end text", dict(callback_on_step_end_tensor_inputs="tokens"), "list of names"),
    row("on_step_end returns 5", dict(callback_on_step_end=lambda *_: 5), "returned 5", "callback_kwargs"),
    row("on_step_end other known", dict(callback_on_step_end=lambda *_: {"known": KNOWN}), "settled before"),
    row("on_step_end short", dict(callback_on_step_end=lambda *_: {"tokens": IDS[:1]}), "(2, 64)"),
    row("on_step_end beyond", dict(callback_on_step_end=lambda *_: {"tokens": IDS + 64}), "id 64", "0 … 63"),
    row("unknown argument", dict(guidence=5), "guidence"),
]


@pytest.mark.parametrize(("given", "words"), CALLS)
def test_calls(pipe: MaskedPipeline, raises: Raises, given: dict[str, Any], words: list[str]) -> None:
    options: dict[str, Any] = {"class_labels": [0, 1], "progress": False, **given}
    raises(lambda: pipe(**options), *words)


def test_what_python_may_pass(pipe: MaskedPipeline) -> None:
    plain = pipe([0, 1], output_type="tokens", progress=False)
    for classes in (torch.tensor([0, 1]), np.array([0, 1]), (0, 1), ["bag", 1], [np.int64(0), 1], range(2), ["BAG", 1]):
        found = pipe(classes, seed=np.int64(0), indices=np.arange(2), output_type="tokens", progress=False)
        assert found.classes == [0, 1] and torch.equal(found.tokens, plain.tokens)
    hidden = KNOWN.clone()
    hidden[:, 9:] = False
    given = IDS.masked_fill(~hidden, -1).to(torch.int32)  # what isn't given may be anything
    pipe([0, 1], tokens=given, known=hidden, progress=False)


VECTORS = torch.zeros(1, 64, 4)
CONTINUOUS = [
    row("ids", dict(tokens=IDS[:1], known=KNOWN[:1]), "(1, 64, 4)"),
    row("whole numbers", dict(tokens=VECTORS.long(), known=KNOWN[:1]), "floating-point"),
    row("nan", dict(tokens=VECTORS + float("nan"), known=KNOWN[:1]), "NaN"),
]


@pytest.mark.parametrize(("given", "words"), CONTINUOUS)
def test_vectors(raises: Raises, given: dict[str, Any], words: list[str]) -> None:
    raises(lambda: tiny_continuous()([0], progress=False, **given), *words)


def load_with(**options: Any) -> Callable[[], object]:
    return lambda: mgen.load(**options)


OTHERS: list[Any] = [
    row("load None", load_with(name=None), "model"),
    row("load 5", load_with(name=5), "model"),
    row("load empty", load_with(name=""), "model"),
    row("load long", load_with(name="a" * 5000), "too long"),
    row("load null character", load_with(name="a\0b"), "model"),
    row("load list", load_with(name=["fmnist-mar"]), "model"),
    row("load unknown", load_with(name="fmnist-maskgti"), "did you mean 'fmnist-maskgit'"),
    row("load device", load_with(device="meta"), "device", "cpu"),
    row("load device number", load_with(device=5), "device", "cpu"),
    row("load device cpu:7", load_with(device="cpu:7"), "cpu:0"),
    row("load dtype", load_with(dtype="int8"), "dtype"),
    row("load_tokenizer None", lambda: load_tokenizer(None), "model"),  # type: ignore[arg-type]
    row("load_image None", lambda: load_image(None), "path"),  # type: ignore[arg-type]
    row("load_image size -1", lambda: load_image("x.png", size=-1), "size", "at least 1"),
    row("decode floats", lambda: tiny_pipeline().decode(torch.zeros(1, 64)), "float32"),
    row("decode beyond", lambda: tiny_pipeline().decode(IDS + 64), "id 64"),
    row("decode list", lambda: tiny_pipeline().decode([[0]]), "tensor"),  # type: ignore[arg-type]
    row("parts swapped", lambda: MaskedPipeline(None, None, None), "Tokenizer"),  # type: ignore[arg-type]
    row("from_pretrained None", lambda: MaskedPipeline.from_pretrained(None), "model"),  # type: ignore[arg-type]
    row("network from None", lambda: mgen.Generator.from_pretrained(None), "folder"),  # type: ignore[arg-type]
    row("from_config text", lambda: mgen.Generator.from_config("x"), "mapping"),  # type: ignore[arg-type]
    row("from_config list", lambda: mgen.VQGAN.from_config([1]), "mapping"),  # type: ignore[arg-type]
    row("box of text", lambda: box_mask("0,0,1,1", (8, 8)), "four whole numbers"),  # type: ignore[arg-type]
    row("box of three", lambda: box_mask((0, 0, 1), (8, 8)), "four whole numbers"),
    row("box of floats", lambda: box_mask((0, 0, 1.5, 2), (8, 8)), "four whole numbers"),  # type: ignore[arg-type]
    row("box beyond", lambda: box_mask((0, 0, 10**400, 2), (8, 8)), "does not lie in the image"),
    row("box endless", lambda: box_mask(range(10**12), (8, 8)), "four whole numbers"),  # type: ignore[arg-type]
    row("box in no size", lambda: box_mask((0, 0, 1, 1), torch.zeros(2)), "size is"),  # type: ignore[arg-type]
    row("margins endless", lambda: outpaint_canvas(PICTURE, range(10**12)), "four whole numbers"),  # type: ignore[arg-type]
    row("margins of no picture", lambda: outpaint_canvas(None, (1, 1, 1, 1)), "image is None"),  # type: ignore[arg-type]
    row("margins of floats", lambda: outpaint_canvas(torch.zeros(1, 8, 8), (1, 1, 1, 1)), "uint8"),
    row("grid a tensor", lambda: tiny_tokenizer().decode(IDS, torch.tensor([8, 8])), "grid is"),  # type: ignore[arg-type]
    row("grid empty", lambda: tiny_tokenizer().decode(IDS, ()), "grid is ()"),  # type: ignore[arg-type]
    row("grid a number", lambda: tiny_tokenizer().decode(IDS, 0), "grid is 0"),  # type: ignore[arg-type]
    row("noise a number", lambda: tiny_kl().encode(PIXELS, noise=1), "noise is 1", "(1, 4, 8, 8)"),  # type: ignore[arg-type]
    row("noise of another shape", lambda: tiny_kl().encode(PIXELS, noise=torch.zeros(2)), "(1, 4, 8, 8)"),
    row("noise a mapping", lambda: tiny_kl().encode(PIXELS, noise={}), "noise is {}"),  # type: ignore[arg-type]
    row("images without values", lambda: tiny_kl().encode(PIXELS.to("meta")), "meta device"),
    row("decode without values", lambda: tiny_pipeline().decode(IDS.to("meta")), "holds values"),
    row("settings None", lambda: train_config(None), "settings are None"),  # type: ignore[arg-type]
    row("settings text", lambda: train_config("x.yaml"), "expected a mapping"),  # type: ignore[arg-type]
    row("train settings", lambda: train({"steps": 1}), "TrainConfig"),  # type: ignore[arg-type]
    row("train None", lambda: train(None), "TrainConfig"),  # type: ignore[arg-type]
    row("save nowhere", lambda: tiny_pipeline().save_pretrained(""), "save_directory"),
    row("save None", lambda: tiny_pipeline().save_pretrained(None), "save_directory"),  # type: ignore[arg-type]
    row("subfolder", lambda: mgen.VQGAN.from_pretrained("x", subfolder=IDS), "subfolder is"),
    row("variant", lambda: mgen.VQGAN.from_pretrained("x", variant=[1]), "variant is [1]"),
    row(
        "from_pretrained option",
        lambda: MaskedPipeline.from_pretrained("fmnist-mar", revisoin="x"),
        "did you mean 'revision'",
    ),
    row("from_pretrained part", lambda: MaskedPipeline.from_pretrained("fmnist-mar", sampler=5), "ParallelSampler"),
    row("load option", load_with(revisoin="x"), "did you mean 'revision'"),
    row("load revision", load_with(revision=5), "revision"),
    row("save variant", lambda: tiny_pipeline().save_pretrained("x", variant=5), "variant is 5"),  # type: ignore[arg-type]
    row("save network variant", lambda: tiny_tokenizer().save_pretrained("x", variant=5), "variant is 5"),  # type: ignore[arg-type]
    row("offload", lambda: tiny_pipeline().enable_model_cpu_offload(), "not supported", "bfloat16"),
    row("create_model 5", lambda: mgen.create_model(5), "name of a model"),  # type: ignore[arg-type]
    row("list_models 5", lambda: mgen.list_models(5), "pattern is 5"),  # type: ignore[arg-type]
    row("list_models None", lambda: mgen.list_models(None), "pattern is None"),  # type: ignore[arg-type]
    row("to meta", lambda: tiny_pipeline().to("meta"), "device 'meta'", "cpu"),
    row("to meta as a device", lambda: tiny_pipeline().to(device=torch.device("meta")), "device 'meta'", "cpu"),
    row("to nowhere", lambda: tiny_pipeline().to("cuda:99", torch.float16), "device 'cuda:99'"),
    row("compile mode", lambda: tiny_pipeline().compile("whole"), "unknown compile 'whole'", "regional"),
    row(
        "compile backend", lambda: tiny_pipeline().compile(backend="foo"), "backend of torch.compile 'foo'", "inductor"
    ),
    row("compile backend 5", lambda: tiny_pipeline().compile(backend=5), "backend is 5", "function"),
    row(
        "compile option",
        lambda: tiny_pipeline().compile(backend="eager", foo=1),
        "torch.compile",
        "{'backend': 'eager', 'foo': 1}",
    ),
    row("resample None", lambda: resample(None, IDS, KNOWN, [0, 1]), "pipe is None"),  # type: ignore[arg-type]
    row("create_model mapping", lambda: mgen.create_model({"trunk": 5}), "missing section"),
    row("margins", lambda: outpaint_canvas(PICTURE[:, :8, :8], (4, 4, 4, 4)), "leave no picture"),
    row("restyle None", lambda: restyle(None, IDS, IDS), "HitaTokenizer"),
]


@pytest.mark.parametrize(("function", "words"), OTHERS)
def test_functions(raises: Raises, function: Callable[[], object], words: list[str]) -> None:
    raises(function, *words)


@pytest.mark.parametrize("names", [5, "abc", [None] * 3, [["a"], ["b"], ["c"]], ["a", "", "c"], ["a", "b"], {"a": 1}])
def test_class_names(pipe: MaskedPipeline, names: Any) -> None:
    with pytest.raises(MgenError, match="class.names"):
        MaskedPipeline(pipe.tokenizer, pipe.transformer, pipe.sampler, class_names=names)


EDITS = [
    row("image None", dict(image=None), "image", "uint8"),
    row("image float", dict(image=PICTURE.float()), "float32", "uint8"),
    row("image of another size", dict(image=PICTURE[:, :16]), "32×32"),
    row("image with three channels", dict(image=PICTURE.expand(3, -1, -1)), "(1, 32, 32)"),
    row("mask None", dict(mask=None), "mask", "bool"),
    row("mask int", dict(mask=MASK.long()), "int64", "bool"),
    row("mask of another size", dict(mask=MASK[:5]), "32×32"),
    row("mask empty", dict(mask=~MASK), "selects no pixel"),
    row("classes None", dict(classes=None), "expected a list"),
    row("class beyond", dict(classes=[7]), "0 … 2"),
    row("dilate negative", dict(dilate=-1), "dilate", "at least 0"),
    row("dilate float", dict(dilate=1.5), "dilate", "whole number"),
    row("feather negative", dict(feather=-1.0), "feather", "at least 0"),
    row("feather 1e9", dict(feather=1e9), "feather", "32 pixels"),
    row("feather inf", dict(feather=float("inf")), "feather", "finite"),
    row("batch_size", dict(batch_size=0), "batch_size"),
    row("seed", dict(seed="x"), "seed"),
    row("pipe", dict(pipe=None), "pipeline"),
]


@pytest.mark.parametrize(("given", "words"), EDITS)
def test_edits(pipe: MaskedPipeline, raises: Raises, given: dict[str, Any], words: list[str]) -> None:
    usual: dict[str, Any] = dict(pipe=pipe, image=PICTURE, mask=MASK, classes=[0], progress=False)
    raises(lambda: edit(**{**usual, **given}), *words)


@pytest.mark.parametrize("pretrained", ["nope", "", 5, True, b"x", "a\0b"], ids=repr)
def test_weights_are_looked_for_before_a_network_is_built(
    raises: Raises, monkeypatch: pytest.MonkeyPatch, pretrained: Any
) -> None:
    def built(*_: object) -> NoReturn:
        pytest.fail("a network was built")

    monkeypatch.setattr(mgen.pipelines.pretrained, "build_model", built)
    raises(lambda: mgen.create_model("mar-b", pretrained=pretrained), "no saved model")


def test_a_sampler_is_not_changed_by_what_is_refused(pipe: MaskedPipeline, here: Path) -> None:
    before = dict(pipe.sampler.settings)
    with pytest.raises(MgenError):
        pipe([0], steps=-1)
    assert pipe.sampler.settings == before and isinstance(pipe.sampler, ParallelSampler)
