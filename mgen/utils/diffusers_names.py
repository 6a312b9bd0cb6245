"""diffusers finds mgen's pipeline by its name: after `import mgen`, DiffusionPipeline.from_pretrained(folder) works.

model_index.json names the class "MaskedPipeline", which diffusers looks up in its own module. That module gets a class of its own with
`__getattr__` for this one name, as the documentation of Python describes it ("Customizing module attribute access"). diffusers is not
imported for that: if it isn't there yet, a finder waits for its import.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `import mgen` is fast
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec

LIBRARY, NAME = "diffusers", "MaskedPipeline"


def add_pipeline() -> None:
    """Make `diffusers.MaskedPipeline` mgen's, now or when diffusers is imported."""
    if LIBRARY in sys.modules:
        _add_name(sys.modules[LIBRARY])
    elif not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


class _Waiting:
    """An entry of sys.meta_path that finds nothing itself; what others find for diffusers gets the name when it has been imported."""

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None", target: ModuleType | None = None
    ) -> "ModuleSpec | None":
        if fullname != LIBRARY:
            return None
        found = (
            f.find_spec(fullname, path, target) for f in sys.meta_path if f is not self and hasattr(f, "find_spec")
        )
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                _add_name(sys.modules[LIBRARY])  # which diffusers has replaced by a lazy module

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _add_name(library: ModuleType) -> None:
    usual = type(library)

    class WithPipeline(usual):  # type: ignore[misc,valid-type]
        """The module, with one more name."""

        def __getattr__(self, name: str) -> object:
            if name == NAME:
                import mgen

                return mgen.MaskedPipeline
            if hasattr(usual, "__getattr__"):
                return usual.__getattr__(self, name)
            raise AttributeError(f"module {LIBRARY!r} has no attribute {name!r}")

    if usual.__name__ != WithPipeline.__name__:
        library.__class__ = WithPipeline
