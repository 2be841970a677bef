"""Every snippet of README.md, from top to bottom, as somebody follows it in a new checkout.

Commands are carried out on the built-in data, of which a few territories are kept, with tiny models
in the place of those that earlier lines train. ``mine.py`` is trained for two steps; its vocabulary
is a local one. A snippet or a line that this test does not know makes it fail.

What does not run here: recipes are built by ``--check`` and not trained (tests/test_quickstart.py
trains the quickstart), ``make`` only tells what it would do (its second target is this suite), and
``pip install`` is compared with pyproject.toml: it needs a network, and CUDA or a TPU. Of the line
of pytest, the new method's own test is run, and one setting of the contract on the new method.
"""

import dataclasses
import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import pytest
from flax import nnx

from clir_jax import objectives
from clir_jax.config_files import load
from clir_jax.data import demo
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.formats import LoadedRetriever, load_retriever, save_loaded
from clir_jax.models.generator_files import save_generator
from clir_jax.models.retriever import Retriever
from clir_jax.models.tokenizer import add_markers, punctuation_ids
from clir_jax.models.vocabulary import train_wordpiece
from tests.models import test_generator_files as generators
from tests.training import test_contract as contract

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
PYTHON = {text.splitlines()[0]: text for language, text in BLOCKS if language == "python"}
LINES = [
    words
    for language, text in BLOCKS
    if language == "sh"
    for words in (shlex.split(x, comments=True) for x in text.replace("\\\n", " ").splitlines())
    if words
]
CONFIGURATION = "# mine.py"
OBJECTIVE = "# clir_jax/objectives/similarity.py"
ITS_TEST = "# tests/objectives/test_similarity.py"
KEPT = re.compile(r'(\{"_id": ")?(KE|TZ|UG)-')


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Where the commands are run; what earlier lines would train is there, all of it tiny."""
    quickstart = tmp_path / "runs" / "quickstart"
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    model = _retriever()
    for place in ("model", "stages/01-teacher/model"):
        save_loaded(quickstart / place, model)
    (tmp_path / "vocabulary").mkdir()
    model.tokenizer.save(tmp_path / "vocabulary")
    local = PYTHON[CONFIGURATION].replace('"bert-base-multilingual-cased"', '"vocabulary"')
    assert local != PYTHON[CONFIGURATION]
    (tmp_path / "mine.py").write_text(local)
    # As many embeddings as pieces, so that whatever is written can be read.
    generator = generators._generator(dataclasses.replace(generators.CONFIG, vocab_size=5))
    spec = dataclasses.replace(generator.spec, source_length=32)
    save_generator(tmp_path / "runs/generator/model", dataclasses.replace(generator, spec=spec))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "LANGUAGES", ("ar", "en", "sw"))  # the others take seconds
    first = jax.devices()[:1]  # as on a laptop; fewer programs are compiled
    monkeypatch.setattr(jax, "devices", lambda: first)
    return tmp_path


def _retriever():
    """What the quickstart's stages train, but narrow."""
    spec = load(str(ROOT / "configs" / "quickstart.py")).training_stages()[0].model
    texts = [p.text for p in demo.passages() if KEPT.match(p.id)]
    tokenizer, _ = add_markers(train_wordpiece(texts, 200), spec)
    config = EncoderConfig(
        vocab_size=tokenizer.size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=spec.passage_length,
    )
    graphdef, params = nnx.split(Retriever(spec, config, rngs=nnx.Rngs(0)))
    return LoadedRetriever(spec, config, graphdef, params, tokenizer, punctuation_ids(tokenizer))


def test_every_snippet_is_known():
    assert list(PYTHON) == [CONFIGURATION, OBJECTIVE, ITS_TEST]
    assert {language for language, _ in BLOCKS} == {"python", "sh"}
    assert len(re.findall(r"^ *(```|~~~)", README, re.M)) == 2 * len(BLOCKS)
    outside = re.sub(r"^```.*?^```$", "", README, flags=re.M | re.S)
    assert not re.search(r"^(    |\t)", outside, re.M)  # Markdown takes it for code


def test_the_environment_is_entered_before_python_is_called():
    programs = [program for program, *_ in LINES]
    assert programs.index("make") < programs.index(".") < programs.index("python")


