"""What this version does not do is refused in one sentence, before any work."""

import dataclasses
from pathlib import Path

import pytest

from clir_jax import config_files
from clir_jax.config import FromStage, Generate, Task
from clir_jax.config_files import ConfigError
from clir_jax.data.sources import Atlas
from clir_jax.objectives.alignment import TokenAlignmentDistillation
from clir_jax.training import loop
from clir_jax.training.loop import train
from clir_jax.training.supported import refuse_unsupported

RECIPE = str(Path(__file__).with_name("tiny_recipe.py"))


def _with(**options):
    """The tiny recipe with options of its second stage replaced."""
    run = config_files.load(RECIPE)
    changed = dataclasses.replace(run.stages[1], **options)
    return dataclasses.replace(run, stages=(run.stages[0], changed))


def _transport(name, teacher, batch_size=8):
    sources, teachers = {"bitext": Atlas("bitext", "sw")}, {"teacher": teacher}
    return Task(TokenAlignmentDistillation(), sources, teachers, batch_size=batch_size, name=name)


def _unsupported():
    run = config_files.load(RECIPE)
    first, second = run.stages
    generate = Generate("questions", FromStage("teacher"), Atlas("text", "en"), ("sw",))
    work = dataclasses.replace(run, stages=(first, generate, second))
    two = (_transport("a", FromStage("teacher")), _transport("b", FromStage("teacher", "last")))
    nine = (_transport("a", FromStage("teacher"), 9),)
    return {
        r"stages\.questions\.model is the retriever of stage 'teacher', which writes no text": work,
        r"tasks a and b both have a teacher 'teacher'.*'best'.*'last'": _with(tasks=two),
        r"distil\.tasks\.a\.batch_size is 9.* 8 row shards.* set it to 16": _with(tasks=nine),
    }


@pytest.mark.parametrize("told", _unsupported())
def test_what_this_version_does_not_do_is_refused_before_any_work(tmp_path, told, monkeypatch):
    monkeypatch.setattr(loop, "build_stage", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(ConfigError, match=told):
        train(_unsupported()[told], tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["student", "student_before", "bm25"])
def test_names_that_every_stage_uses_are_no_teachers(tmp_path, name):
    objective = _Asking(name)
    task = dataclasses.replace(
        _transport("a", FromStage("teacher")),
        objective=objective,
        teachers={name: FromStage("teacher")},
    )
    with pytest.raises(ConfigError, match=f"teachers: '{name}' is taken"):
        train(_with(tasks=(task,), evaluate=None), tmp_path / "run")


@dataclasses.dataclass(frozen=True)
class _Asking(TokenAlignmentDistillation):
    """Optimal transport from a teacher of another name."""

    name: str = "teacher"

    def __init__(self, name):
        super().__init__()
        object.__setattr__(self, "name", name)

    @property
    def teacher(self):
        return {
            key: dataclasses.replace(ask, model=self.name) for key, ask in super().teacher.items()
        }


def test_two_tasks_may_share_one_teacher(tmp_path):
    run = _with(
        tasks=(_transport("a", FromStage("teacher")), _transport("b", FromStage("teacher")))
    )
    refuse_unsupported(run, 8)
