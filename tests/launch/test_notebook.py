"""The notebook: executed as it is, on the CPU, and committed without what an execution leaves."""

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

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


@pytest.fixture
def install(tmp_path, monkeypatch):
    """The cell that installs, run with stand-ins for nvidia-smi, pip and what is installed."""
    (cell,) = [c for c in map("".join, (c["source"] for c in _cells("code"))) if '"pip"' in c]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.py").touch()
    monkeypatch.chdir(tmp_path)

    def run(runtime, smi=None, there=()):
        asked = []

        def version(package):
            if package in there:
                return "1.0"
            raise importlib.metadata.PackageNotFoundError(package)

        def stand_in(command, **options):
            assert options.pop("check") is True
            if command == ["nvidia-smi"]:
                if smi is None:
                    raise FileNotFoundError("nvidia-smi")
                return SimpleNamespace(stdout=smi)
            asked.append(command)

        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(subprocess, "run", stand_in)
        exec(cell, {"RUNTIME": runtime, "REPOSITORY": ""})
        ((*pip, first, second),) = [[*command, ""][:7] for command in asked]
        assert pip == [sys.executable, "-m", "pip", "install", "--quiet"]
        assert first == "sentence-transformers>=6"
        return second

    return run


SMI = "| NVIDIA-SMI 550.54.15      Driver Version: 550.54.15      CUDA Version: {}     |\n"
OLD, NEW = SMI.format("12.4"), SMI.format("13.0")


@pytest.mark.parametrize(
    ("runtime", "smi", "there", "asked"),
    [
        ("cpu", None, (), "."),
        ("cpu", NEW, ("clir_jax", "jax"), ""),
        ("tpu", None, ("jax",), ".[tpu]"),
        ("tpu", None, ("clir_jax", "jax", "libtpu"), ""),
        ("gpu", OLD, (), ".[cuda12]"),
        ("gpu", NEW, (), ".[cuda13]"),
        ("gpu", SMI.format("14.1"), (), ".[cuda13]"),
        ("gpu", NEW.replace("CUDA", "CUDA UMD"), (), ".[cuda13]"),
        # A plugin that the driver can run is kept; one that it cannot is of no use.
        ("gpu", NEW, ("jax", "jax-cuda12-plugin"), ".[cuda12]"),
        ("gpu", OLD, ("jax", "jax-cuda13-plugin"), ".[cuda12]"),
        ("gpu", NEW, ("clir_jax", "jax", "jax-cuda12-plugin"), ""),
        ("gpu", OLD, ("clir_jax", "jax"), ".[cuda12]"),
    ],
)
def test_what_it_installs(install, runtime, smi, there, asked):
    assert install(runtime, smi, there) == asked
    if asked.startswith(".["):
        extras = importlib.metadata.metadata("jax").get_all("Provides-Extra")
        project = tomllib.loads((NOTEBOOK.parents[1] / "pyproject.toml").read_text())["project"]
        (needed,) = project["optional-dependencies"][asked[2:-1]]
        assert needed.startswith(f"jax[{asked[2:-1]}]>=")
        assert asked[2:-1] in extras


@pytest.mark.parametrize("smi", [None, SMI.format("N/A"), SMI.format("11.8"), ""])
def test_a_gpu_that_is_not_there_is_told(install, smi):
    with pytest.raises(ValueError, match=r"^RUNTIME is 'gpu' and nvidia-smi tells of no driver"):
        install("gpu", smi)


def test_a_runtime_that_there_is_not(install):
    with pytest.raises(ValueError, match=r"^RUNTIME is 'cuda'; write 'cpu', 'gpu' or 'tpu'$"):
        install("cuda")


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
