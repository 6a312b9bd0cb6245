"""Is a tokenizer good enough for a generator to be trained on it? Reconstructions beside originals, numbers, and a sentence.

Nothing that a generator makes can be better than what its tokenizer reconstructs. The Fréchet distance of the reconstructions to the
originals is compared with what chance does: the distance between two sets of 1,000 originals, from halves of them (it falls with the
inverse of their number).

Notation: N images, B of a batch, c latent channels, Q ids.
"""

import heapq
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from mgen.data import ImageData
from mgen.data.images import open_images
from mgen.evaluation.extractors import Extractor, make_extractor
from mgen.evaluation.frechet import frechet_distance
from mgen.evaluation.outputs import check_own
from mgen.evaluation.pixels import WINDOW, psnr, ssim
from mgen.evaluation.reconstruction import count_ids, distance_name
from mgen.evaluation.result import Facts
from mgen.evaluation.statistics import FeatureSums
from mgen.pipelines.pixels import to_uint8
from mgen.pipelines.saved import load_tokenizer
from mgen.tokenizers.base import PosteriorTokenizer, Tokenizer
from mgen.tokenizers.vision import give_vision
from mgen.utils.devices import check_device
from mgen.utils.errors import MgenError
from mgen.utils.files import atomic_path, check_writable, write_json, write_text
from mgen.utils.grids import compared_grid
from mgen.utils.markdown import words
from mgen.zoo import resolve
from mgen.zoo.identity import identity

Verdict = Literal["good enough", "usable", "not good enough"]
VERDICTS: tuple[Verdict, ...] = ("good enough", "usable", "not good enough")
GOOD, USABLE = 2.0, 8.0  # times the distance between two sets of originals
HALF = 1000  # images of such a set
GOOD_PSNR, USABLE_PSNR = 26.0, 20.0  # dB; without a distance
FEW_IDS = 0.5  # share of the vocabulary that is used, below which a smaller one would do
ACTIVE = 0.01  # variance of a latent channel's mean over images and places, from which the channel counts as used
FEW_IMAGES = 500  # below, the distances are rough
SHOWN = 16  # images in a picture
FILES = ("check.json", "check.md", "reconstructions.png", "worst.png")


@dataclass(frozen=True, kw_only=True)
class IdUse:
    """How many of `size` ids of a codebook (or channel) occur, and their perplexity: as many equally frequent ones have this entropy."""

    name: str
    size: int
    used: int
    perplexity: float


@dataclass(frozen=True, kw_only=True)
class TokenizerCheck:
    """What the check found.

    Attributes:
        psnr, ssim: means over images; ssim is None for images of less than 11 pixels. distance: of the reconstructions to the originals in
            features of `extractor`, called `distance_name`; floor: between two halves of the originals; None without an extractor.
        ids: of a tokenizer of ids, by codebook. scale, channels, active_channels: of a KL tokenizer.
        sentence: the verdict with its reasons. advice: what to try. notes: what to know about the numbers.
    """

    tokenizer: str
    tokenizer_sha256: str
    data: str
    count: int
    image_size: int
    tokens: int
    psnr: float
    ssim: float | None = None
    distance_name: str = ""
    distance: float | None = None
    floor: float | None = None
    extractor: Facts | None = None
    ids: Sequence[IdUse] = ()
    scale: float | None = None
    channels: int | None = None
    active_channels: int | None = None
    verdict: Verdict = "usable"
    sentence: str = ""
    advice: Sequence[str] = ()
    notes: Sequence[str] = ()
    command: str = ""


