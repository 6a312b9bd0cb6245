"""What users of diffusers expect of any pipeline beside its call: components, moving, saving, sharing."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from diffusers import DiffusionPipeline
from diffusers.configuration_utils import FrozenDict
from tqdm import tqdm

from mgen.utils.class_names import by_id
from mgen.utils.devices import check_device
from mgen.utils.errors import MgenError, shown
from mgen.utils.files import check_writable, write_text
from mgen.utils.hub import model_card, push
from mgen.utils.modeling import check_save_options
from mgen.utils.reading import check_path

CODE_FILE = "pipeline.py"  # diffusers runs it if it is asked to, in a process that doesn't know mgen
CODE = '''"""Lets diffusers load this folder where mgen is installed but not imported:

    DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
"""

from mgen import MaskedPipeline  # noqa: F401
'''


class DiffusersPipeline(DiffusionPipeline):
    """A DiffusionPipeline whose errors are MgenErrors, and whose saved folders load in mgen and in diffusers."""

    @property
    def components(self) -> dict[str, Any]:
        """All arguments of the constructor: `MaskedPipeline(**pipe.components)` shares the networks."""
        _, options = self._get_signature_keys(self)
        return {**super().components, **{name: self.config[name] for name in options if name in self.config}}

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move and convert all networks: `pipe.to("cuda")`, `pipe.to("cuda", torch.bfloat16)`, `pipe.to(torch.float16)`.

        diffusers warns of fp16 on a CPU, where these networks work.

        Raises:
            MgenError: a device that is not here, or that holds no numbers, such as "meta".
        """
        given = [check_device(value) if isinstance(value, str | torch.device) else value for value in args]
        if kwargs.get("device") is not None:
            kwargs["device"] = check_device(kwargs["device"])
        return super().to(*given, **{"silence_dtype_warnings": True, **kwargs})

    def progress_bar(
        self, iterable: Iterable[Any] | None = None, total: int | None = None, disable: bool = False
    ) -> Any:
        """The bar of a run; `set_progress_bar_config` changes it for all calls."""
        usual = {"unit": "step", "desc": "sampling", "leave": False, **getattr(self, "_progress_bar_config", {})}
        return tqdm(iterable, total=total, **(usual | ({"disable": True} if disable else {})))

    @property
    def interrupt(self) -> bool:
        """Whether a callback has ended the last run early, by setting `_interrupt`."""
        return bool(getattr(self, "_interrupt", False))

    # -- saving and sharing --------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write the parts, model_index.json and pipeline.py into a folder.

        Args:
            variant: of the names of weight files, such as "fp16". max_shard_size: of a weight file, such as "1GB".
            push_to_hub: then upload them; keyword arguments as of the method of this name, `repo_id` by default the folder's name.

        Raises:
            MgenError: the folder cannot be written.
        """
        check_writable(check_path(save_directory, "save_directory"))
        saved = check_save_options(safe_serialization, variant, max_shard_size)
        known: FrozenDict = self._internal_dict  # type: ignore[has-type]
        # diffusers notes the path a pipeline was loaded from; keep users' folders out of saved ones.
        saved_as = {k: v for k, v in known.items() if k != "_name_or_path"}
        if names := saved_as.get("class_names"):
            saved_as["class_names"] = by_id(names)
        try:
            self._internal_dict = FrozenDict(saved_as)
            super().save_pretrained(str(save_directory), **saved)
        finally:
            self._internal_dict = known
        write_text(Path(save_directory) / CODE_FILE, CODE)
        if push_to_hub:
            name = kwargs.pop("repo_id", None) or Path(os.path.abspath(save_directory)).name
            self.push_to_hub(name, safe_serialization=safe_serialization, variant=variant, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
    ) -> Any:
        """Upload the pipeline to a model on the hub, with a short README.md if it has none; the arguments are those of diffusers."""
        name = type(self).__name__

        def save(folder: Path) -> None:
            self.save_pretrained(folder, safe_serialization=safe_serialization, variant=variant)

        return push(
            save,
            self._card(repo_id),
            repo_id,
            commit_message=commit_message or f"Upload {name}",
            private=private,
            token=token,
            create_pr=create_pr,
            subfolder=subfolder,
        )

    def _card(self, repo: object) -> str:
        parts = ", ".join(
            f"{part} `{type(getattr(self, part)).__name__}`" for part in self._get_signature_keys(self)[0]
        )
        about = f"A `{type(self).__name__}` of mgen, a toolkit for masked generative image synthesis, with {parts}."
        names = self.config.get("class_names") or ()
        if names:
            about += f"\n\n{len(names)} classes: {', '.join(names[:100])}{' …' if len(names) > 100 else ''}."
        code = f'import mgen\n\npipe = mgen.load("{repo}")\npipe([{"0" if self.conditional else "None"}], seed=0).images[0]'
        return model_card(str(repo).rpartition("/")[2], about, code)

    # -- what sampling cannot do ---------------------------------------------------------------------------------------

    def enable_model_cpu_offload(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported, as of the other two: it moves a network when its `forward` is called, and sampling calls its parts."""
        self._no_offload("enable_model_cpu_offload")

    def enable_sequential_cpu_offload(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported, see `enable_model_cpu_offload`."""
        self._no_offload("enable_sequential_cpu_offload")

    def enable_group_offload(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported, see `enable_model_cpu_offload`."""
        self._no_offload("enable_group_offload")

    def _no_offload(self, name: str) -> NoReturn:
        raise MgenError(
            f"{name} is not supported, since sampling calls the parts of a network: save memory with pipe.to(torch.bfloat16), a smaller "
            f"batch_size, or pipe.tokenizer.to({shown('cpu')}) before a call with output_type='tokens'"
        )
