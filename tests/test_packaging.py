"""What the repository promises as a package: one import name a folder, imports in one direction, whole sdists and wheels."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("methods", "backbones", "sweeps", "analysis")
PACKAGES = tuple(f"tokred.{folder}" for folder in FOLDERS)
PLUGINS = ("tokred.methods", "tokred.backbones")
SHIPPED = ("pyproject.toml", "README.md", "LICENSE", "tokred", *FOLDERS)  # what a build reads


def modules() -> dict[str, Path]:
    """Import name -> file, of all of tokred. ``rglob`` does not enter the links, so a file is there once."""
    files = [path for folder in ("tokred", *FOLDERS) for path in sorted((ROOT / folder).rglob("*.py"))]
    return {import_name(path.relative_to(ROOT)): path for path in files}


def import_name(path: Path) -> str:
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    return name if path.parts[0] == "tokred" else f"tokred.{name}"


def imports(name: str, path: Path, *, on_import: bool = False) -> Iterator[str]:
    """What a file imports, ``from a import b`` as ``a.b``; ``on_import``: without what stands in functions."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        if not (on_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            waiting.extend(ast.iter_child_nodes(node))


def within(target: str, *packages: str) -> bool:
    return any(target == package or target.startswith(f"{package}.") for package in packages)


CORE = {name: path for name, path in modules().items() if not within(name, *PACKAGES)}
SCRIPTS = {path.stem: path for path in sorted(ROOT.glob("*.py"))}


def offences(files: dict[str, Path], forbidden, *, on_import: bool = False) -> list[str]:
    """``module imports target`` for each import that ``forbidden`` holds of."""
    found = {
        f"{name} imports {target}"
        for name, path in files.items()
        for target in imports(name, path, on_import=on_import)
        if forbidden(target)
    }
    return sorted(found)


def part(*packages: str) -> dict[str, Path]:
    return {name: path for name, path in modules().items() if within(name, *packages)}


# One import name


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_refuses_its_second_import_name(folder):
    run = subprocess.run([sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode != 0
    assert f"ImportError: import tokred.{folder}, not {folder}" in run.stderr


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_link_to_a_folder_is_relative(folder):
    link = ROOT / "tokred" / folder
    if not link.is_symlink():
        pytest.skip("a checkout without links (core.symlinks=false); an editable install works there all the same")
    assert os.readlink(link) == f"../{folder}"


# Imports in one direction


def test_the_core_imports_no_method_backbone_sweep_or_analysis():
    assert not offences(CORE, lambda target: within(target, *PACKAGES))


def test_methods_and_backbones_import_only_the_core():
    assert not offences(part(*PLUGINS), lambda target: within(target, *PACKAGES))


def test_analysis_imports_only_the_record_and_what_makes_text_plain():
    def forbidden(target):
        return within(target, "tokred") and not within(target, "tokred.record", "tokred.terminal", "tokred.analysis")

    assert not offences(part("tokred.analysis"), forbidden)


def test_analysis_does_not_ask_for_torch_when_imported():
    assert not offences(part("tokred.analysis"), lambda target: within(target, "torch"), on_import=True)


def test_nobody_imports_a_plugin_by_name():
    def forbidden(target):
        return any(target.startswith(f"{plugins}.") for plugins in PLUGINS)

    assert not offences(modules() | SCRIPTS, forbidden)


def test_only_the_sweeps_know_hydra():
    others = {name: path for name, path in (modules() | SCRIPTS).items() if not within(name, "tokred.sweeps")}
    assert not offences(others, lambda target: within(target, "hydra"))


def test_imports_sees_every_form(tmp_path):
    path = tmp_path / "tome.py"
    path.write_text("import a.b as c\nfrom . import evit\nfrom ..tokens import Tokens\ndef f():\n    from d import e\n")
    assert set(imports("tokred.methods.tome", path)) == {"a.b", "tokred.methods.evit", "tokred.tokens.Tokens", "d.e"}
    assert "d.e" not in set(imports("tokred.methods.tome", path, on_import=True))


def test_every_imported_distribution_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    declared = {canonical(re.split(r"[<>=!~;\[ ]", line)[0]) for line in project["dependencies"] + extras}
    known = packages_distributions()

    def undeclared(target):
        top = target.partition(".")[0]
        # triton comes with torch's CUDA builds, in the version they need; where it is missing, the core goes another way
        if top in sys.stdlib_module_names or top in {"tokred", "tests", "triton", *SCRIPTS}:
            return False
        return not declared & {canonical(name) for name in known.get(top, [top])}

    tests = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "tests").rglob("*.py"))}
    assert not offences(modules() | SCRIPTS | tests, undeclared)


def canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


