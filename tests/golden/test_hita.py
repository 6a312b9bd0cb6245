"""Hita's tokenizer in its official keys: encoding with its vision encoder, decoding, training losses and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mgen.convert import convert
from mgen.convert.convert import Conversion
from mgen.convert.readers import hita
from mgen.pipelines.pixels import to_uint8
from mgen.tokenizers import HitaTokenizer
from mgen.tokenizers.vision import resized
from mgen.utils.errors import MgenError
from tests.golden import harness
from tests.golden.harness import Case
from tests.golden.llamagen_vq import discriminator, gradients, history, margin, objective_config, training_step

# Ten times the reference's own fp32–fp64 difference: CNN 2.6e-6, DINOv2 9.2e-6, transformers 8.5e-6, before quantization 5.5e-6,
# codes 6.6e-8, images 2.6e-6, predicted vision tokens 5.5e-6, margins 2.6e-6, losses 3.5e-8; 3.6e-5 where white noise is resized.
CNN, VISION, STACK, LATENT, CODES, IMAGE, MARGIN = 2.6e-5, 9.2e-5, 8.5e-5, 5.5e-5, 6.6e-7, 2.6e-5, 2.6e-5
PREDICTED, LOSS, RESIZED = 5.5e-5, 3.5e-7, 3.6e-4


def conversion(case: Case) -> Conversion:
    c = case.config
    return convert(
        "hita",
        case.folder / "weights.safetensors",
        heads=c["encoder_config"]["num_head"],
        shift=c["decoder_config"]["shift_k"],
        dropout=c["encoder_config"]["dropout"],
        normalized=c["vq_model"]["codebook_l2_norm"],
    )


def model(case: Case, made: Conversion | None = None) -> HitaTokenizer:
    net, c = (made or conversion(case)).model, case.config
    assert isinstance(net, HitaTokenizer)
    assert net.config.image_size == c["encoder_config"]["image_size"]
    assert net.config.vision_loss == c["decoder_config"]["enable_vfm_recon"]
    return net.use_vision(case.folder / "weights_dinov2.safetensors", heads=c["dinov2"]["num_heads"])


def ids_of(case: Case) -> tuple[Tensor, tuple[int, int]]:
    b, _, h, w = case.inputs["z_shape"].tolist()
    return torch.cat([case.inputs[f"{name}_indices"].view(b, -1) for name in "qz"], dim=1), (h, w)


def rows(holistic: Tensor) -> Tensor:
    """(B, d', 1, S) as the official (B, S, d')."""
    return holistic.squeeze(2).transpose(1, 2)


def check_ids(case: Case, net: HitaTokenizer, ids: Tensor) -> None:
    s = net.spec.global_tokens
    case.check("q_indices", ids[:, :s].flatten())
    case.check("z_indices", ids[:, s:].flatten())


@torch.inference_mode()
def encode(case: Case) -> None:
    net, images = model(case), case.inputs["image"]
    vision = net.vision_tokens(images)
    features = net.vq.encoder(images)
    case.check("dino_patch_tokens", vision[:, 1:], atol=case.near("dino_patch_tokens", VISION))
    case.check("cnn_features", features, atol=case.near("cnn_features", CNN))
    holistic, patches = net.gathering(features, vision)
    case.check("transformer_slots", holistic, atol=case.near("transformer_slots", STACK))
    case.check("transformer_patch", patches, atol=case.near("transformer_patch", STACK))
    z_holistic, z_patches = net.latents(images)
    case.check("prequant_slots", rows(z_holistic), atol=case.near("prequant_slots", LATENT))
    case.check("prequant_patch", z_patches, atol=case.near("prequant_patch", LATENT))
    case.check("q_margin", margin(net.holistic_quantize, z_holistic), atol=case.near("q_margin", MARGIN))
    case.check("z_margin", margin(net.quantize, z_patches), atol=case.near("z_margin", MARGIN))
    slots, patch = net.holistic_quantize(z_holistic).values, net.quantize(z_patches).values
    case.check("quant_slots", rows(slots), atol=case.near("quant_slots", CODES))
    case.check("quant_patch", patch, atol=case.near("quant_patch", CODES))
    check_ids(case, net, net.encode(images))


@torch.inference_mode()
def decode(case: Case) -> None:
    made = conversion(case)
    net = made.model  # no vision encoder: decoding never needs one
    assert isinstance(net, HitaTokenizer)
    ids, grid = ids_of(case)
    codes = net.lookup(ids, grid)
    image = net.decode(ids, grid)
    case.check("transformer_out", net.features(*codes), atol=case.near("transformer_out", STACK))
    case.check("image", image, atol=case.near("image", IMAGE))
    if "recon_vfm" in case.outputs:
        case.check("recon_vfm", net.predict_vision(codes[0]), atol=case.near("recon_vfm", PREDICTED))
    if "image_eval_u8" in case.outputs:
        side = case.config["image_size_eval"]
        small = to_uint8(image, size=side, quantization="half-up")
        grey = (small.permute(0, 2, 3, 1).int() - case.outputs["image_eval_u8"].int()).abs()
        case.compared["image_eval_u8"] = (
            float(grey.max()),
            1.0,
        )  # a value next to a whole number may fall on either side
        assert grey.max() <= 1 and (grey > 0).float().mean() < 0.02


@torch.inference_mode()
def decode_tail(case: Case) -> None:
    """Other ids at the end give the same image, to the last bit."""
    decode(case)
    net = conversion(case).model
    ids, grid = ids_of(case)
    other = ids.clone()
    other[:, ids.shape[1] - net.unused_tail :] = 0
    assert torch.equal(net.decode(ids, grid), net.decode(other, grid))


@torch.inference_mode()
def reconstruct(case: Case) -> None:
    images = case.inputs.get("image")
    if images is None:  # those of the encoding case
        cases = {other.name: other for other in harness.read_cases(case.system)}
        images = cases[case.name.replace("reconstruct", "encode")].inputs["image"]
    net = model(case)
    case.check("image", net(images)[0], atol=case.near("image", IMAGE))
    assert torch.allclose(net.decode(net.encode(images)), net(images)[0], atol=IMAGE)


def preprocess(case: Case) -> None:
    got = resized(case.inputs["image_u8"] / 127.5 - 1)
    step = {name: int(name.rsplit("sub", 1)[1]) for name in case.outputs}
    for name, every in step.items():
        case.check(name, got[..., ::every, ::every], atol=RESIZED)


def train(case: Case) -> None:
    c, made = case.config, conversion(case)
    loss, vq = c["loss"], c["vq_model"]
    net = model(case, made)
    config = objective_config(vq, loss, times=2.0)
    terms = training_step(case, net, config, discriminator(case, loss), loss["gen_loss"])
    case.check("sim_loss", terms.get("vision", torch.zeros(())), atol=LOSS)
    gradients(case, made, config)
    with torch.no_grad():
        z_holistic, _ = net.latents(case.inputs["image"])
        if "recon_vfm" in case.outputs:
            guess = net.predict_vision(net.holistic_quantize(z_holistic).values)
            case.check("recon_vfm", guess, atol=case.near("recon_vfm", PREDICTED))
        ids = net.encode(case.inputs["image"])
    check_ids(case, net, ids)
    s = net.spec.global_tokens
    patch = history(case, "quantize.codebook_used", ids[:, s:])
    slot = history(case, "slot_quantize.codebook_used", ids[:, :s])
    for name, used in (("patch", patch), ("slot", slot)):
        if (key := f"codebook_used_{name}_tail") in case.outputs:
            case.check(key, used[-len(case.outputs[key]) :])
    usage = len(patch.unique()) / net.config.vocab_size + len(slot.unique()) / net.config.global_vocab_size
    case.check("codebook_usage_sum", torch.tensor(usage), atol=1e-6)


FAMILIES = {
    "encode.*": encode,
    "decode_tail.*": decode_tail,
    "decode.*": decode,
    "reconstruct.*": reconstruct,
    "preprocess.*": preprocess,
    "train.*": train,
}


@harness.parametrize("hita")
def test_hita_gives_the_official_numbers(case: Case) -> None:
    harness.run(case, FAMILIES)


def published_shapes(ultra: bool) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the published files, but for the CNN's, from the golden set's keys and the published sizes."""
    small = load_file(harness.root() / "hita" / "weights.safetensors")
    if ultra:  # of a set of Hita-V too, which lacks them
        small |= {f"decode_transformer.{name}.bias": torch.empty(1) for name in ("norm_vfm", "proj")}
        small |= {
            "decode_transformer.norm_vfm.weight": torch.empty(1),
            "decode_transformer.proj.weight": torch.empty(1, 1),
        }
        small |= {"decode_transformer.mask_embedding": torch.empty(1, 1, 1)}
    sizes = {"carrier": 128, "grid": 441, "dim": 512, "hidden": 1368, "vision": 1024}
    shapes: dict[str, tuple[int, ...]] = {}
    d, h, v = sizes["dim"], sizes["hidden"], sizes["vision"]
    for name in small:
        if not name.startswith(("encode_transformer.", "decode_transformer.")):
            continue
        if not ultra and any(word in name for word in ("mask_embedding", "norm_vfm", "decode_transformer.proj")):
            continue
        shape: tuple[int, ...] = (d,) if small[name].ndim == 1 else (d, d)
        if "w12" in name:
            shape = (2 * h, d)[: small[name].ndim]
        elif "w3.weight" in name:
            shape = (d, h)
        elif "proj.mlp.0" in name:
            shape = (d, v)
        elif name.startswith("decode_transformer.proj"):
            shape = (v, d)[: small[name].ndim]
        elif small[name].ndim == 3:
            count = sizes["carrier"] if "carrier" in name or "slot" in name else 1 if "mask" in name else sizes["grid"]
            shape = (1, count, d)
        for layer in range(3) if ".layers.0." in name else [1] if ".layers.1." not in name else []:
            shapes[name.replace(".layers.0.", f".layers.{layer}.")] = shape
    return shapes


