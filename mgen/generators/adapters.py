"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) of the trunk's linear layers, by peft and as diffusers has them.

model.add_lora(rank=8)                         # before training: the layers get adapters, everything else is frozen
model.save_lora_adapter("lora")                # lora/pytorch_lora_weights.safetensors
model.load_lora_adapter("lora")                # also set_adapters, fuse_lora, unfuse_lora, unload_lora
"""

import copy
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from diffusers.loaders import PeftAdapterMixin
from torch import Tensor, nn

from mgen.generators.adapter_file import FILE, AdapterFile, read_adapter
from mgen.utils.errors import MgenError, first_line, shown
from mgen.utils.schema import Positive, Rate, Size, build

A, B = ".lora_A.weight", ".lora_B.weight"


def check_peft() -> None:
    """MgenError without the package peft."""
    from diffusers.utils import is_peft_available

    if not is_peft_available():
        raise MgenError('LoRA needs the package peft: pip install "mgen[lora]"')


class Adapters(PeftAdapterMixin):
    """diffusers' methods for adapters, strict: an adapter of another model raises an error, and so does one that is damaged."""

    def adaptable(self) -> tuple[str, nn.Module, tuple[str, ...]]:
        """Name of the part that takes adapters, the part, and what the names of its layers end with that get them by default."""
        raise NotImplementedError

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """Of the adapters that are loaded."""
        return tuple(getattr(self, "peft_config", None) or ())

    def add_lora(
        self,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        targets: Sequence[str] = (),
        dropout: float = 0.0,
        adapter_name: str = "default",
    ) -> None:
        """Give layers of the trunk a new adapter, which changes nothing yet, and freeze everything else.

        Args:
            rank: r. alpha: the adapter's product is scaled by alpha / rank. dropout: of its input, in training.
            targets: ends of the names of linear layers, such as "attn.qkv"; none: those of attention and MLP.

        Raises:
            MgenError: peft is missing, a target is no linear layer of the trunk, a number is out of range.
        """
        check_peft()
        for kind, name, value in ((Size, "rank", rank), (Positive, "alpha", alpha), (Rate, "dropout", dropout)):
            build(dict[str, kind], {name: value}, "lora.")  # type: ignore[valid-type]
        self.check_adapter_name(adapter_name)
        names = self.adaptable_layers(targets)
        widest = min(min(layer.weight.shape) for name, layer in self._linear_layers() if name in names)
        if rank > widest:
            raise MgenError(
                f"lora.rank is {rank}: a layer of the trunk has {widest} numbers on one side, use at most that"
            )
        from peft import LoraConfig

        settings: Any = {
            "r": rank,
            "lora_alpha": alpha,
            "lora_dropout": dropout,
        }  # peft takes any number for lora_alpha
        self.add_adapter(LoraConfig(**settings, target_modules=sorted(names)), adapter_name)

    def adaptable_layers(self, targets: Sequence[str] = ()) -> list[str]:
        """Names of the linear layers that `targets` mean, see `add_lora`; MgenError for a target that means none."""
        names = [name for name, _ in self._linear_layers()]
        found: dict[str, None] = {}
        for target in targets or self.adaptable()[2]:
            some = [name for name in names if f".{name}".endswith(f".{target}")]
            if not some and targets:
                ends = sorted({re.sub(r"^.*\.\d+\.", "", name) for name in names})
                raise MgenError(
                    f"lora.targets has {shown(target)}, but no linear layer of the trunk ends so: there are {', '.join(ends)}"
                )
            found |= dict.fromkeys(some)
        if not found:
            raise MgenError("this trunk has no linear layers that adapters are for: it has no blocks")
        return list(found)

    def _linear_layers(self) -> Iterator[tuple[str, nn.Linear]]:
        """The trunk's linear layers, those with adapters too, by name."""
        prefix, part, _ = self.adaptable()
        for name, module in part.named_modules():
            layer = getattr(module, "base_layer", module)
            if isinstance(layer, nn.Linear) and ".lora_" not in name and not name.endswith("base_layer"):
                yield f"{prefix}.{name}", layer

    def check_adapter_name(self, name: object) -> None:
        """MgenError for what is no name of a new adapter."""
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]{0,99}", name):
            raise MgenError(f"adapter_name is {shown(name)}: expected letters, digits, _ and -")
        if name in self.adapter_names:
            raise MgenError(f"adapter_name is {name!r}, which is loaded already: choose another, or unload it first")

    def load_lora_adapter(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Tensor] | AdapterFile,
        prefix: str | None = "transformer",
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load an adapter that `save_lora_adapter`, a pipeline or a training wrote.

        Args:
            pretrained_model_name_or_path_or_dict: its folder, file or tensors. prefix: of its tensors' names, if they have one.
            adapter_name: default: default_0, default_1, … Others as of diffusers.

        Raises:
            MgenError: peft is missing; the file is damaged, or of another model: the message names the first tensor that does not fit.
        """
        check_peft()
        adapter = read_adapter(pretrained_model_name_or_path_or_dict, prefix)
        name = kwargs.pop("adapter_name", None)
        if name is None:
            taken = self.adapter_names
            name = next(n for i in range(len(taken) + 1) if (n := f"default_{i}") not in taken)
        if not hotswap:
            self.check_adapter_name(name)
        ranks = self._ranks(adapter)
        settings = adapter.peft_settings(ranks)
        kwargs |= {"adapter_name": name, "metadata": settings, "hotswap": hotswap, "prefix": None}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are meant
                super().load_lora_adapter(dict(adapter.layers), **kwargs)
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise MgenError(f"{adapter.where} can't be loaded: {first_line(error)}") from error

    def _ranks(self, adapter: AdapterFile) -> dict[str, int]:
        """Rank of every layer's adapter; MgenError unless all tensors are those of adapters of this model's layers."""
        layers = dict(self._linear_layers())
        names = {name.removesuffix(end) for name in adapter.layers for end in (A, B) if name.endswith(end)}
        whole = {name + end for name in names for end in (A, B)}
        if odd := sorted(whole ^ adapter.layers.keys()):
            raise MgenError(
                f"{adapter.where}: {shown(odd[0], 100)} is missing or no part of an adapter of linear layers"
            )
        ranks = {}
        for name in sorted(names):
            if name not in layers:
                raise MgenError(f"{adapter.where} is of another model: this one has no layer {shown(name, 100)}")
            first, second = adapter.layers[name + A], adapter.layers[name + B]
            wide, tall = layers[name].in_features, layers[name].out_features
            rank = first.shape[0] if first.ndim else 0
            if rank < 1 or first.shape != (rank, wide) or second.shape != (tall, rank):
                raise MgenError(
                    f"{adapter.where} is of another model: layer {name} takes {wide} numbers and makes {tall}, its adapter has the shapes "
                    f"{tuple(first.shape)} and {tuple(second.shape)}"
                )
            ranks[name] = rank
        return ranks

    def save_lora_adapter(
        self, save_directory: str | Path, adapter_name: str | None = None, weight_name: str | None = None, **kwargs: Any
    ) -> None:
        """Write an adapter as pytorch_lora_weights.safetensors into a folder; of several, `adapter_name` says which."""
        self.adapter(adapter_name).save(Path(save_directory) / (weight_name or FILE))

    def adapter(self, name: str | None = None, *, tables: Sequence[str] = ()) -> AdapterFile:
        """An adapter that is loaded; of several, `name` says which. tables: names of tensors to go with it, that were trained too."""
        check_peft()
        names = self.adapter_names
        if name is None and len(names) == 1:
            name = names[0]
        if name not in names:
            have = f"there are {', '.join(names)}" if names else "none is loaded"
            raise MgenError(f"adapter_name is {shown(name)}, but {have}: give the name of one")
        from peft.utils import get_peft_model_state_dict

        assert isinstance(self, nn.Module)
        config = self.peft_config[name]
        layers = {k: v.detach() for k, v in get_peft_model_state_dict(self, adapter_name=name).items()}
        own = self.state_dict()
        return AdapterFile(
            layers=layers,
            alpha=float(config.lora_alpha),
            alphas={k: float(v) for k, v in config.alpha_pattern.items()},
            tables={k: own[k].detach() for k in tables},
        )

    def merged(self) -> Self:
        """A copy without adapters, whose weights hold them."""
        made = copy.deepcopy(self)
        made.fuse_lora()
        made.unload_lora()
        return made

    def unload_lora(self) -> None:
        """Remove all adapters; what was fused stays in the weights."""
        check_peft()
        if self.adapter_names:
            super().unload_lora()

    @property
    def fused(self) -> bool:
        """Whether adapters are fused into the weights and still loaded."""
        assert isinstance(self, nn.Module)
        return any(bool(getattr(module, "merged_adapters", None)) for module in self.modules())
