"""Cases of the causal generators: training, step-by-step contexts and complete runs, for LlamaGen's and Hita's sets alike."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mgen.convert import convert
from mgen.convert.convert import Conversion
from mgen.heads import categorical
from mgen.nn.causal import rotary_table
from mgen.pipelines.pixels import to_uint8
from mgen.samplers import Noise, ParallelSampler
from tests.golden.harness import Case
from tests.official_settings import generate_settings

# Ten times the stated fp32–fp64 differences of the reference: logits 2.2e-6 … 4.6e-6, probabilities 1.4e-6, losses 1.1e-7 … 4.8e-7 (of
# numbers near 4 … 8), gradients 5.5e-7, the rotary table 4.8e-8.
LOGITS, PROBABILITIES, LOSS, GRADIENT, ROTARY = 2.2e-5, 1.4e-5, 5e-6, 5.5e-6, 4.8e-7

Families = dict[str, Callable[[Case], None]]


def families(
    format_name: str, weights: str, settings: Callable[[Case], dict[str, Any]], tokenizer: Callable[[Case], Any]
) -> Families:
    """The families of a set.

    Args:
        format_name, weights: format and file of the generator. settings: the official constructor arguments of a case.
        tokenizer: makes the tokenizer that decodes a case's tokens.
    """

    def load(case: Case) -> Conversion:
        c = settings(case)
        return convert(
            format_name,
            case.folder / weights,
            side=round(c["block_size"] ** 0.5),
            trunk={
                "heads": c["n_head"],
                "base": float(c["rope_base"]),
                "eps": c["norm_eps"],
                "dropout": c["token_dropout_p"],
            },
        )

    def ids(case: Case) -> Tensor:
        parts = [case.inputs[name] for name in ("q_indices", "z_indices") if name in case.inputs]
        return torch.cat(parts, dim=1)

    def train(case: Case) -> None:
        made = load(case)
        net, tokens = made.model.train(), ids(case)
        label = case.inputs["labels"]
        if "class_drop_uniform" in case.inputs:
            drop = case.inputs["class_drop_uniform"] < settings(case)["class_dropout_prob"]
            label = torch.where(drop, net.null_class, label)
        unknown = torch.zeros(tokens.shape, dtype=torch.bool)
        z, s, length = net.context(tokens, unknown, label), net.tokens.global_tokens, net.tokens.length
        losses, _ = net(tokens, label, unknown)
        if s:
            parts = {
                "slots": (0, z[:, :s], losses.view(-1, length)[:, :s]),
                "patches": (1, z[:, s:], losses.view(-1, length)[:, s:]),
            }
            for name, (part, rows, own) in parts.items():
                logits = net.head.parts[part].logits(rows)
                case.check(f"logits_{name}", logits, atol=case.near(f"logits_{name}", LOGITS))
                case.check(f"loss_{name}", own.mean() * own.shape[1] / length, atol=LOSS)
        else:
            case.check("logits", net.head.logits(z), atol=case.near("logits", LOGITS))
            case.check("loss", losses.mean(), atol=LOSS)
            valid = case.inputs.get("valid", torch.ones(len(tokens))).unsqueeze(1).expand(tokens.shape).flatten()
            case.check("loss_with_valid", (losses * valid).sum() / valid.sum().clamp(min=1), atol=LOSS)
        losses.mean().backward()
        named = dict(net.named_parameters())
        for name in [n for n in case.outputs if n.startswith("gradnorm.")]:
            official = name.removeprefix("gradnorm.")
            gradient = named[made.mapped[official]].grad
            if s and official in ("slot_embeddings.weight", "tok_embeddings.weight"):  # one table here
                gradient = gradient.chunk(2)[int(official.startswith("tok"))]
            case.check(name, gradient.norm(), atol=case.near(name, GRADIENT))

    @torch.inference_mode()
    def cached(case: Case) -> None:
        net, tokens, label = load(case).model, ids(case), case.inputs["labels"]
        cache, out = net.start(label), []
        known = torch.zeros(tokens.shape, dtype=torch.bool)
        for i in range(tokens.shape[1]):
            z = net.context(tokens, known, label, visible=(i, i), cache=cache)
            head = net.head.parts[int(i >= net.tokens.global_tokens)] if net.tokens.global_tokens else net.head
            out.append(head.logits(z))
        case.check("logits", torch.cat(out, dim=1), atol=case.near("logits", LOGITS))

    def table(case: Case) -> None:
        net = load(case).model
        cells = rotary_table(net.tokens.grid, net.trunk.config.dim // net.trunk.config.heads, net.trunk.config.base)
        case.check("freqs_cis", torch.cat([torch.zeros_like(cells[:1]), cells]), atol=ROTARY)
        torch.testing.assert_close(
            net.trunk.rotary, case.outputs["freqs_cis"][: len(net.trunk.rotary)], atol=ROTARY, rtol=0
        )

    @torch.inference_mode()
    def complete(case: Case) -> None:
        net, label = load(case).model, case.inputs["labels"]
        length = net.tokens.length
        sampler = ParallelSampler(**generate_settings(**case.config["generate"][case.name], tokens=length))
        uniform = torch.full((1, len(label), length), 0.5)
        exponential = case.inputs.get("exp_noise")  # (T, B, V)
        numbers = (
            uniform if exponential is None else -exponential.log().transpose(0, 1).unsqueeze(0)
        )  # Gumbel (1, B, L, V)
        noise, seen = Noise(order=uniform[0], tokens=numbers), []
        with pytest.MonkeyPatch.context() as patch:
            choose = categorical.choose
            patch.setattr(
                categorical, "choose", lambda logits, n: seen.append(logits.softmax(-1)[:, 0]) or choose(logits, n)
            )
            *_, step = sampler(net, label, noise=noise)
        case.check("tokens", step.tokens)
        case.check("probs", torch.stack(seen), atol=case.near("probs", PROBABILITIES))
        if "image" in case.outputs:
            vq = tokenizer(case)
            image = vq.decode(step.tokens)
            case.check("image", image, atol=case.near("image", 5.7e-5))
            side = case.config["image_size_eval"]
            grey = (
                to_uint8(image, size=side, quantization="half-up").permute(0, 2, 3, 1).int()
                - case.outputs["image_eval_u8"].int()
            )
            case.compared["image_eval_u8"] = (
                float(grey.abs().max()),
                1.0,
            )  # a value next to a border may fall either way
            assert grey.abs().max() <= 1

    return {"(gpt_)?train.*": train, "(gpt_)?cached.*": cached, "freqs_cis.*": table, "gen_.*": complete}