def check_tokenizer(
    tokenizer: str | Path,
    data: str | ImageData,
    out: str | Path,
    *,
    extractor: str | None = None,
    inception_weights: str | None = None,
    num_images: int = 2000,
    split: str = "test",
    batch_size: int = 50,
    vision_weights: str | None = None,
    device: str | torch.device = "cpu",
    about: str = "",
    command: str = "",
    progress: bool = True,
) -> TokenizerCheck:
    """Check a tokenizer on images that it was not trained on; writes check.json, check.md and two pictures into the folder `out`.

    Args:
        tokenizer: folder or name of a tokenizer, or of a pipeline. data: `fmnist`, a folder of images, or images. split: of fmnist.
        extractor: fmnist-cnn, inception, or the folder of a classifier; None: fmnist-cnn for fmnist, else no distance is measured.
        num_images: at most so many images are taken, evenly spread. about: what to call `data` that has no name.
            command: for the report.

    Raises:
        MgenError: the tokenizer, the data or the extractor cannot be used, or `out` cannot be written.
    """
    out = Path(out)
    check_writable(out)
    check_own(out, FILES, {"verdict", "psnr"}, "the tokenizer check")
    device = check_device(device)
    network = load_tokenizer(tokenizer, device=device)
    give_vision(network, vision_weights)
    images, about = open_images(data, network, split=split) if isinstance(data, str) else (data, about)
    if len(images) < 4:
        raise MgenError(f"{about} holds {len(images)} images: a check needs at least 4")
    name = extractor or ("fmnist-cnn" if data == "fmnist" else None)
    features = None if name is None else make_extractor(name, weights=inception_weights, device=device)
    rows = range(0, len(images), -(-len(images) // num_images))
    sums = _Sums(network, features, rows)
    _pass(sums, images, network, features, rows, batch_size, progress)
    found = sums.found(str(tokenizer), about, command)
    title = f"{len(rows)} images: PSNR {found.psnr:.1f} dB"
    write_json(out / FILES[0], asdict(found))  # first: it says whose the others are
    sums.shown.save(out / FILES[2], f"{title}; evenly spread ones")
    sums.worst.save(out / FILES[3], f"{title}; those with the lowest")
    write_text(out / FILES[1], markdown(found))
    return found


@torch.inference_mode()
def _pass(
    sums: "_Sums",
    data: ImageData,
    tokenizer: Tokenizer,
    extractor: Extractor | None,
    rows: Sequence[int],
    batch_size: int,
    progress: bool,
) -> None:
    """Reconstruct all images once."""
    bar = tqdm(total=len(rows), unit="img", desc="checking", disable=not progress, file=sys.stderr, delay=1)
    with bar:
        for start in range(0, len(rows), batch_size):
            indices = rows[start : start + batch_size]
            batch = data.__getitems__(indices)["image"]
            given = batch.to(tokenizer.device)
            tokens = tokenizer.encode(given)
            made, truth = to_uint8(tokenizer.decode(tokens)).cpu(), to_uint8(batch)
            sums.update(start, truth, made, tokens)
            if isinstance(tokenizer, PosteriorTokenizer) and tokenizer.spec.kind == "vector":
                sums.latents(tokenizer.posterior(tokenizer.moments(given)).mean)
            if extractor is not None:
                sums.features(start, extractor(truth).features, extractor(made).features)
            bar.update(len(batch))


@dataclass
class _Pairs:
    """Some originals with their reconstructions, and the PSNR of each."""

    originals: list[Tensor] = field(default_factory=list)
    made: list[Tensor] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, original: Tensor, made: Tensor, value: float) -> None:
        self.originals.append(original)
        self.made.append(made)
        self.values.append(value)

    def keep_lowest(self, most: int) -> None:
        """Only the pairs with the lowest PSNR, the lowest first."""
        order = heapq.nsmallest(most, range(len(self.values)), key=self.values.__getitem__)
        for name in ("originals", "made", "values"):
            setattr(self, name, [getattr(self, name)[i] for i in order])

    def save(self, file: Path, title: str) -> None:
        versions = {"original": torch.stack(self.originals), "reconstruction": torch.stack(self.made)}
        texts = [f"{value:.1f} dB" for value in self.values]
        grid = compared_grid(versions, captions={"reconstruction": texts}, title=title)
        with atomic_path(file) as path:
            grid.save(path)


class _Sums:
    """What is summed over the images."""

    def __init__(self, tokenizer: Tokenizer, extractor: Extractor | None, rows: Sequence[int]) -> None:
        self.tokenizer, self.extractor, self.count = tokenizer, extractor, len(rows)
        length = 1 if extractor is None else extractor.length
        self.truth, self.made, *self.halves = (FeatureSums(length) for _ in range(4))
        self.psnr, self.ssim, self.used = 0.0, 0.0, torch.zeros(1)
        self.latent = torch.zeros(3, 1, dtype=torch.float64)  # numbers, their sum and sum of squares, by channel
        self.shown, self.worst = _Pairs(), _Pairs()
        self.places = set(range(0, len(rows), -(-len(rows) // SHOWN)))

    def update(self, start: int, truth: Tensor, made: Tensor, tokens: Tensor) -> None:
        """Add images uint8 (B, C, H, W) with their reconstructions and tokens; `start` is the place of the first."""
        values = psnr(truth, made).tolist()
        self.psnr += sum(values)
        if min(truth.shape[-2:]) >= WINDOW:
            self.ssim += ssim(truth, made).sum().item()
        if (size := self.tokenizer.spec.vocab_size) is not None:
            self.used = self.used + count_ids(tokens, size, self.tokenizer.spec.global_tokens)
        for i, value in enumerate(values):
            if start + i in self.places:
                self.shown.add(truth[i], made[i], value)
            self.worst.add(truth[i], made[i], value)
        self.worst.keep_lowest(SHOWN // 2)

    def latents(self, mean: Tensor) -> None:
        """Add means (B, c, h, w) of posteriors."""
        flat = mean.double().transpose(0, 1).flatten(1).cpu()  # (c, B·h·w)
        number = torch.full((len(flat),), float(flat.shape[1]), dtype=torch.float64)
        self.latent = self.latent + torch.stack([number, flat.sum(1), flat.square().sum(1)])

    def features(self, start: int, truth: Tensor, made: Tensor) -> None:
        """Add features (B, F) of originals and of reconstructions."""
        self.truth.update(truth)
        self.made.update(made)
        for parity, half in enumerate(self.halves):  # neighbors are of one class, so that both halves have all of them
            half.update(truth[(start + parity) % 2 :: 2])

    def found(self, name: str, about: str, command: str) -> TokenizerCheck:
        """The numbers with their verdict."""
        spec, side = self.tokenizer.spec, self.tokenizer.config.image_size
        facts: Facts = {"psnr": self.psnr / self.count}
        if side >= WINDOW:
            facts["ssim"] = self.ssim / self.count
        if self.extractor is not None:
            facts |= {
                "distance_name": distance_name(self.extractor, self.count),
                "distance": frechet_distance(*self.made.finish(), *self.truth.finish()),
                "floor": frechet_distance(*self.halves[0].finish(), *self.halves[1].finish()),
                "extractor": {"name": self.extractor.name, "sha256": self.extractor.sha256},
            }
        if spec.vocab_size is not None:
            facts["ids"] = id_use(self.used, spec.global_tokens)
        if spec.kind == "vector":
            number, first, second = self.latent
            variance = second / number - (first / number).square()
            facts |= {"scale": spec.scale, "channels": len(variance)}
            facts["active_channels"] = int((variance > ACTIVE).sum())
        check = TokenizerCheck(
            tokenizer=name,
            tokenizer_sha256=identity(resolve(name)).model_sha256,
            data=about,
            count=self.count,
            image_size=side,
            tokens=spec.length,
            command=command,
            **facts,  # type: ignore[arg-type]
        )
        return with_verdict(check)


def id_use(used: Tensor, global_tokens: int = 0) -> list[IdUse]:
    """The use of ids that occur `used` times (groups, Q)."""
    share = used.double() / used.sum(1, keepdim=True)
    perplexity = torch.special.entr(share).sum(1).exp().tolist()
    names = ["ids"] if len(used) == 1 else [f"channel {i}" for i in range(len(used))]
    if global_tokens:
        names = ["ids of global tokens", "ids of the grid"]
    counts = (used > 0).sum(1).tolist()
    return [
        IdUse(name=name, size=used.shape[1], used=count, perplexity=value)
        for name, count, value in zip(names, counts, perplexity, strict=True)
    ]


def with_verdict(check: TokenizerCheck) -> TokenizerCheck:
    """The check with its verdict, the sentence, what to try and what to know."""
    if check.distance is not None and check.floor is not None:
        floor = check.floor * min(1.0, check.count / (2 * HALF))
        times = check.distance / floor if floor > 0 else float("inf")
        verdict = VERDICTS[(times > GOOD) + (times > USABLE)]
        reason = f"the reconstructions are {times:.2g} times as far from the originals as two sets of {HALF:,} originals from each other"
        limits = f"good enough up to {GOOD:g} times, usable up to {USABLE:g}"
    else:
        verdict = VERDICTS[(check.psnr < GOOD_PSNR) + (check.psnr < USABLE_PSNR)]
        reason = f"PSNR is {check.psnr:.1f} dB, and no features were compared"
        limits = f"good enough from {GOOD_PSNR:g} dB, usable from {USABLE_PSNR:g}"
    sentence = f"{verdict[0].upper()}{verdict[1:]}: {reason} ({limits})."
    advice, notes = [], []
    if verdict != "good enough":
        advice.append("train for more steps, if the validation loss was still falling at the end")
        advice.append(
            "make more tokens of an image: one level less, which halves the downsampling (of a TiTok: more latent_tokens)"
        )
        if check.ids:
            advice.append("use a larger vocabulary, or more levels of a scalar quantizer")
        elif check.channels:
            advice.append("use more latent channels, or a smaller objective.kl")
        advice.append("add a perceptual term (objective.perceptual, with a classifier of the same data)")
    if few := [use.name for use in check.ids if use.used < FEW_IDS * use.size]:
        notes.append(
            f"less than {FEW_IDS:.0%} of the vocabulary is used ({', '.join(few[:4])}): a smaller one would do, or a scalar quantizer "
            "(fsq_levels), or an entropy term"
        )
    if check.channels and check.active_channels is not None and check.active_channels < check.channels:
        notes.append(
            f"{check.channels - check.active_channels} of {check.channels} latent channels hold nothing: lower objective.kl, or use fewer"
        )
    if check.channels and check.scale is None:
        notes.append("the tokenizer has no scale: measure it with mgen cache --measure-scale, or train it to its end")
    if check.distance is None:
        notes.append("no distance: give an extractor, such as one of mgen train --config classifier --data FOLDER")
    elif check.count < FEW_IMAGES:
        notes.append(f"{check.count} images are few: the distances are rough")
    return TokenizerCheck(**{**vars(check), "verdict": verdict, "sentence": sentence, "advice": advice, "notes": notes})


def markdown(check: TokenizerCheck) -> str:
    """The check as a page."""
    rows = [("images", f"{check.count}, {check.data}"), ("tokens of an image", str(check.tokens))]
    rows.append(("PSNR (higher is better)", f"{check.psnr:.2f} dB"))
    if check.ssim is not None:
        rows.append(("SSIM (higher is better)", f"{check.ssim:.4f}"))
    if check.distance is not None and check.extractor is not None:
        rows.append((f"{check.distance_name} (lower is better)", f"{check.distance:.4g}"))
        rows.append(("the same between two halves of the originals", f"{check.floor:.4g}"))
    for use in check.ids[:20]:
        rows.append((f"{use.name}: used of {use.size}", f"{use.used}, perplexity {use.perplexity:.1f}"))
    if check.channels is not None:
        rows.append(("latent channels that are used", f"{check.active_channels} of {check.channels}"))
        rows.append(("scale", "none" if check.scale is None else f"{check.scale:.5g}"))
    lines = [f"# Check of the tokenizer {words(check.tokenizer)}", ""]
    lines += [f"    {' '.join(check.command.split())}", ""] if check.command else []
    lines += [f"**{words(check.sentence)}**", ""]
    if check.advice:
        lines += ["What to try:", "", *(f"- {words(line)}" for line in check.advice), ""]
    lines += ["| | |", "|---|---|", *(f"| {words(a)} | {words(b)} |" for a, b in rows), ""]
    lines += [f"> {words(line)}  " for line in check.notes] + [""] * bool(check.notes)
    lines += ["![originals above their reconstructions](reconstructions.png)", ""]
    lines += ["The images with the lowest PSNR:", "", "![the worst reconstructions](worst.png)", ""]
    return "\n".join(lines)
