"""The models of the page: embedded ones and folders, loaded when they are chosen."""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from threading import Lock

from mgen.pipelines.pipeline import MaskedPipeline, load
from mgen.pipelines.saved import INDEX
from mgen.utils.devices import check_device
from mgen.utils.errors import MgenError, shown
from mgen.zoo import DEFAULT, embedded_entries

IN_MEMORY = 2  # models, so that changing back and forth doesn't load them again
IN_TURN = -1  # in place of a class: all classes, one image each, again and again


class Models:
    """Pipelines by name; the last ones used stay in memory.

    Args:
        given: names or folders that are offered first, each loaded once to see that it works. device: where they compute.

    Raises:
        MgenError: a model that is missing or damaged, or a device that can't be used.
    """

    def __init__(self, given: Sequence[str] = (), *, device: str = "auto") -> None:
        self.device = check_device(device)
        inside = [entry.name for entry in embedded_entries() if entry.folder and (entry.folder / INDEX).is_file()]
        self.names = list(dict.fromkeys([*given, DEFAULT, *inside]))
        self._loaded: OrderedDict[str, MaskedPipeline] = OrderedDict()
        self._lock = Lock()
        for name in reversed(list(dict.fromkeys(given))):  # the first one stays in memory
            self.get(name)

    def get(self, name: str) -> MaskedPipeline:
        """The pipeline of that name; MgenError for one that isn't offered, whoever asks."""
        if name not in self.names:
            raise MgenError(f"no model {shown(name)}: choose one from the list")
        with self._lock:
            if name not in self._loaded:
                while len(self._loaded) >= IN_MEMORY:  # before the next one is loaded: never three in memory
                    self._loaded.popitem(last=False)
                self._loaded[name] = load(name, device=self.device).optimize()
            self._loaded.move_to_end(name)
            return self._loaded[name]


def class_choices(pipe: MaskedPipeline) -> list[tuple[str, int]]:
    """Names of the classes and their ids, and "all classes in turn" before them; equal names get their ids. Empty without classes."""
    if not pipe.conditional:
        return []
    often = Counter(pipe.class_names)
    named = [(name if often[name] == 1 else f"{name} ({i})", i) for i, name in enumerate(pipe.class_names)]
    return [("all classes in turn", IN_TURN), *named]


def classes_of(pipe: MaskedPipeline, chosen: int | None, count: int) -> list[int | None]:
    """The class of each of `count` images; None of an unconditional model."""
    if not pipe.conditional:
        return [None] * count
    if chosen is None:
        raise MgenError("no class is chosen: choose one from the list")
    return [i % pipe.transformer.num_classes if chosen == IN_TURN else chosen for i in range(count)]


def about(pipe: MaskedPipeline) -> str:
    """A line on a model: tokens, images, parts, size."""
    net, spec = pipe.transformer, pipe.transformer.tokens
    grid = "×".join(map(str, spec.grid)) if spec.grid else str(spec.length)
    what = {"vector": f"vectors of {spec.channels} numbers", "index": f"ids of {spec.vocab_size}"}
    tokens = what.get(spec.kind, f"tokens of {spec.channels} ids of {spec.vocab_size}")
    size = int(pipe.tokenizer.config.image_size)
    many = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    stages = net.stages()
    parts = [f"trunk {stages[-1].trunk.type_name}", f"head {stages[-1].head.settings['type']}"]
    classes = f"{net.num_classes:,} classes" if pipe.conditional else "no classes"
    kind = ["two stages"] if len(stages) > 1 else []
    first = f"{grid} {tokens}" + (f" + {spec.global_tokens} global" if spec.global_tokens else "")
    return " · ".join([first, f"{size}×{size} pixels", classes, *kind, *parts, f"{many:.3g} M parameters"])
