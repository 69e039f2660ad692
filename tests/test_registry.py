"""Names, discovery and what is said when a plugin or a name is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

import tokred
from tokred import BACKBONES, METHODS, Method
from tokred.registry import Registry, load_file

FILE = """
from tokred import METHODS, Method

@METHODS.register("{name}")
class Mine(Method):
    def assign(self, tokens, attention, keep):
        raise NotImplementedError
"""


@pytest.fixture
def own_registry(monkeypatch):
    """What a test registers is gone after it."""
    METHODS.names()
    monkeypatch.setattr(METHODS, "_classes", dict(METHODS._classes))


def named(name: str, module: str) -> type:
    return type(name, (Method,), {"__module__": module, "assign": lambda self, tokens, attention, keep: None})


def test_every_module_of_methods_and_backbones_is_there_and_none_is_broken():
    assert {"evit", "none", "random_drop", "random_merge", "tome", "top_k", "vid_tldr"} <= set(tokred.list_methods())
    assert {"mini", "timm_vit", "umt"} <= set(BACKBONES.names())
    assert not METHODS.broken and not BACKBONES.broken


def test_a_class_learns_its_name():
    assert METHODS["tome"].name == "tome"
    assert METHODS["tome"]().name == "tome"


def test_names_are_sorted():
    assert METHODS.names() == sorted(METHODS.names())
    assert tokred.list_backbones() == sorted(tokred.list_backbones())


def test_lists_take_shell_patterns():
    assert tokred.list_methods("random_*") == ["random_drop", "random_merge"]
    assert tokred.list_backbones("umt*_224") == ["umt_base_patch16_224", "umt_large_patch16_224"]


def test_an_unknown_method_is_refused_with_the_nearest_and_the_whole_list():
    with pytest.raises(
        ValueError, match="no 'tom' in methods. Did you mean 'tome'\\? There are: ats, .*evit, .*random_drop"
    ) as error:
        METHODS["tom"]
    assert "\n" not in str(error.value)


def test_an_unknown_backbone_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'umt_base_patch16_224'"):
        tokred.create_backbone("umt_base_patch16")


def test_an_unknown_timm_model_is_refused_with_some_there_are():
    with pytest.raises(
        ValueError,
        match="timm has no plain VisionTransformer 'vit_tini_patch16_224'; near it are timm/vit_tiny_patch16_224",
    ):
        tokred.create_backbone("timm/vit_tini_patch16_224")


def test_a_name_that_is_taken_is_refused_with_both_places():
    registry = Registry("methods")
    registry.register("same")(named("A", "package_a"))
    with pytest.raises(
        ValueError, match="methods has the name 'same' twice: in package_a and in package_b; rename one"
    ):
        registry.register("same")(named("A", "package_b"))


def test_a_module_that_is_run_again_takes_its_own_name_again():
    registry = Registry("methods")
    first, again = named("A", "package_a"), named("A", "package_a")
    registry.register("same")(first)
    assert registry.register("same")(again) is again


def test_a_file_is_a_plugin(tmp_path, own_registry):
    path = tmp_path / "mine.py"
    path.write_text(FILE.format(name="mine"))
    load_file(path)
    assert METHODS["mine"].__qualname__ == "Mine"


def test_a_plugin_file_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no plugin file at .*nowhere.py; `plugins` takes paths of Python files"):
        load_file("nowhere.py")


def test_a_plugin_file_that_raises_is_refused_with_its_error(tmp_path):
    path = tmp_path / "raises.py"
    path.write_text("import no_such_library\n")
    with pytest.raises(
        ValueError, match=r"raises.py did not load: ModuleNotFoundError: No module named 'no_such_library'"
    ):
        load_file(path)


def test_a_plugin_file_cannot_take_a_name_that_is_taken(tmp_path, own_registry):
    path = tmp_path / "mine.py"
    path.write_text(FILE.format(name="tome"))
    with pytest.raises(ValueError, match="the name 'tome' twice: in tokred.methods.tome and in tokred_plugin_mine"):
        load_file(path)
    assert METHODS["tome"].__module__ == "tokred.methods.tome"


def test_a_plugin_file_cannot_take_a_built_ins_name_before_the_built_ins_are_loaded(tmp_path):
    """In a process of its own: nothing has asked the registry for a name yet."""
    path = tmp_path / "mine.py"
    path.write_text(FILE.format(name="tome"))
    code = f"from tokred.registry import load_file; load_file({str(path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert "the name 'tome' twice: in tokred.methods.tome and in tokred_plugin_mine" in done.stderr


def test_an_unknown_name_comes_with_the_plugins_that_did_not_load(monkeypatch):
    METHODS.names()
    monkeypatch.setattr(METHODS, "broken", {"other_package:Mine": "ImportError: no such library"})
    with pytest.raises(ValueError, match="other_package:Mine did not load: ImportError: no such library"):
        METHODS["mine"]


THREADS = """
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from tokred.registry import BACKBONES

barrier = Barrier(8)

def names(_):
    barrier.wait()
    return len(BACKBONES.names())

with ThreadPoolExecutor(8) as pool:
    print(*set(pool.map(names, range(8))))
"""


def test_threads_that_ask_first_all_get_all_names():
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(BACKBONES.names()))]