def test_every_line_does_what_it_says(home, capsys):
    done = [_carry_out(*words) for words in LINES]
    assert done == [0] * len(LINES), capsys.readouterr().err
    told = capsys.readouterr().out
    assert "distil: LateInteraction" in told  # mine.py, built
    assert "1  Sarafu ya Kenya inaitwaje?" in told
    made = ("run.trec", "alignment.html", "scored.jsonl", "generated.jsonl", "exported/README.md")
    for name in made:
        assert (home / name).stat().st_size > 0
    (row,) = json.loads((home / "runs/mine/summary.json").read_text())[-1:]
    assert (row["stage"], row["system"], row["dataset"]) == ("distil", "student", "sw")
    assert load_retriever(home / "runs/mine/model").spec == _retriever().spec


def _carry_out(program, *words):
    """Run a line of a shell; returns its exit status."""
    if program == "make":
        dry = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, check=True)
        commands = {"quickstart": "clir_jax.train --config configs/quickstart.py", "test": "pytest"}
        return 0 if f"/python -m {commands[words[0]]} " in dry.stdout.decode() else 2
    if program == ".":
        venv = re.findall(r"^VENV \?= (.*)$", (ROOT / "Makefile").read_text(), re.M)
        return 0 if words == (f"{venv[0]}/bin/activate",) else 2
    if program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        known = {".", *(f".[{name}]" for name in project["optional-dependencies"])}
        return 0 if words[:2] == ("install", "-e") and set(words[2:]) <= known else 2
    python, command, *options = words
    assert (program, python) == ("python", "-m"), f"the test does not know how to run {program}"
    if command == "pytest":
        written = [name.removeprefix("# ") for name in PYTHON]
        return 0 if all(name in written or (ROOT / name).is_file() for name in options) else 2
    if command == "clir_jax.train" and not any(o.startswith("--check") for o in options):
        options += ["--set", "stages.distil.steps=2"] if "mine.py" in options else ["--check"]
    status = importlib.import_module(command).main(options)
    if command == "clir_jax.prepare":
        _keep_some(Path(options[-1]))
    return status


def _keep_some(folder):
    """Leave some territories of the built-in data."""
    for path in folder.iterdir():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(filter(KEPT.match, lines)), encoding="utf-8")


def _targets():
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))


@pytest.fixture
def similarity(tmp_path, monkeypatch):
    """The objective, its file among those of the package."""
    (tmp_path / "similarity.py").write_text(PYTHON[OBJECTIVE])
    with monkeypatch.context() as patched:
        patched.setattr(objectives, "__path__", [*objectives.__path__, str(tmp_path)])
        yield objectives.discover()["SimilarityDistillation"]
    del sys.modules["clir_jax.objectives.similarity"], objectives.similarity


def test_the_objective_passes_its_test(similarity):
    names = {}
    exec(PYTHON[ITS_TEST], names)
    tests = [name for name in names if name.startswith("test_")]
    assert tests == ["test_the_loss_by_hand"]
    names[tests[0]]()


def test_the_objective_is_under_contract(similarity, monkeypatch):
    # A layer is enough: what it is told of deeper models does not differ.
    model = contract._model
    monkeypatch.setattr(contract, "_model", lambda *whole, layers, seed: model(*whole, 1, seed))
    with jax.enable_x64(True):
        setting = contract._setting(contract.LATE, "float64", {"it": similarity()})
        program = contract._program(setting, *contract.VARIANTS[-1])  # the one with everything
        contract._compare(program, contract._reference(setting), 1e-10)


def test_what_is_named_is_there():
    table = re.findall(r"^\|.*\|$", README, re.M)
    assert max(map(len, table)) <= 200
    recipes = [row.split("`")[1] for row in table if re.match(r"\| `[\w/]+\.py", row)]
    files = {name.partition(":")[0] for name in recipes}
    assert files == {str(p.relative_to(ROOT / "configs")) for p in ROOT.glob("configs/**/*.py")}
    for name in recipes:
        load(str(ROOT / "configs" / name))
    assert set(re.findall(r"`(?:\S+=\S+ )?make ([\w-]+)`", README)) <= _targets()
    rooms = "clir_jax|configs|benchmarks|launch|tests"
    for path in re.findall(rf"`((?:{rooms})/[\w./-]+)`", README):
        assert (ROOT / path).exists(), path
    assert [name for name in objectives.discover() if f"`{name}`" not in README] == []
