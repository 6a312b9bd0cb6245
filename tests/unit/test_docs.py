"""Documentation follows the code: the command reference, the Python of the README, and one set of words everywhere."""

import fnmatch
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import mgen

ROOT = Path(__file__).resolve().parents[2]


def cli_reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cli_reference", ROOT / "tools" / "cli_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_reference_is_what_the_parsers_say() -> None:
    module = cli_reference()
    written = module.PAGE.read_text(encoding="utf-8")
    assert written == module.page(), "docs/cli.md is out of date: run python tools/cli_reference.py"


def test_the_python_of_the_readme_works() -> None:
    """The calls of the README's example, on the embedded models."""
    pipe = mgen.load("fmnist-maskgit")
    images = pipe([8, 9], seed=0, guidance=2.5, progress=False).images
    assert [image.size for image in images] == [(32, 32)] * 2
    sampler = pipe.sampler.override(steps=12, order="halton", guidance=3.0, reuse={"cached": 1})
    seen: list[int] = []
    pipe([8, 9], seed=0, sampler=sampler, progress=False, callback=lambda step: seen.append(int(step.known.sum())))
    assert len(seen) == 12 and seen == sorted(seen) and seen[-1] == 2 * 64
    pipe = mgen.load("fmnist-mar")
    fast = pipe.sampler.override(steps=4, chain="dpm-solver++", head_steps=20, temperature=1.0)
    assert len(pipe([8, 9], seed=0, sampler=fast, progress=False).images) == 2


