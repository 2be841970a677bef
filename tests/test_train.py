"""The command line of training: help, checks and mistakes; what trains is tested with the loop."""

import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest

from clir_jax.config_files import load, set_values, to_json
from clir_jax.train import main
from clir_jax.training.loop import TrainingError

QUICKSTART = str(Path(__file__).parents[1] / "configs" / "quickstart.py")


@pytest.fixture(autouse=True)
def _as_people_run_it(tmp_path, monkeypatch):
    """In an empty directory, and without the suite's own type checker, which would speak first."""
    monkeypatch.chdir(tmp_path)
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def trained(monkeypatch):
    """What would be trained: calls of ``train``, which does nothing."""
    calls = []
    monkeypatch.setattr("clir_jax.training.loop.train", lambda *given: calls.append(given) or [])
    return calls


def test_help_as_a_process():
    command = [sys.executable, "-m", "clir_jax.train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for option in ("--config FILE[:key=value,...]", "--set PATH=VALUE", "--run-dir", "--check"):
        assert option in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "the following arguments are required: --config"),
        (["--config", QUICKSTART, "--check=all"], "invalid choice: 'all'"),
        (["--config", QUICKSTART, "--steps=3"], "unrecognized arguments: --steps=3"),
    ],
)
def test_options_with_a_mistake(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_run_is_trained_where_it_says(trained, tmp_path, capsys):
    given = [
        "--config",
        f"{QUICKSTART}:language=so",
        "--set",
        "seed=3",
        "--set",
        "stages.0.steps=7",
    ]
    run = set_values(load(f"{QUICKSTART}:language=so"), ["seed=3", "stages.0.steps=7"])
    assert main([*given, "--run-dir", "there"]) == 0
    assert main(given) == 0
    assert trained == [(run, Path("there")), (run, Path("runs/quickstart-so"))]
    assert capsys.readouterr().out.splitlines()[-1] == (
        "model: runs/quickstart-so/model  report: runs/quickstart-so/report.html"
    )


def test_an_accelerator_that_is_not_there(trained, monkeypatch, capsys):
    given = ["--config", QUICKSTART, "--accelerator", "tpu"]
    mend = "see that this is a TPU VM, that no other process holds its chips, and that this Python"
    for told, devices in (
        ("JAX finds cpu devices only", lambda: "cpu"),
        ("Unable to initialize backend 'tpu'", _no_backend),
    ):
        monkeypatch.setattr("jax.default_backend", devices)
        assert main(given) == 2
        assert capsys.readouterr().err == (
            f"error: --accelerator tpu: {told}; {mend} has clir_jax[tpu], or train without this "
            "option\n"
        )
    assert trained == []
    monkeypatch.setattr("jax.default_backend", lambda: "tpu")
    assert main(given) == 0
    assert len(trained) == 1


def _no_backend():
    raise RuntimeError("Unable to initialize backend 'tpu'")


def test_a_resolved_configuration_is_one_too(trained, tmp_path):
    run = set_values(load(QUICKSTART), ["seed=9"])
    (tmp_path / "config.json").write_text(to_json(run), encoding="utf-8")
    assert main(["--config", "config.json"]) == 0
    assert main(["--config", "config.json", "--set", "seed=0"]) == 0
    assert [given[0] for given in trained] == [run, load(QUICKSTART)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--config", "nowhere.py"],
            "--config nowhere.py: there is no such file; write FILE.py, FILE.py:key=value,key=value"
            " or a run's config.json",
        ),
        (
            ["--config", f"{QUICKSTART}:lang=so"],
            f"{QUICKSTART}: get_config takes no argument 'lang'; did you mean 'language'?",
        ),
        (
            ["--config", QUICKSTART, "--set", "stages.distill.steps=5"],
            "--set stages.distill.steps=5: stages has no 'distill'; did you mean 'distil'?",
        ),
        (
            ["--config", QUICKSTART, "--set", "stages.distil.steps=many"],
            "--set stages.distil.steps is 'many'; it must be a whole number",
        ),
    ],
)
@pytest.mark.parametrize("check", [[], ["--check"]])
def test_a_mistake_is_one_sentence(arguments, sentence, check, trained, capsys):
    assert main([*arguments, *check]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"error: {sentence}\n")
    assert trained == []


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device"),
        (ImportError("Please install gcsfs"), 2, "error: Please install gcsfs"),
        (ValueError("two\n  lines"), 2, "error: two lines"),
        (ValueError(), 2, "error: ValueError"),
        (TrainingError("step 3 is not finite"), 1, "error: step 3 is not finite"),
        (KeyboardInterrupt(), 130, "stopped; the same command goes on from the last checkpoint"),
    ],
)
def test_what_ends_a_run(error, status, told, monkeypatch, capsys):
    def fail(*given):
        raise error

    monkeypatch.setattr("clir_jax.training.loop.train", fail)
    assert main(["--config", QUICKSTART]) == status
    assert capsys.readouterr().err == f"{told}\n"


@pytest.mark.parametrize("fault", [RuntimeError("device lost"), KeyError("x"), TypeError("y")])
def test_faults_of_the_program_keep_their_traceback(fault, monkeypatch):
    def fail(*given):
        raise fault

    monkeypatch.setattr("clir_jax.training.loop.train", fail)
    with pytest.raises(type(fault)):
        main(["--config", QUICKSTART])


def test_check_trains_nothing_and_leaves_nothing(trained, tmp_path, capsys):
    assert main(["--config", QUICKSTART, "--check=data"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == (
        "distil: LateInteraction, 0.9 M parameters, 500 steps of TokenAlignmentDistillation (32)"
    )
    assert trained == []
    assert list(tmp_path.iterdir()) == []