@pytest.mark.parametrize("size", ["V", "U"])
def test_published_sizes_have_the_official_keys(size: str) -> None:
    with torch.device("meta"):
        net = HitaTokenizer(**HitaTokenizer.SIZES[size])
    state = {name: torch.empty(shape, device="meta") for name, shape in published_shapes(size == "U").items()}
    ours = {name: tuple(value.shape) for name, value in hita.rename(state).state.items()}
    whole = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert ours == {name: shape for name, shape in whole.items() if name.startswith(("gathering.", "spreading."))}
    assert sum(p.numel() for p in net.parameters()) + 2 * 65536 == {"V": 104_371_911, "U": 104_898_759}[size]
    assert (net.spec.length, net.spec.global_tokens, net.spec.grid) == (569, 128, (21, 21))


def official_file(folder: Path, **parts: dict[str, Tensor]) -> Path:
    """A training script's file: several state dicts and what else it leaves there."""
    from argparse import Namespace

    path = folder / "hita-tok.pt"
    torch.save({**parts, "steps": 3, "optimizer": {"state": {}}, "args": Namespace(image_size=336)}, path)
    return path


def test_averaged_weights_are_taken_and_the_rest_refused(tmp_path: Path) -> None:
    case = harness.read_cases("hita")[0]
    state = load_file(case.folder / "weights.safetensors")
    settings: dict[str, Any] = dict(heads=case.config["encoder_config"]["num_head"])
    ema = {name: value + 1 if name == "quant_conv.bias" else value for name, value in state.items()}
    ema["encode_transformer.backbone.cls_token"] = torch.zeros(1, 1, 32)
    path = official_file(tmp_path, model=state, ema=ema)
    averaged, raw = convert("hita", path, **settings), convert("hita", path, raw=True, **settings)
    assert torch.equal(averaged.model.vq.quant_conv.bias, raw.model.vq.quant_conv.bias + 1)
    assert "vision encoder" in averaged.ignored["encode_transformer.backbone.cls_token"]
    ultra = case.config["decoder_config"]["enable_vfm_recon"]
    assert ("Hita-U" if ultra else "Hita-V") in averaged.report()
    assert not ultra or "--vision-weights" in averaged.report()
    plain = {name: value for name, value in state.items() if not any(w in name for w in ("mask_emb", "norm_vfm"))}
    plain = {name: value for name, value in plain.items() if not name.startswith("decode_transformer.proj")}
    vanilla = convert("hita", official_file(tmp_path, model=plain), **settings)
    assert not vanilla.config["vision_loss"] and any("Hita-V" in note for note in vanilla.notes)
    for changed, text in (
        ({"unheard.of": torch.zeros(1)}, "not expected, e.g. unheard.of"),
        ({"decode_transformer.transformer.layers.0.attn1.k_proj.bias": None}, "missing"),
        ({"encode_transformer.carrier_tokens": None}, "lacks encode_transformer.carrier_tokens"),
    ):
        broken = {name: value for name, value in {**state, **changed}.items() if value is not None}
        with pytest.raises(MgenError, match=text):
            convert("hita", official_file(tmp_path, model=broken), **settings)
    with pytest.raises(MgenError, match="not of format 'hita'"):
        convert("hita", harness.root() / "llamagen" / "weights.safetensors")


def test_a_file_serves_another_image_size() -> None:
    """The tables keep theirs; a picture of twice the side has four times the patches."""
    case = harness.read_cases("hita")[0]
    side = case.config["encoder_config"]["image_size"]
    made = convert(
        "hita",
        case.folder / "weights.safetensors",
        heads=case.config["encoder_config"]["num_head"],
        image_size=2 * side,
    ).model
    assert made.spec.grid == tuple(2 * n for n in conversion(case).model.spec.grid)
    assert made.decode(torch.zeros(1, made.spec.length, dtype=torch.int64)).shape[-1] == 2 * side
