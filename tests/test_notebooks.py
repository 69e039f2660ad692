"""The notebooks: run from beginning to end, they print what is committed. ``python -m tests.test_notebooks`` writes them anew."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "analysis" / "notebooks").glob("*.ipynb"))


def executed(path: Path) -> nbformat.NotebookNode:
    """With its outputs; a kernel of its own, of this interpreter, with this checkout first on its path."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=None, startup_timeout=300, kernel_name="python3", record_timing=False)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("TOKRED_RUN", None)
    client.execute(env=environment)
    return notebook


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """What each cell printed, and how many pictures it drew."""
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    return [
        "".join(one.get("text", "") for one in some) + "*" * sum("image/png" in one.get("data", {}) for one in some)
        for some in outputs
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_is_committed(path):
    assert printed(executed(path)) == printed(nbformat.read(path, as_version=4)), (
        "write it anew: python -m tests.test_notebooks"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_draws(path):
    assert path.stat().st_size < 300_000
    assert sum("*" in one for one in printed(nbformat.read(path, as_version=4))) >= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_neither_warnings_nor_errors(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    kinds = {(one.output_type, one.get("name", "")) for cell in cells for one in cell.outputs}
    assert kinds == {("stream", "stdout"), ("display_data", "")}


if __name__ == "__main__":
    for path in NOTEBOOKS:
        nbformat.write(executed(path), path)