# Sdists and wheels


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy to build in and to import from: a build writes beside its source."""
    copy = tmp_path_factory.mktemp("tree")
    for name in SHIPPED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, copy)
    return copy


def build(what: str, source: Path, target: Path) -> Path:
    """The sdist or wheel, built by the setuptools that is here: no pip, no network."""
    if find_spec("setuptools") is None:
        pytest.skip("no setuptools here; pip install -e '.[dev]' brings it")
    code = f"from setuptools import build_meta; build_meta.build_{what}({str(target)!r})"
    run = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (built,) = target.glob("tokred-*")
    return built


@pytest.fixture(scope="module")
def sdist(tree, tmp_path_factory) -> Path:
    return build("sdist", tree, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module", params=["tree", "sdist"])
def wheel(request, tree, sdist, tmp_path_factory) -> Path:
    """Unpacked; built from the tree, and from nothing but the sdist."""
    source = tree
    if request.param == "sdist":
        unpacked = tmp_path_factory.mktemp("unpacked")
        with tarfile.open(sdist) as archive:
            archive.extractall(unpacked, filter="data")
        (source,) = unpacked.iterdir()
    unpacked = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(build("wheel", source, tmp_path_factory.mktemp("built"))) as archive:
        archive.extractall(unpacked)
    return unpacked


def test_the_sdist_has_no_links(sdist):
    with tarfile.open(sdist) as archive:
        assert not [member.name for member in archive if member.issym() or member.islnk()]


def test_the_wheel_has_every_module_config_weight_and_template(wheel):
    held = {path.relative_to(wheel).as_posix() for path in (wheel / "tokred").rglob("*") if path.is_file()}
    wanted = [path for path in modules().values() if (path.parent / "__init__.py").exists()]
    wanted += (ROOT / "sweeps" / "conf").rglob("*.yaml")
    wanted += (ROOT / "backbones" / "weights").iterdir()
    wanted += (ROOT / "analysis" / "report" / "templates").iterdir()
    wanted += (ROOT / "analysis" / "notebooks").glob("*.ipynb")
    shipped = ROOT / "analysis" / "example_run"
    wanted += [shipped / "plan.json", *shipped.glob("cells/*"), *shipped.glob("timings/*")]
    names = {path.relative_to(ROOT).as_posix() for path in wanted}
    names = {name if name.startswith("tokred/") else f"tokred/{name}" for name in names}
    assert not names - held
    assert not held - names


def test_the_wheel_has_one_top_level_name_and_the_licence(wheel):
    assert sorted(path.name for path in wheel.iterdir()) == ["tokred", "tokred-0.1.0.dist-info"]
    assert (wheel / "tokred-0.1.0.dist-info" / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def plugins_found_in(folder: Path) -> str:
    """What a fresh interpreter says that starts there. -S keeps out an editable install, whose finder would lend modules."""
    code = """
import sys, tokred, tokred.methods, tokred.sweeps, tokred.analysis
print(tokred.METHODS.names(), tokred.BACKBONES.names(), tokred.METHODS.broken, tokred.BACKBONES.broken)
print(*[name for name, module in sys.modules.items() if name.startswith("tokred") and not here(module)], file=sys.stderr)
"""
    here = f"here = lambda module: module.__file__.startswith({str(folder)!r})"
    libraries = [entry for entry in sys.path if entry and Path(entry).resolve() != ROOT]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *libraries])}
    command = [sys.executable, "-S", "-c", f"{here}{code}"]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert not run.stderr.splitlines()[-1].strip(), f"not from {folder}: {run.stderr}"
    return run.stdout


@pytest.fixture(scope="module")
def plugins_here() -> str:
    return plugins_found_in(ROOT)


def test_a_bare_clone_finds_every_plugin_without_install(tree, plugins_here):
    assert plugins_found_in(tree) == plugins_here


@pytest.mark.parametrize("wheel", ["sdist"], indirect=True)
def test_the_wheel_finds_every_plugin_without_the_clone(wheel, plugins_here):
    assert plugins_found_in(wheel) == plugins_here


# Nothing of the machine it was written on


def test_no_file_names_a_path_or_a_package_index_of_a_machine():
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    git = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True) if shutil.which("git") else None
    if git is None or git.returncode:
        pytest.skip("not a git checkout")
    # written such that they do not match this file
    machine = re.compile(r"(?<![\w./~-])/(?:work|root|home|Users)/[\w.]|" + re.escape(f"{ROOT}/"))
    index = re.compile(r"pypi\.|pythonhoste[d]|download\.pytorch|registry\.npm|deb\.debian|index[-_]ur[l]")
    found = []
    for name in filter(None, git.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file():  # a link to a folder, or removed and not committed
            continue
        content = path.read_bytes()
        lines = [] if b"\0" in content else content.decode("utf-8", errors="replace").splitlines()
        found += [f"{name}: {line.strip()[:160]}" for line in lines if machine.search(line) or index.search(line)]
    assert not found
