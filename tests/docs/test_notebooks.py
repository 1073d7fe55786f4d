"""The notebooks run from top to bottom, as Jupyter runs them."""

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.py"))

# What takes the place of a notebook's parameters, so that it runs for seconds.
SHORT = {
    "founding_example": "IMAGES = 320",
    "batch_64_times_too_big": "FITS, BATCH, EPOCHS = 4, 32, 2",
    "speech_with_ctc": "RECORDINGS, BATCH, SIZE, EPOCHS = 64, 32, 12, 2",
}

# Jupyter's own warnings, of where its files will be and of event loops.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """One kernel for all notebooks: to start one and import Keras takes as long as a notebook."""
    folder = str(tmp_path_factory.mktemp("jupyter"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IPYTHONDIR", *(f"JUPYTER_{n}_DIR" for n in ("CONFIG", "DATA", "RUNTIME"))):
            patch.setenv(name, folder)
        client = NotebookClient(
            nbformat.v4.new_notebook(), timeout=150, shutdown_kernel="immediate"
        )
        with client.setup_kernel(cwd=folder):
            yield client


@pytest.mark.thorough
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, client):
    notebook = client.nb = jupytext.read(path)
    place = next(i for i, cell in enumerate(notebook.cells) if is_of_parameters(cell))
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(SHORT[path.stem]))
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))  # what the last one left
    for index, cell in enumerate(notebook.cells):
        client.execute_cell(cell, index)  # raises what the cell raises


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_a_page_of_the_site(path):
    assert (ROOT / "docs/notebooks" / f"{path.stem}.md").exists()
    assert f"notebooks/{path.stem}\n" in (ROOT / "docs/index.md").read_text(encoding="utf-8")


def test_the_founding_lines_stand_in_the_notebook():
    text = (ROOT / "notebooks/founding_example.py").read_text(encoding="utf-8")
    for line in (
        "from tensorflow_ranger.python import ranger_optimizer",
        "optimizer = ranger_optimizer.RangerOptimizer(learning_rate=0.001, momentum=0.9)",
        "model.fit(x_train, y_train, epochs=10, batch_size=32)",
    ):
        assert line in text


def is_of_parameters(cell):
    return "parameters" in cell.metadata.get("tags", [])