def test_the_models_that_the_readme_names_can_be_made() -> None:
    named = re.findall(r"(?m)^\| \[.*?\| `([a-z0-9-]+)`", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert named and set(named) <= set(mgen.list_models("*"))
    assert mgen.create_model("fmnist-mar", head={"width": 64}).head.settings["width"] == 64


# -- one set of words --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Word:
    """A word that is not used any more.

    Args:
        pattern: regular expression. instead: the word to use. allowed: files (globs from the root) where it may stand.
    """

    pattern: str
    instead: str
    allowed: tuple[str, ...] = ()


HITA = (
    "tokenizers/hita*.py",
    "tokenizers/fusion.py",
    "mgen/convert/readers/hita.py",
    "tests/golden/*hita*",
    "tests/unit/test_hita.py",
    "docs/systems/hita.md",
)
HIMAR = ("mgen/convert/readers/himar.py", "mgen/generators/cascade.py", "tests/golden/*himar*", "docs/systems/himar.md")
SEEDS = ("samplers/parallel.py",)  # the word seeds the images of a first stage; another one would change them
CHANNELS = (
    "mgen/heads/channels.py",
    "mgen/convert/readers/tokenbridge.py",
    "tests/golden/*tokenbridge*",
    "docs/systems/tokenbridge.md",
)
OFFICIAL = (
    "mgen/convert/**/*",
    "tests/golden/*",
    "tests/unit/test_recipes.py",
)  # names of official code
GLOSSARY = ("docs/glossary.md",)
PLOTS = ("mgen/reports/*", "mgen/bench/sweep_report.py", "mgen/tune/pareto.py")  # matplotlib's and HTML's word

NAMES = (
    Word(r"(?i)holistic", "global tokens", HITA + GLOSSARY + ("mgen/generators/trunks/causal.py",)),
    Word(r"(?i)pivot(?!s?\"|s of Hi-MAR)", "first stage", HIMAR + GLOSSARY + SEEDS + ("configs/*himar*",)),
    Word(r"\bPlaces\b|samplers.places|masked_places", "positions"),
    Word(r"(?i)timetable", "plan, unmasking schedule"),
    Word(r"heads[./]choice|heads import choice", "logit filtering, mgen/heads/logit_filter.py"),
    Word(r"(?i)\bparted\b|partedhead", "per-codebook head; comma-separated"),
    Word(r"(?i)stand-?in\b", "proxy", GLOSSARY),
    Word(r"(?i)\bsavings\b", "ablations"),
    Word(r"\bmap head\b", "joint head"),
    Word(r"\.ranks\b|\branks = (True|False)", "has_log_prob"),
    Word(r"\b[Ff]igures?\b", "metric, number", PLOTS),
    Word(r"(?i)\bjudge", "classifier"),
    Word(r"\bunread\b", "unused tail"),
    Word(r"\btwice\s*=|\btwice: (bool|int)", "guided, with guidance"),
    Word(r"\.advance\(|def advance\b", "carry-only step"),
    Word(r"lay_out", "optimize_layout"),
    Word(r"\bslots\b", "prefix length", CHANNELS + HITA + OFFICIAL),
    Word(r"def finish\b|head\.finish\b", "output projection", ("mgen/evaluation/*",)),
    Word(r"def look\b|\._?look\(", "encode_features"),
    Word(r"keep_one|minimum_per_step|count_rounding|\bprecision: (mar|halton|float)", "counts"),
    Word(
        r"reuse\.local|\blocal: \d|any_local|evaluates_locally|\b[Ll]ocal (step|evaluation)s?\b|\bclass Local\b",
        "cached step",
    ),
    Word(r"\bclass Memory\b|\bMemory\(|KeyValues|LiveKeys|nn[./]memory", "Cache, KV cache"),
    Word(r"\.apart\(|\bunit\.fold\(|\b(unit|windows)\.spread\(", "to_windows, to_tokens, expand"),
    Word(r"draw_noise|sampler\.draw\(", "make_noise"),
    Word(
        r"head_kind|pivot_spec|mask_unit|unit_spec|\bshuffle: \d|\bshuffle=\d",
        "parts of a model: head, first_stage_spec, windows",
    ),
    Word(r"\b(codes|holistic_codes): int|\bcodes=\d|\bcodes: \d", "vocab_size"),
    Word(
        r"--class [A-Z][a-z]|\bmodel: \{class: (?!VQGAN|KL|Llama|Hita|Image|Quantized|TiTok|LDeTok)",
        "a model of configs/models",
        ("tokenizers/*", "tests/*"),
    ),
    Word(r"(?i)network evaluations|--evaluations\b", "forward passes, trials"),
)
SPELLING = (
    Word(
        r"(?i)quantis|initialis|normalis|optimis(?!t)|summaris|recognis|randomis", "American spelling: …ize", OFFICIAL
    ),
    Word(r"(?i)neighbour|colour|behaviour|favour|\bcentre|\bgrey|labell|modell|licence", "American spelling", OFFICIAL),
)
ENGLISH = (
    Word(r"\bis refused\b|\bare refused\b", "raises an error"),
    Word(r"(?i)interrupted\? ", "rerun to resume"),
    Word(r"by heart", "memorization"),
    Word(r"by commas", "comma-separated"),
    Word(r"flatters", "is optimistic"),
    Word(r"so-manieth", "n-th"),
    Word(r"washed out|burnt", "under- or over-saturated"),
    Word(r"cannot be had|can't be had", "can't be computed"),
    Word(r"Read are|What excludes each other", "Supported formats; Incompatible settings"),
    Word(r"would have to lend", "too few tokens are left for the last step"),
    Word(r"pivots of their own|null rows? that|takes null rows", "nested first stages; the unconditional pass"),
    Word(r"(?i)sureness", "uncertainty"),
    Word(r"an axis of its own", "a separate axis"),
)

FOLDERS = ("mgen", "samplers", "tokenizers", "configs", "docs", "tests", "tools", ".ci")
SUFFIXES = (".py", ".yaml", ".md", ".toml", "")
# Records of runs and of official code, kept as they were written.
RECORDS = ("tests/golden/sets/*", "docs/report/*", "mgen/zoo/embedded/*", "*/__pycache__/*", "tests/unit/test_docs.py")


def files() -> list[tuple[str, str]]:
    """All texts of the project: path from the root, contents."""
    paths = [
        p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*")) if p.is_file() and p.suffix in SUFFIXES
    ]
    paths += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "pyproject.toml")]
    named = ((p.relative_to(ROOT).as_posix(), p) for p in paths)
    return [
        (name, p.read_text(encoding="utf-8"))
        for name, p in named
        if not any(fnmatch.fnmatch(name, pattern) for pattern in RECORDS)
    ]


TEXTS = files()


@pytest.mark.parametrize("word", NAMES + SPELLING + ENGLISH, ids=lambda word: word.pattern)
def test_old_words_are_gone(word: Word) -> None:
    found = []
    for name, text in TEXTS:
        if not any(fnmatch.fnmatch(name, pattern) for pattern in word.allowed):
            for number, line in enumerate(text.splitlines(), 1):
                if match := re.search(word.pattern, line):
                    found.append(f"{name}:{number}: {match[0]!r} → {word.instead}")
    assert not found, f"found {len(found)} times:\n" + "\n".join(found[:40])
