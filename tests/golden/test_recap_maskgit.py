"""ReCAP on the PyTorch MaskGIT: keys and values of a full evaluation, a cached step, complete grouped sampling."""

import torch

from mgen.convert import convert
from mgen.generators import Generator
from mgen.nn import CachedStep
from mgen.samplers import Noise, ParallelSampler
from tests.golden import harness
from tests.golden.harness import Case
from tests.official_settings import recap_maskgit_settings

LOGITS, IMAGE, SCHEDULE = 3e-5, 5e-5, 1e-6  # as the set asks; the reference's own difference in logits is 1e-5


def model(case: Case) -> Generator:
    net = convert(
        "maskgit", case.folder / "weights.safetensors", trunk={"heads": case.config["nnet"]["num_heads"]}
    ).model
    return net


@torch.inference_mode()
def full_then_local(case: Case) -> None:
    net, i = model(case), case.inputs
    label, ids, group = i["context"].flatten(), i["ids"], i["unmask_idx"]
    cache, mask_id = net.start(label), net.embedder.mask_id
    z = net.context(ids, ids != mask_id, label, cache=cache, keep=0)
    case.check("full_logits", net.head.logits(z), atol=case.near("full_logits", LOGITS))
    # Copies: the cached step overwrites them.
    k, v = cache.layer("in.0").k.clone(), cache.layer(f"out.{len(net.trunk.out_blocks) - 1}").v.clone()
    case.check("k_first_block", k.transpose(1, 2), atol=case.near("k_first_block", LOGITS))
    case.check("v_last_block", v.transpose(1, 2), atol=case.near("v_last_block", LOGITS))
    # Local ids may be known or masked in any order: tokens that are known go first, as a group is decoded.
    local = i["local_ids"]
    order = (local == net.embedder.mask_id).to(torch.uint8).argsort(dim=1, stable=True)
    done = int((local != net.embedder.mask_id).sum(1)[0])
    tokens = ids.scatter(1, group, local)
    whole = (0, group.shape[1])
    step = CachedStep(group=group.gather(1, order), done=done, fresh=whole, asked=whole)
    z = net.cached_step(tokens, label, cache, step)
    back = order.argsort(dim=1)
    logits = net.head.logits(z).gather(1, back.unsqueeze(-1).expand(-1, -1, net.tokens.vocab_size))
    case.check("local_logits", logits, atol=case.near("local_logits", LOGITS))
    for name in ("in.0", "out.0"):  # rows outside the group (and the class token in front) are as they were
        assert net.tokens.length + 1 == cache.layer(name).k.shape[2]
    kept = cache.layer("in.0").k.gather(
        2, (i["cached_idx"] + 1)[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[3])
    )
    assert torch.equal(kept, k.gather(2, (i["cached_idx"] + 1)[:, None, :, None].expand_as(kept)))


@torch.inference_mode()
def sample(case: Case) -> None:
    net, i = model(case), case.inputs
    run = case.config["runs"][case.name]
    settings = {k: v for k, v in run.items() if k != "script"}
    sampler = ParallelSampler(**recap_maskgit_settings(**settings))
    label, length = i["context"].flatten(), net.tokens.length
    b, steps, groups = len(label), sampler.config.steps, sampler.groups()
    counts = sampler.remaining(unknown=length, length=length)
    revealed = [before - after for before, after in zip([length, *counts], counts)]
    guided = ParallelSampler(
        **recap_maskgit_settings(**{**settings, "cfg": True})
    )  # the set lists the weights of runs without guidance too
    weights = torch.tensor(guided.values("guidance", length)) - 1
    case.check("group_lengths", torch.tensor([len(group) for group in groups]))
    case.check("tokens_per_substep", torch.tensor(revealed))
    temperatures, factors = (torch.tensor(sampler.values(f"{n}temperature", length)) for n in ("", "confidence_"))
    case.check("samp_temp_per_substep", temperatures, atol=SCHEDULE)
    case.check("conf_temp_per_full_step", factors[[group[0] for group in groups]], atol=SCHEDULE)
    case.check("cfg_per_substep", weights, atol=SCHEDULE)

    # The set lists draws by full step and by place in the group; ours are by step and by position.
    codes = net.tokens.vocab_size
    candidates, confidence = torch.zeros(steps, b, length, codes), torch.zeros(steps, b, length)
    tokens, places = torch.zeros(steps, b, length, codes), case.outputs["unmask_idx"]
    first = 0
    for g, group in enumerate(groups):
        candidates[group[0]], confidence[group[0]] = i["confidence_token_gumbel"][g].float(), i["confidence_gumbel"][g]
        size = sum(revealed[t] for t in group)
        index = places[:, first : first + size, None].long().expand(-1, -1, codes)
        for t in group:
            tokens[t].scatter_(1, index, i[f"token_gumbel/{t:03d}"].float())
        first += size
    noise = Noise(tokens=tokens, confidence=confidence, candidates=candidates, order=torch.zeros(b, length))

    full, chosen, state = [], [], torch.full((b, length), net.embedder.mask_id)
    firsts = {group[0] for group in groups}
    for step in sampler(net, label, noise=noise):
        if step.index in firsts:
            full.append(state)
        state = torch.where(step.known, step.tokens, net.embedder.mask_id)
        chosen.append(step.positions)
    case.check("full_ids", torch.stack(full))
    case.check("unmask_idx", torch.cat(chosen, dim=1))
    case.check("final_ids", state.view(case.outputs["final_ids"].shape))
    if "image" in case.outputs:
        tokenizer = convert("maskgit-vqgan", harness.root() / "maskgit_vqgan" / "weights.safetensors").model
        case.check("image", (tokenizer.decode(state) + 1) / 2, atol=IMAGE)  # the official decoder does not clamp


@harness.parametrize("recap_maskgit")
def test_recap_maskgit_gives_the_official_numbers(case: Case) -> None:
    harness.run(case, {"full_then_local.*": full_then_local, r".*T\d+.*": sample})


def test_published_settings_give_the_published_evaluations() -> None:
    """T = 32 with 12 full steps first: 22 full passes and 10 cached steps, and the published reveals."""
    sampler = ParallelSampler(
        **recap_maskgit_settings(gen_step=32, pre_full_iters=12, num_cache_iters=1, samp_temp=0.75)
    )
    groups, counts = sampler.groups(), sampler.remaining(unknown=256, length=256)
    assert (len(groups), sum(len(group) - 1 for group in groups)) == (22, 10)
    revealed = [before - after for before, after in zip([256, *counts], counts)]
    published = "1 1 1 1 1 1 2 2 3 3 4 5 4 6 6 7 7 8 9 10 10 11 12 12 14 14 15 16 17 17 19 17"
    assert " ".join(map(str, revealed)) == published
    assert sum(revealed) == 256
