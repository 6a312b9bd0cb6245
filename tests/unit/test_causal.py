"""The causal generator: cache, guidance, given tokens, tokens nobody needs; and global tokens under masked trunks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mgen.bench.proxy import Proxy
from mgen.convert.convert import convert
from mgen.nn.causal import CausalRows, LiveKV
from mgen.pipelines.editing import edit
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.samplers import ParallelSampler
from mgen.samplers.counts import remaining_counts
from mgen.samplers.sequences import priorities
from mgen.tokenizers import HitaTokenizer
from mgen.tokens import TokenSpec
from mgen.training.config import GeneratorObjectiveConfig, MaskConfig
from mgen.training.generator_objective import GeneratorObjective
from mgen.training.noise import Augmentation
from mgen.utils.errors import MgenError
from tests.helpers import head_table, tiny_generator, tiny_mar, tiny_net, tiny_tokens
from tests.official_settings import generate_settings
from tools.ablations import ablations

GLOBAL: dict[str, Any] = {
    "tokens": tiny_tokens(global_tokens=5),
    "embedder": {"type": "lookup", "last_global": "published"},
}
CONSISTENT = {"embedder": {"type": "lookup", "last_global": "consistent"}}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "global tokens": GLOBAL,
    "windows": {"windows": {"side": 2}},
}


def tiny(**sections: Any) -> Any:
    net = tiny_net("causal", **sections)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(4.0)
        head_table(net).weight.normal_(generator=torch.Generator().manual_seed(1))
    return net


def draw(net: Any, settings: dict[str, Any] | None = None, seeds: tuple[int, ...] = (1, 2), **given: Any) -> Tensor:
    sampler = ParallelSampler.suited(net, {"guidance": 2.0, **(settings or {})})
    *_, end = sampler(net, torch.tensor(seeds) % 3, noise=sampler.make_noise(net, list(seeds)), **given)
    return end.tokens


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_one_row_after_the_other_is_the_whole_sequence(kind: str) -> None:
    net = tiny(**{**KINDS[kind], **CONSISTENT})
    label, length = torch.tensor([0, 2]), net.units.length
    tokens = torch.randint(16, (2, *net.units.shape), generator=torch.Generator().manual_seed(3))
    known = torch.zeros(2, length, dtype=torch.bool)
    whole, cache = net.context(tokens, known, label), net.start(label)
    rows = [net.context(tokens, known, label, visible=(i, i), cache=cache) for i in range(length)]
    torch.testing.assert_close(torch.cat(rows, dim=1), whole, atol=2e-5, rtol=1e-5)
    # Begun in the middle: all given tokens in one pass.
    cache = net.start(label)
    late = net.context(tokens, known, label, visible=(2, 2), cache=cache)
    torch.testing.assert_close(late, whole[:, 2:3], atol=2e-5, rtol=1e-5)
    more = net.context(tokens, known, label, visible=(length - 1, length - 1), cache=cache)
    torch.testing.assert_close(more, whole[:, -1:], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_row_sees_nothing_behind_it(kind: str) -> None:
    net, label = tiny(**KINDS[kind]), torch.tensor([0])
    tokens = torch.randint(16, (1, *net.units.shape), generator=torch.Generator().manual_seed(3))
    known = torch.zeros(1, net.units.length, dtype=torch.bool)
    changed = tokens.clone()
    changed[:, 2] = (changed[:, 2] + 1) % 16
    a, b = net.context(tokens, known, label), net.context(changed, known, label)
    assert torch.equal(a[:, :3], b[:, :3]) and not torch.allclose(a[:, 3], b[:, 3])


def test_the_last_global_id_is_looked_up_as_the_official_code_does_unless_told_otherwise() -> None:
    """In sampling alone, and from that row on; in training and with "consistent" never."""
    label, tokens = torch.tensor([1]), torch.arange(21).unsqueeze(0) % 16
    known = torch.zeros(1, 21, dtype=torch.bool)
    out = {}
    for how, sections in (("published", GLOBAL), ("consistent", {**GLOBAL, **CONSISTENT})):
        net = tiny(**sections)
        cache = net.start(label)
        out[how] = torch.cat([net.context(tokens, known, label, visible=(i, i), cache=cache) for i in range(8)], dim=1)
        whole = net.context(tokens, known, label)
    assert torch.equal(out["published"][:, :5], out["consistent"][:, :5])
    assert (out["published"][:, 5] - out["consistent"][:, 5]).abs().max() > 1e-3
    torch.testing.assert_close(out["consistent"], whole[:, :8], atol=2e-5, rtol=1e-5)


def test_the_first_row_has_no_rotation_or_no_query_at_all() -> None:
    rows = tiny(first_row="zeros").trunk.rows(0, 3)
    x = torch.randn(1, 2, 3, 16)
    assert not rows.place(x)[:, :, 0].any() and torch.equal(
        rows.place(x)[:, :, 1], x[:, :, 1]
    )  # cell (0, 0) has angle 0
    kept = tiny(first_row="identity").trunk.rows(0, 3).place(x)
    torch.testing.assert_close(kept[:, :, :2], x[:, :, :2])
    torch.testing.assert_close(kept.norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_image_depends_on_its_seed_alone(kind: str) -> None:
    net = tiny(**KINDS[kind])
    together = draw(net, seeds=(1, 2, 3))
    assert torch.equal(draw(net, seeds=(2,))[0], together[1])
    assert not torch.equal(together[0], together[1])


def test_guidance_that_ends_early_drops_the_null_rows_and_one_that_starts_late_has_them() -> None:
    net, seen = tiny(), []

    def context(tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(len(tokens))
        return net.context(tokens, *args, **kwargs)

    for guidance, rows in (([3.0] * 4 + [1.0] * 12, [2] * 4 + [1] * 12), ([1.0] * 12 + [3.0] * 4, [2] * 16)):
        seen.clear()
        sampler = ParallelSampler.suited(net, {"guidance": guidance})
        list(sampler(Proxy(net, context=context), torch.tensor([0]), noise=sampler.make_noise(net, [1])))
        assert seen == rows
    plain = draw(net, {"guidance": [1.0] * 16})
    assert torch.equal(draw(net, {"guidance": 1.0}), plain) and not torch.equal(draw(net, {"guidance": 3.0}), plain)


def test_given_tokens_are_the_first_ones() -> None:
    net = tiny()
    tokens, known = torch.randint(16, (2, 16)), torch.zeros(2, 16, dtype=torch.bool)
    known[:, :6] = True
    end = draw(net, tokens=tokens, known=known)
    assert torch.equal(end[:, :6], tokens[:, :6])
    again = draw(net, tokens=end, known=known)  # what stands behind is not read
    assert torch.equal(again, end)
    known[0, 9] = True
    with pytest.raises(MgenError, match="must be the first ones"):
        draw(net, tokens=tokens, known=known)
    known[0, 9], known[0, 5] = False, False
    with pytest.raises(MgenError, match="equally many given tokens"):
        draw(net, tokens=tokens, known=known)


def test_tokens_that_reach_no_pixel_are_not_drawn() -> None:
    net = tiny(**GLOBAL)
    sampler = ParallelSampler.suited(net, {"guidance": 2.0})
    label, noise = torch.tensor([0]), sampler.make_noise(net, [1])
    whole = list(sampler(net, label, noise=noise))
    some = list(sampler(net, label, noise=noise, unused_tail=4))
    assert (len(whole), len(some)) == (21, 17)
    assert torch.equal(some[-1].tokens[:, :17], whole[-1].tokens[:, :17]) and not some[-1].known[:, 17:].any()


def test_only_the_live_rows_of_the_cache_are_read() -> None:
    kept, rows = LiveKV(8), CausalRows(0, 3, None, torch.zeros(3, 2, 2))
    k, _ = kept.add(torch.randn(2, 2, 3, 4), torch.randn(2, 2, 3, 4), rows)
    assert k.shape[2] == 3
    k, v = kept.add(torch.randn(1, 2, 1, 4), torch.randn(1, 2, 1, 4), CausalRows(3, 4, None, torch.zeros(1, 2, 2)))
    assert k.shape == (1, 2, 4, 4) and k.data_ptr() == kept.k.data_ptr()  # type: ignore[union-attr]
    with pytest.raises(MgenError, match="3 sequences go on where 2 were begun"):
        kept.add(torch.randn(3, 2, 1, 4), torch.randn(3, 2, 1, 4), CausalRows(4, 5, None, torch.zeros(1, 2, 2)))


def test_settings_of_the_official_generate() -> None:
    made = generate_settings(cfg_scale=2.0, cfg_interval=3, top_k=20, top_p=0.9, temperature=0.8, tokens=8)
    assert made["guidance"] == [2.0] * 5 + [1.0] * 3 and made["head"] == {"top_k": 20, "top_p": 0.9}
    assert generate_settings(tokens=8, sample_logits=False)["head"] == {"top_k": 1}
    ParallelSampler(**made)
    assert generate_settings(cfg_scale=0.5, tokens=8)["guidance"] == 1.0  # guided above 1 alone


def test_what_does_not_fit_is_refused() -> None:
    net = tiny()
    for settings in ({"steps": 8}, {"order": "random"}, {"schedule": "cosine"}, {"order": "halton"}):
        with pytest.raises(MgenError, match="one token after the other"):
            ParallelSampler.suited(net, settings).check(net)
    with pytest.raises(MgenError, match="no cached steps"):
        ParallelSampler.suited(net, {"reuse": {"cached": 1}}).check(net)
    with pytest.raises(MgenError, match="a step for each of 9 tokens"):
        remaining_counts("single", steps=8, unknown=9, length=9)
    with pytest.raises(MgenError, match="multiple of 4"):
        tiny_net("causal", dim=36, heads=6)
    with pytest.raises(MgenError, match="first_row"):
        tiny_net("causal", first_row="none")


def test_the_loss_weighs_both_parts_alike() -> None:
    net = tiny(**GLOBAL)
    table = head_table(net).weight
    tokens, known = torch.randint(16, (2, 21)), torch.zeros(2, 21, dtype=torch.bool)
    losses, _ = net(tokens, torch.tensor([0, 1]), known)
    z = net.context(tokens, known, torch.tensor([0, 1]))
    ce = torch.nn.functional.cross_entropy
    first = ce(z[:, :5].flatten(0, 1) @ table[:16].T, tokens[:, :5].flatten())
    rest = ce(z[:, 5:].flatten(0, 1) @ table[16:].T, tokens[:, 5:].flatten())
    torch.testing.assert_close(losses.mean(), first + rest)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_objective_predicts_every_token(kind: str) -> None:
    net = tiny(**KINDS[kind]).train()
    objective = GeneratorObjective(net, GeneratorObjectiveConfig(label_smoothing=0.0))
    noise = objective.make_noise(3, torch.Generator().manual_seed(0), augmentation=Augmentation())
    assert noise.known.shape == (3, net.units.length) and not noise.known.any()
    batch = {"tokens": torch.randint(16, (3, 1, net.tokens.length)), "label": torch.tensor([0, 1, 2])}
    loss, logs, _ = objective(batch, noise)
    loss.backward()
    assert loss.isfinite() and 0 <= logs["accuracy"] <= 1
    assert all(p.grad is not None for p in net.parameters())


def test_masks_of_a_causal_generator_are_refused() -> None:
    masked = GeneratorObjectiveConfig(mask=MaskConfig(distribution="uniform"))
    with pytest.raises(MgenError, match="objective.mask is for masked generators"):
        GeneratorObjective(tiny(), masked)


def test_published_files_convert(tmp_path: Any) -> None:
    """Without a wrapper as the files of parallel training are, with stale buffers, and with what shapes do not tell in the notes."""
    from safetensors.torch import load_file, save_file

    from tests.golden.harness import root

    state = load_file(root() / "hita_ar" / "weights.safetensors")
    state["layers.0.attention.kv_cache.k_cache"] = torch.zeros(1, 2, 8, 4)
    state["freqs_cis"] = torch.zeros(3, 2)
    save_file(state, tmp_path / "gpt.safetensors")
    sizes: dict[str, Any] = {"trunk": {"heads": 2}, "side": 6}
    made = convert("hita-gpt", tmp_path / "gpt.safetensors", **sizes)
    assert set(made.ignored) == {"layers.0.attention.kv_cache.k_cache", "freqs_cis"}
    assert made.model.tokens == TokenSpec(kind="index", length=44, grid=(6, 6), vocab_size=64, global_tokens=8)
    torch.save({"ema": state, "model": {}, "steps": 3}, tmp_path / "gpt.pt")
    again = convert("hita-gpt", tmp_path / "gpt.pt", **sizes)
    assert torch.equal(head_table(again.model).weight, head_table(made.model).weight)
    assert "weights under 'ema'" in again.notes
    assert any("weights do not tell" in note for note in made.notes)
    with pytest.raises(MgenError, match="missing"):
        save_file({k: v for k, v in state.items() if k != "norm.weight"}, tmp_path / "cut.safetensors")
        convert("hita-gpt", tmp_path / "cut.safetensors", **sizes)


# -- global tokens under masked trunks -------------------------------------------------------------------------------

MASKED = {
    "uvit": lambda: tiny_generator(tokens=tiny_tokens(global_tokens=5)),
    "mae": lambda: tiny_mar(tokens=tiny_tokens(global_tokens=5)),
}


@pytest.mark.parametrize("name", sorted(MASKED))
@pytest.mark.parametrize("order", ["confidence", "halton", "random", "raster"])
def test_global_tokens_come_first(name: str, order: str) -> None:
    net = MASKED[name]()
    sampler = ParallelSampler.suited(net, {"steps": 6, "order": order, "guidance": 2.0, "global_steps": 2})
    counts = []
    for step in sampler(net, torch.tensor([0, 1]), noise=sampler.make_noise(net, [1, 2])):
        counts.append([int(step.known[0, :5].sum()), int(step.known[0, 5:].sum())])
        assert int(step.tokens.max()) < 16
    assert counts[1] == [5, 0] and 0 < counts[0][0] < 5 and counts[-1] == [5, 16]
    assert [a for a, _ in counts[1:]] == [5] * 5


@pytest.mark.parametrize("name", sorted(MASKED))
def test_both_parts_have_ids_of_their_own(name: str) -> None:
    """The same id means something else in the other part, for the embedding and for the head."""
    net = MASKED[name]()
    tokens = torch.full((1, 21), 3)
    rows = net.embedder.rows(tokens)
    assert rows[0, :5].tolist() == [3] * 5 and rows[0, 5:].tolist() == [19] * 16
    z = torch.randn(1, 4, net.head.width)
    a, b = (head.logits(z) for head in net.head.parts)
    assert a.shape == b.shape == (1, 4, 16) and not torch.allclose(a, b)
    known = torch.zeros(1, 21, dtype=torch.bool)
    known[0, 4:7] = True
    known[0, 0] = True
    losses, _ = net(tokens, torch.tensor([0]), known)
    assert losses.shape == (17,) and losses.isfinite().all()
    z = net.context(tokens, known, torch.tensor([0]))
    own = torch.stack(
        [net.head.parts[int(i >= 5)].loss(z[:, i], tokens[:, i])[0] for i in range(21) if not known[0, i]]
    )
    weight = torch.tensor([21 / (16 if i >= 5 else 5) for i in range(21) if not known[0, i]])
    torch.testing.assert_close(losses, own.flatten() * weight)


def test_steps_of_the_phases() -> None:
    net = MASKED["uvit"]()
    sampler = ParallelSampler(steps=8)
    assert [p.steps for p in sampler.phases(21, 5)] == [2, 6]  # in proportion
    assert [p.steps for p in ParallelSampler(steps=2).phases(21, 5)] == [1, 1]
    for settings, words in (
        ({"steps": 1}, "at least 2 steps"),
        ({"schedule": [0.5] * 7}, "listed schedules"),
        ({"start": 2}, "start, order remasking"),
    ):
        with pytest.raises(MgenError, match=words):
            ParallelSampler(**{"steps": 8, **settings}).check(net)
    with pytest.raises(MgenError, match="has no global tokens"):
        ParallelSampler(steps=8, global_steps=2).check(tiny_generator(tokens=tiny_tokens()))
    with pytest.raises(MgenError, match="from 1 to steps − 1, 7"):
        ParallelSampler(steps=8, global_steps=8)


def test_a_listed_order_keeps_its_order_within_each_part() -> None:
    noise = ParallelSampler(steps=4, order="random").make_noise(MASKED["uvit"](), [1])
    listed = [9, 4, 20, 0, 3, 2, 1, *(p for p in range(5, 20) if p != 9)]
    ranked = priorities(listed, noise, (4, 4), 5)
    ranking = ranked[0].argsort(descending=True).tolist()
    assert ranking[:5] == [4, 0, 3, 2, 1] and ranking[5:7] == [9, 20]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_ablation_draws_the_same_ids(kind: str) -> None:
    net = tiny(**KINDS[kind])
    for batch in (2, 1):  # weights are stored by columns for two rows, not for four
        rows = ablations(net, ParallelSampler.suited(net, {"guidance": 2.0}), batch_size=batch, repeats=1)
        assert len(rows) == (5 if kind == "global tokens" else 4) + (batch == 1)
        assert all(row["difference"] == 0 for row in rows)


def test_editing_draws_global_tokens_anew_and_needs_a_masked_generator() -> None:
    torch.manual_seed(0)
    tokenizer = HitaTokenizer(
        **{**HitaTokenizer.SIZES["fmnist-8"], "global_tokens": 5, "vocab_size": 16, "global_vocab_size": 16}
    ).eval()
    tokens = tiny_tokens(side=8, global_tokens=5)
    masked = tiny_generator(tokens=tokens)
    pipe = MaskedPipeline(tokenizer=tokenizer, transformer=masked, sampler=ParallelSampler.suited(masked, {"steps": 4}))
    image = torch.randint(256, (1, 32, 32), dtype=torch.uint8)
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:, :16] = True
    drawn = edit(pipe, image, mask, [0, 1], progress=False)
    assert drawn.shape == (2, 1, 32, 32) and torch.equal(drawn[0][:, :, 16:], image[:, :, 16:])
    one = tiny(**{**GLOBAL, "tokens": tokens})
    causal = MaskedPipeline(tokenizer=tokenizer, transformer=one, sampler=ParallelSampler.suited(one))
    with pytest.raises(MgenError, match="a masked generator, such as MaskGIT"):
        edit(causal, image, mask, [0], progress=False)
    # Without a callback the last tokens, which reach no pixel, are not drawn; the image is the same.
    a, b = (causal([1], seed=3, complete=whole, output_type="uint8", progress=False) for whole in (False, True))
    assert torch.equal(a.images, b.images) and torch.equal(a.tokens[:, :-4], b.tokens[:, :-4])


def test_the_layout_of_weights_for_few_rows_is_the_same_function(tmp_path: Path) -> None:
    net = tiny(tokens=tiny_tokens(vocab_size=64))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    tokens, label = torch.randint(net.tokens.vocab_size, (2, net.tokens.length)), torch.tensor([0, 1])
    known = torch.ones(2, net.tokens.length, dtype=torch.bool)
    with torch.inference_mode():
        plain = net.context(tokens, known, label)
        net.optimize_layout(2)
        assert not head_table(net).weight.is_contiguous()
        assert torch.allclose(net.context(tokens, known, label), plain, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net.save_pretrained(tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in type(net).from_pretrained(tmp_path).state_dict().items())
    net.optimize_layout(4)
    assert head_table(net).weight.is_contiguous()
    net.optimize_layout(1)
    losses, _ = net.train()(tokens, label, torch.zeros_like(known))
    losses.mean().backward()
    assert head_table(net).weight.grad is not None, "the layout changed in inference, it still trains"
