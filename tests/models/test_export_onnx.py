"""The ONNX export: what it says without its packages, and the same vectors with them.

The packages are those of the extra ``onnx``. Where they are not installed, ``make test-interop``
runs this file, with ``REQUIRE_ONNX`` set: there a package that cannot be imported is an error.
"""

import importlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from clir_jax.export import main
from clir_jax.models.exports import export
from clir_jax.models.formats import save_loaded
from clir_jax.models.requests import EncodePassage, EncodeQuery
from tests.interop import check
from tests.interop.backbones import BACKBONES, PASSAGES, QUERIES, SPECS, tiny
from tests.interop.write import write
from tests.models.test_export_towers import codes, towers, vectors

KINDS = ("dense", "late interaction")


@pytest.mark.parametrize("package", ["torch", "onnx", "onnxscript"])
def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch, capsys, package):
    monkeypatch.chdir(tmp_path)
    save_loaded("model", tiny("bert", SPECS["dense"]))
    for name in ("torch", "onnx", "onnxscript"):
        # None in this place is what Python takes for a package that is not there.
        monkeypatch.setitem(sys.modules, name, None if name == package else sys)
    assert main(["--model", "model", "--to", "onnx", "--output", "out"]) == 2
    assert capsys.readouterr().err == (
        f"error: --to onnx needs {package}, which is not installed; "
        "run `pip install torch onnx onnxscript`\n"
    )
    assert os.listdir(tmp_path) == ["model"]


def needed(package):
    """A package of the extra; without it the test is skipped, or fails where it is required."""
    if os.environ.get("REQUIRE_ONNX"):
        return importlib.import_module(package)
    return pytest.importorskip(package)


def test_with_other_libraries_nothing_is_skipped(monkeypatch):
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    (line,) = (line for line in makefile.splitlines() if "test_export_onnx.py" in line)
    name, _, value = line.split()[0].partition("=")
    monkeypatch.setenv(name, value)
    with pytest.raises(ModuleNotFoundError):
        needed("clir_jax.no_such_package")
    monkeypatch.delenv(name)
    with pytest.raises(pytest.skip.Exception):
        needed("clir_jax.no_such_package")


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    """Exports of both backbones, and our vectors beside them."""
    for package in ("torch", "onnx", "onnxscript", "onnxruntime"):
        needed(package)
    transformers = needed("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    directory = tmp_path_factory.mktemp("onnx")
    cases = write(directory, BACKBONES, ("onnx",), KINDS)
    return directory, {(case["backbone"], case["kind"]): case for case in cases}


@pytest.mark.filterwarnings("ignore")  # of other libraries, about each other
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_vectors_and_rankings(onnx, backbone, kind):
    directory, cases = onnx
    load, _ = check.LIBRARIES["onnxruntime"]
    case = cases[backbone, kind]
    texts = {"queries": QUERIES, "passages": PASSAGES}
    row, same = check.compare(directory, case, texts, load)
    assert same, row
    # A text by itself, of other widths, is what it is among others.
    queries, passages = load(directory / f"{case['name']}-onnx", kind)
    for encode, texts in ((queries, QUERIES), (passages, PASSAGES)):
        for number in (1, 2):
            alone, among = encode([texts[number]])[0], encode(texts)[number]
            np.testing.assert_allclose(alone, among, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of other libraries, about each other
def test_each_tower_encodes_its_own_texts(onnx, tmp_path, monkeypatch):
    model = towers(SPECS["late interaction"])
    export(model, "onnx", tmp_path / "out", "mine")
    monkeypatch.chdir(tmp_path / "out")
    names = {}
    exec(codes(tmp_path / "out")[0], names)
    for side, tower, kind in (
        ("queries", model, EncodeQuery),
        ("passages", model.passage, EncodePassage),
    ):
        np.testing.assert_allclose(names[side][0], vectors(tower, kind), atol=1e-4)
