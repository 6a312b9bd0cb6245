"""Registries: a decorator names a class, settings with `type: NAME` build it. The decorator is the only list of names."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar, cast

from pydantic.dataclasses import is_pydantic_dataclass

from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, check_choice, shown
from mgen.utils.schema import build, schema

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="Configured")
C = TypeVar("C", bound="type[Configured]")


class Choice(NamedTuple, Generic[T]):
    """A registered class and the config to build it with."""

    cls: type[T]
    config: "DataclassInstance"

    def build(self, **parts: object) -> T:
        """An instance; `parts` are what its constructor takes beside the config."""
        make: Callable[..., T] = self.cls
        return make(self.config, **parts)

    @property
    def settings(self) -> Settings:
        """`type` and all settings."""
        return {"type": self.cls.type_name, **dataclasses.asdict(self.config)}


class Registry(Generic[T]):
    """Classes of one kind by name.

    Args:
        kind: what they are, for error messages, such as "trunk".
        package: dotted name of the package or module whose modules register themselves when they are imported.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._classes: dict[str, type[T]] = {}
        self._loaded = False

    def register(self, name: str, config: "type[DataclassInstance]") -> Callable[[C], C]:
        """Decorator: make the class known as `name`; `config` is the schema of its settings; of a plain dataclass one is made."""

        def decorate(cls: C) -> C:
            if name in self._classes:
                raise MgenError(f"{self.kind} {name!r} is registered twice: choose another name")
            cls.Config = config if is_pydantic_dataclass(config) else schema(frozen=_is_frozen(config))(config)
            cls.type_name = name
            self._classes[name] = cast("type[T]", cls)
            return cls

        return decorate

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._load()
        return sorted(self._classes)

    def get(self, name: str) -> type[T]:
        """The class of that name; MgenError with the nearest name if there is none."""
        self._load()
        return self._classes[check_choice(f"{self.kind} type", name, self._classes)]

    def configure(self, settings: Settings, where: str) -> Choice[T]:
        """The class that `type` names and its config; MgenError, naming `where`, for unknown types and keys and values of wrong type."""
        if not isinstance(settings, Mapping) or "type" not in settings:
            raise MgenError(
                f"{where} is {shown(settings)}: expected a mapping with `type`, one of {', '.join(self.names())}"
            )
        cls = self.get(settings["type"])
        own = {key: value for key, value in settings.items() if key != "type"}
        return Choice(cls, build(cls.Config, own, f"{where}."))

    def _load(self) -> None:
        """Import every module of the package once, so that its decorators have run."""
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
            importlib.import_module(f"{self.package}.{module.name}")


def _is_frozen(config: "type[DataclassInstance]") -> bool:
    params: Any = config.__dataclass_params__  # type: ignore[attr-defined]
    return bool(params.frozen)


class Configured:
    """Mixin of registered classes: `settings` gives back what builds the same component again."""

    type_name: ClassVar[str]
    Config: ClassVar["type[DataclassInstance]"]
    config: Any

    @property
    def settings(self) -> Settings:
        """`type` and all settings, as written to config.json."""
        return {"type": self.type_name, **dataclasses.asdict(self.config)}
