"""Named plugins: a registry of methods and one of backbones.

Built-in plugins are the modules of ``tokred.methods`` and ``tokred.backbones``; those of other packages come by entry points
of the same two names; a loose file by ``load_file``. All are loaded at the first look-up. One that does not load is listed
with its error and breaks nothing else.
"""

import difflib
import importlib
import importlib.util
import pkgutil
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

Plugin = TypeVar("Plugin", bound=type)
FILE_PLUGIN = "tokred_plugin_"  # begins the names of modules that are loose files


class Registry:
    """Names to classes."""

    def __init__(self, kind: str):
        self.kind = kind
        self.broken: dict[str, str] = {}  # plugin that did not load -> its error
        self._classes: dict[str, Any] = {}
        self._loaded = False
        # by thread: what a plugin asks for while it loads is answered as far as it is known
        self._loading = threading.local()

    def register(self, name: str) -> Callable[[Plugin], Plugin]:
        """Class decorator. Raises ValueError where another class has the name."""

        def add(cls: Plugin) -> Plugin:
            known = self._classes.get(name)
            if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(
                    f"{self.kind} has the name {name!r} twice: in {known.__module__} and in {cls.__module__}; rename one"
                )
            cls.name = name  # type: ignore[attr-defined]  # methods and backbones have it
            self._classes[name] = cls
            return cls

        return add

    def names(self) -> list[str]:
        self._load()
        return sorted(self._classes)

    def __contains__(self, name: str) -> bool:
        self._load()
        return name in self._classes

    def __getitem__(self, name: str) -> Any:
        self._load()
        if name in self._classes:
            return self._classes[name]
        raise ValueError(unknown(self.kind, name, self._classes, broken=self.broken))

    def __iter__(self) -> Iterator[Any]:
        self._load()
        return iter([self._classes[name] for name in sorted(self._classes)])

    def _load(self) -> None:
        """Threads that ask at once each load all, which is nothing new a second time; were they to wait, two plugins that ask for
        others could wait for each other."""
        if self._loaded or getattr(self._loading, "now", False):
            return
        self._loading.now = True
        try:
            self._load_all()
        finally:
            self._loading.now = False
        self._loaded = True

    def _load_all(self) -> None:
        package = importlib.import_module(f"tokred.{self.kind}")
        for module in pkgutil.iter_modules(package.__path__):
            self._try(f"tokred.{self.kind}.{module.name}", importlib.import_module)
        for point in entry_points(group=f"tokred.{self.kind}"):
            self._try(f"{point.name} ({point.value})", partial(self._add_entry, point))

    def _try(self, label: str, load: Callable[[str], Any]) -> None:
        try:
            load(label)
        except Exception as error:  # a plugin is other people's code: whatever it raises is its own affair
            self.broken[label] = f"{type(error).__name__}: {error}"

    def _add_entry(self, point: Any, label: str) -> None:
        """The class may have registered itself on import; else it gets the entry point's name."""
        cls = point.load()
        if isinstance(cls, type) and cls not in self._classes.values():
            self.register(point.name)(cls)


def load_file(path: str | Path) -> None:
    """Runs a plugin file, so that what it registers is known. Raises ValueError where it cannot be run.

    All others are loaded first, so that a name taken twice is this file's error and never replaces a built-in.
    """
    METHODS.names(), BACKBONES.names()
    path = Path(path).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"no plugin file at {path}; `plugins` takes paths of Python files")
    name = f"{FILE_PLUGIN}{path.stem}_{zlib.crc32(str(path).encode()):08x}"  # files of one name stay apart
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"plugin {path} did not load: {type(error).__name__}: {error}") from error


def loaded_files() -> list[Path]:
    """Plugin files whose classes are known here, in the order they were run: for another process, which is to know them too."""
    known = {cls.__module__ for registry in (METHODS, BACKBONES) for cls in registry}
    files = {name: module for name, module in sys.modules.items() if name.startswith(FILE_PLUGIN) and name in known}
    return [Path(str(module.__file__)) for module in files.values()]


def unknown(
    what: str, name: str, known: Any, broken: dict[str, str] | None = None, *, shown: list[str] | None = None
) -> str:
    """One line for a name that is not there: the nearest, then all (or what is ``shown`` in their place)."""
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    failed = "".join(f" {label} did not load: {error}." for label, error in (broken or {}).items())
    return f"no {name!r} in {what}.{hint} There are: {', '.join(shown or sorted(known))}.{failed}"


METHODS = Registry("methods")
BACKBONES = Registry("backbones")
