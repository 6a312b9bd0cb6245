"""diffusers knows mgen's pipelines: after `import mgen`, DiffusionPipeline.from_pretrained loads a folder or a model of the hub.

model_index.json names the class "MaskedPipeline", which diffusers looks up in its own module. That module gets a class of its own with
`__getattr__` for this one name, as the documentation of Python describes it ("Customizing module attribute access"). Of the hub's models
diffusers also wants to know their library, in a table that mgen is entered in. diffusers is not imported for that: if it isn't there
yet, a finder waits for its import.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `import mgen` is fast
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec

NAME = "MaskedPipeline"


def register() -> None:
    """Enter mgen in diffusers, now or when diffusers is imported."""
    waiting = {}
    for module, enter in _ENTRIES.items():
        if module in sys.modules:
            enter(sys.modules[module])
        else:
            waiting[module] = enter
    if waiting and not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting(waiting))


class _Waiting:
    """An entry of sys.meta_path that finds nothing itself: what others find for these modules is changed when it has been imported."""

    def __init__(self, entries: dict[str, Callable[[ModuleType], None]]) -> None:
        self.entries = entries

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None", target: ModuleType | None = None
    ) -> "ModuleSpec | None":
        if fullname not in self.entries:
            return None
        found = (
            f.find_spec(fullname, path, target) for f in sys.meta_path if f is not self and hasattr(f, "find_spec")
        )
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                if enter := self.entries.pop(fullname, None):
                    enter(sys.modules[fullname])  # by which diffusers has replaced itself
                if not self.entries and self in sys.meta_path:
                    sys.meta_path.remove(self)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _add_name(library: ModuleType) -> None:
    """`diffusers.MaskedPipeline` is mgen's."""
    usual = type(library)

    class WithPipeline(usual):  # type: ignore[misc,valid-type]
        """The module, with one more name."""

        def __getattr__(self, name: str) -> object:
            if name == NAME:
                import mgen

                return mgen.MaskedPipeline
            if hasattr(usual, "__getattr__"):
                return usual.__getattr__(self, name)
            raise AttributeError(f"module {library.__name__!r} has no attribute {name!r}")

    if usual.__name__ != WithPipeline.__name__:
        library.__class__ = WithPipeline


def _add_library(loading: ModuleType) -> None:
    """mgen's parts are saved and loaded as those of diffusers."""
    methods = ["save_pretrained", "from_pretrained"]
    loading.LOADABLE_CLASSES.setdefault("mgen", {"ModelMixin": methods, "SchedulerMixin": methods})


_ENTRIES: dict[str, Callable[[ModuleType], None]] = {
    "diffusers": _add_name,
    "diffusers.pipelines.pipeline_loading_utils": _add_library,
}
