"""Adapters (LoRA) of a pipeline, by diffusers' names: load_lora_weights, save_lora_weights, fuse_lora, unload_lora_weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LoraBaseMixin

from mgen.data.record import DataRecord
from mgen.generators import Cascade, Generator, build_model
from mgen.generators.adapter_file import FILE, AdapterFile, read_adapter
from mgen.generators.adapters import check_peft
from mgen.pipelines.pretrained import fit_weights
from mgen.utils.errors import MgenError, shown
from mgen.utils.schema import NonNegative, build

PART = "transformer"


@dataclass(frozen=True, kw_only=True)
class Before:
    """What an adapter for other classes replaced: the transformer (the same, if their number is), the names of its classes and its data.

    adapter: that one.
    """

    transformer: Generator | Cascade
    class_names: Sequence[str] | None
    data: DataRecord | None
    adapter: AdapterFile


class LoRAPipeline(LoraBaseMixin):
    """What MaskedPipeline has for adapters of its transformer."""

    _lora_loadable_modules = [PART]
    transformer: Generator | Cascade
    _before_lora: "Before | None" = None

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        adapter_name: str | None = None,
        *,
        scale: float = 1.0,
        **kwargs: Any,
    ) -> None:
        """Load an adapter: a folder or file of `save_lora_weights`, the output of a training with `lora`, or tensors.

        An adapter that was trained for other classes brings their rows and names: the pipeline then has its classes, until the adapter is
        unloaded, and no record of its data.

        Args:
            adapter_name: default: default_0, default_1, … scale: factor of the adapter; 1 as trained, 0 as without it. The new adapter is
                the active one; `set_adapters` makes several active at once.

        Raises:
            MgenError: peft is missing, or the adapter is damaged, of another model or for another tokenizer.
        """
        check_peft()
        build(dict[str, NonNegative], {"scale": scale})
        adapter = read_adapter(pretrained_model_name_or_path_or_dict)
        made = self._fitting(adapter)
        made.load_lora_adapter(adapter, adapter_name=adapter_name, **kwargs)
        if scale != 1.0:
            # As without a scale the new adapter alone is active; the others keep theirs.
            made.set_adapters([made.adapter_names[-1] if adapter_name is None else adapter_name], [scale])
        config: Any = self.config  # type: ignore[attr-defined]
        if made is not self.transformer or self._renamed(adapter.about.class_names):
            data: DataRecord | None = self.data  # type: ignore[attr-defined]
            before = Before(transformer=self.transformer, class_names=config.class_names, data=data, adapter=adapter)
            self._replace(made.eval(), adapter.about.class_names, None)  # the adapter's data are not known
            self._before_lora = self._before_lora or before

    def _renamed(self, names: Sequence[str] | None) -> bool:
        """Whether an adapter for as many classes was trained on others than the pipeline's: it has other names for them."""
        config: Any = self.config  # type: ignore[attr-defined]
        return names is not None and self.transformer.conditional and tuple(names) != tuple(config.class_names or ())

    def add_adapters(self, adapters: Sequence[tuple[str | Path, float]]) -> None:
        """Add adapters, each a folder or file and its factor, to the weights for good: sampling is then as fast as without."""
        for path, scale in adapters:
            self.load_lora_weights(path, scale=scale)
            self.fuse_lora()
            self.unload_lora_weights()

    def _fitting(self, adapter: AdapterFile) -> Generator | Cascade:
        """The transformer that an adapter is for: the pipeline's, or one like it with the adapter's classes and tables."""
        if adapter.about.config is None:
            if adapter.tables:
                raise MgenError(f"{adapter.where} has tables, but doesn't say of which model: it is damaged")
            return self.transformer
        if self.transformer.adapter_names:
            raise MgenError(
                f"{adapter.where} is for a model with other classes: unload the adapters that are loaded first (unload_lora_weights)"
            )
        where = f"{adapter.where}: its model"
        made = build_model(adapter.about.config, f"{where}: ")
        start = fit_weights(made, self.transformer, where)
        if lacking := sorted(start.anew - adapter.tables.keys()):
            raise MgenError(
                f"{adapter.where} is of another model: it lacks {lacking[0]}, which the pipeline's doesn't fit"
            )
        own = made.state_dict()
        for name, value in adapter.tables.items():
            if name not in own or own[name].shape != value.shape:
                raise MgenError(f"{adapter.where}: table {shown(name, 100)} is none of its model: the file is damaged")
        made.load_state_dict(own | dict(adapter.tables))
        tokenizer: Any = self.tokenizer  # type: ignore[attr-defined]
        tokenizer.spec.require(made.tokens, by=f"the model of {adapter.where}")
        return made.to(self.transformer.device, self.transformer.dtype)

    def _replace(
        self, transformer: Generator | Cascade, class_names: Sequence[str] | None, data: DataRecord | None
    ) -> None:
        pipe: Any = self
        if class_names is not None and len(class_names) != transformer.num_classes:
            raise MgenError(
                f"{len(class_names)} class names for {transformer.num_classes} classes: the adapter is damaged"
            )
        pipe.transformer = transformer
        pipe.register_to_config(class_names=None if class_names is None else tuple(class_names))
        pipe.set_data(data)

    def save_lora_weights(self, save_directory: str | Path, adapter_name: str | None = None) -> None:  # type: ignore[override]
        """Write an adapter as pytorch_lora_weights.safetensors into a folder; of several, `adapter_name` says which."""
        before = self._before_lora
        adapter = self.transformer.adapter(adapter_name, tables=() if before is None else sorted(before.adapter.tables))
        if before is not None:
            adapter = replace(adapter, about=before.adapter.about)
        adapter.save(Path(save_directory) / FILE)

    def fuse_lora(self, components: Sequence[str] = (PART,), lora_scale: float = 1.0, **kwargs: Any) -> None:  # type: ignore[override]
        """Add the active adapters to the weights: as fast as without, and for good once they are unloaded."""
        check_peft()
        super().fuse_lora(components=list(components), lora_scale=lora_scale, **kwargs)

    def unfuse_lora(self, components: Sequence[str] = (PART,), **kwargs: Any) -> None:  # type: ignore[override]
        """Take them out again, up to rounding."""
        check_peft()
        super().unfuse_lora(components=list(components), **kwargs)

    def unload_lora_weights(self) -> None:
        """Remove all adapters; what was fused stays. Classes that an adapter brought go with it, unless it was fused."""
        check_peft()
        fused = self.transformer.fused
        self.transformer.unload_lora()
        if self._before_lora is not None and not fused:
            before = self._before_lora
            self._replace(before.transformer, before.class_names, before.data)
        self._before_lora = None
