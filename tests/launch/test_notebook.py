"""The notebook: executed as it is, on the CPU, and committed without what an execution leaves."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "launch" / "clir_jax_colab.ipynb"


def _cells(kind):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind]


def test_it_is_committed_without_outputs():
    cells = _cells("code")
    assert [(cell["outputs"], cell["execution_count"]) for cell in cells] == [([], None)] * len(
        cells
    )
    assert all("".join(cell["source"]).strip() for cell in cells)
    assert len(_cells("markdown")) >= 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter
def test_it_runs_from_top_to_bottom(tmp_path):
    import nbclient
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    parameters.source += f"\nRUN = {str(tmp_path / 'run')!r}\nSTEPS = 20\n"
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    patience = {"timeout": 1200, "startup_timeout": 600}  # on a busy machine
    nbclient.NotebookClient(notebook, resources=resources, **patience).execute()
    told = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = "".join(output.get("text", "") for output in told)
    assert texts.count("the same passages: True") == 2
    kinds = [kind for output in told for kind in output.get("data", {})]
    assert kinds.count("image/png") == 2
    assert kinds.count("text/html") >= 1
