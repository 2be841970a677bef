"""Configurations in files and on the command line: round trips, and what people get wrong."""

import json
import re
from pathlib import Path

import jaxtyping
import pytest

from clir_jax import objectives
from clir_jax.config import (
    Artifact,
    EncodeTeacher,
    Evaluate,
    FromStage,
    Generate,
    Group,
    Mine,
    OnPlateau,
    Optimizer,
    ReplaceVocabulary,
    Rounds,
    Run,
    Score,
    Stage,
    Stop,
    Task,
)
from clir_jax.config_files import (
    ConfigError,
    first_difference,
    from_json,
    load,
    set_values,
    to_json,
)
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.collections import AtlasRetrieval, BitextRetrieval
from clir_jax.data.rankings import Beir, TriplesTSV
from clir_jax.data.sources import Atlas, Mixture, TextLines
from clir_jax.models.retriever import Dense, LateInteraction
from clir_jax.objectives.alignment import TokenAlignmentDistillation
from clir_jax.objectives.contrastive import InfoNCE, PairwiseSoftmax
from clir_jax.ops.alignment import IPOT, Sinkhorn

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.py"))


@pytest.fixture(autouse=True)
def _as_people_run_it():
    """Without the suite's own type checker, which would speak before ours."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def everything():
    """A run with every kind of step and most kinds of parts."""
    english = Beir("c.jsonl", "q.tsv", "r.trec", translations={"sw": "q.sw.tsv", "so": 2})
    bitext = BitextTSV("b/*.tsv", "sw", hold_out=5)
    tests = {"mlqa.sw": AtlasRetrieval("sw"), "type": BitextRetrieval("b/*.tsv", "sw", 5)}
    teacher = Stage(
        "teacher",
        LateInteraction(expansion=False),
        "bert-base-cased",
        (Task(InfoNCE(), {"ranking": Mixture((english, TriplesTSV("t.tsv")), (1.0, 2.0))}),),
        20,
        evaluate=Evaluate(tests, every=5, best="RR@10 type", baselines=("bm25",)),
        stop=Stop(),
        on_plateau=OnPlateau(),
        optimizer=Optimizer(groups=(Group("word", freeze=True), Group("bias", learning_rate=2.0))),
    )
    distil = Stage(
        "distil",
        LateInteraction(expansion=False),
        FromStage("teacher"),
        (
            Task(
                TokenAlignmentDistillation(), {"bitext": bitext}, {"teacher": FromStage("teacher")}
            ),
            Task(
                PairwiseSoftmax(),
                {"ranking": Artifact("mined")},
                weight=0.5,
                passages=2,
                name="mined",
            ),
        ),
        10,
        ReplaceVocabulary("v.txt", (bitext, tests["mlqa.sw"])),
    )
    dense = Stage("dense", Dense(), "x", (Task(InfoNCE(), {"ranking": Artifact("scored")}),), 3)
    group = Rounds(
        "again",
        2,
        (Mine("mined", FromStage("distil"), english, english), distil),
        start={"distil": FromStage("teacher")},
    )
    work = (
        EncodeTeacher("ahead", "distil", "TokenAlignmentDistillation"),
        Generate("asked", "g", TextLines("p.txt", "en"), ("sw", "so")),
        Score("scored", "s", Artifact("asked")),
    )
    return Run("everything", (teacher, *work, group, dense), seed=3)


# ---- JSON


@pytest.mark.parametrize("name", FILES)
def test_every_recipe_survives_json(name):
    run = load(str(CONFIGS / name))
    again = from_json(to_json(run))
    assert again == run
    assert to_json(again) == to_json(run)


def test_there_are_recipes():
    assert "quickstart.py" in FILES
    assert any(name.startswith("bench") for name in FILES)


def test_all_a_configuration_may_hold_survives_json(tmp_path):
    run = everything()
    file = tmp_path / "config.json"
    file.write_text(to_json(run), encoding="utf-8")
    assert load(str(file)) == run


@pytest.mark.parametrize("name", sorted(objectives.discover()))
def test_every_objective_survives_json(name):
    objective = objectives.discover()[name]()
    texts = [
        text
        for asks in (objective.student, objective.teacher)
        for ask in asks.values()
        for text in ask.texts
    ]
    sources = {text.split(".")[0]: Atlas("bitext", "sw") for text in texts}
    teachers = {ask.model: "x" for ask in objective.teacher.values()}
    task = Task(objective, sources, teachers, passages=objective.least_passages)
    run = Run("r", (Stage("s", Dense(), "x", (task,), 1),))
    assert from_json(to_json(run)).stages[0].tasks[0].objective == objective


def change(path, value):
    """The text of ``everything()`` with one value of the JSON replaced or, as ``...``, left out."""
    tree = json.loads(to_json(everything()))
    node = tree
    for key in path[:-1]:
        node = node[key]
    if value is ...:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return json.dumps(tree)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[]", "the configuration is []; it must be Run"),
        (
            '{"name": "r"}',
            "the configuration is {'name': 'r'}, which has no \"type\"; it must be Run",
        ),
        ('{"type": "Stop"}', "the configuration is Stop(patience=5); it must be Run"),
        (
            change(["sed"], 1),
            "the configuration: Run has no key 'sed'; did you mean 'seed'?",
        ),
        (change(["seed"], "3"), "seed is '3'; it must be a whole number"),
        (change(["stages"], ...), "the configuration: Run needs the key 'stages'; add it"),
        (
            change(["stages", 0, "stepz"], 4),
            "stages.teacher: Stage has no key 'stepz'; did you mean 'steps'?",
        ),
        (
            change(["stages", 0, "optimizer", "warmup"], 1.5),
            "stages.teacher.optimizer.warmup is 1.5; it must be a whole number",
        ),
        (
            change(["stages", 0, "model", "type"], "LateInteracton"),
            "stages.teacher.model: there is no type 'LateInteracton'; did you mean "
            "'LateInteraction'?",
        ),
        (
            change(["stages", 0, "model", "projection_bias"], 1),
            "stages.teacher.model.projection_bias is 1; it must be True or False",
        ),
        (
            change(["stages", 0, "tasks", 0, "objective", "temperature"], "hot"),
            "stages.teacher.tasks.0.objective.temperature is 'hot'; it must be a number",
        ),
        (
            change(["stages", 0, "tasks", 0, "objective", "temperature"], -1),
            "stages.teacher.tasks.0.objective: InfoNCE: temperature is -1; it must be above 0",
        ),
        (
            change(["stages", 0, "tasks", 0, "objective"], {"type": "Dense"}),
            re.compile(r"stages\.teacher\.tasks\.0\.objective is Dense\(.*; it must be Objective"),
        ),
        (
            change(["stages", 0, "tasks"], {"type": "InfoNCE"}),
            "stages.teacher.tasks is InfoNCE(temperature=1.0, in_batch=True); it must be a "
            "tuple (in JSON a list) of Task",
        ),
        (
            change(["stages", 0, "evaluate", "metrics"], "R@5"),
            "stages.teacher.evaluate.metrics is 'R@5'; it must be a tuple (in JSON a list) of text",
        ),
        (
            change(["stages", 0, "evaluate", "collections"], []),
            "stages.teacher.evaluate.collections is []; it must be a mapping from text to "
            "Retrieval or IRDatasetRetrieval or AtlasRetrieval or BitextRetrieval or "
            "BitextPairs or GoldAlignment",
        ),
        (
            change(["stages", 4, "stages", 0, "source"], {"corpus": "c"}),
            re.compile(
                r"stages\.again\.stages\.mined\.source is \{'corpus': 'c'\}, which has no "
                r'"type"; it must be BitextTSV or .* or Artifact'
            ),
        ),
        (
            change(["stages", 5, "tasks", 0, "sources", "ranking", "name"], "asket"),
            "the configuration: stage dense: it reads the artifact 'asket', and those "
            "written before it are asked, mined, scored; name one of these",
        ),
    ],
)
def test_json_with_a_mistake(text, sentence):
    with pytest.raises(ConfigError, match=exactly("c.json: ", sentence)):
        from_json(text, "c.json")


def test_what_is_no_json():
    sentence = "c.json:2: this is not JSON: Expecting property name enclosed in double quotes"
    with pytest.raises(ConfigError, match=exactly(sentence)):
        from_json("{\n 'a'", "c.json")


def exactly(prefix, sentence=""):
    """A pattern of nothing but the prefix and the sentence, which may be a pattern itself."""
    rest = sentence.pattern if isinstance(sentence, re.Pattern) else re.escape(sentence)
    return f"^{re.escape(prefix)}{rest}$"


def test_the_first_difference_has_the_path_that_sets_it():
    there = json.loads(to_json(everything()))
    here = json.loads(change(["stages", 0, "optimizer", "groups", 1, "learning_rate"], 3.0))
    assert first_difference(there, here) == "stages.0.optimizer.groups.1.learning_rate"
    assert first_difference(there, json.loads(change(["stages"], []))) == "stages"
    assert first_difference(there, there) == "configuration"


# ---- --set


@pytest.mark.parametrize(
    ("assignment", "look"),
    [
        ("seed=7", lambda run: run.seed == 7),
        ("data_root=a=b", lambda run: run.data_root == "a=b"),
        ("data_root=007", lambda run: run.data_root == "007"),
        ("data_root=1e3", lambda run: run.data_root == "1e3"),
        ("data_root=none", lambda run: run.data_root == "none"),
        ("data_root='5'", lambda run: run.data_root == "5"),
        ("data_root=", lambda run: run.data_root == ""),
        ("name=3", lambda run: run.name == "3"),
        ("mesh.fsdp=2", lambda run: run.mesh.fsdp == 2),
        ("stages.0.steps=9", lambda run: run.stages[0].steps == 9),
        ("stages.teacher.steps=9", lambda run: run.stages[0].steps == 9),
        ("stages.again.stages.distil.steps=9", lambda run: run.stages[4].stages[1].steps == 9),
        ("stages.again.count=9", lambda run: run.stages[4].count == 9),
        ("stages.teacher.evaluate=None", lambda run: run.training_stages()[0].evaluate is None),
        ("stages.teacher.init=xlm-roberta-base", lambda run: run.stages[0].init[:3] == "xlm"),
        (
            "stages.teacher.tokens_per_chunk=4096",
            lambda run: run.stages[0].tokens_per_chunk == 4096,
        ),
        (
            "stages.teacher.tokens_per_chunk=null",
            lambda run: run.stages[0].tokens_per_chunk is None,
        ),
        (
            "stages.teacher.optimizer.clip_norm=2",
            lambda run: run.stages[0].optimizer.clip_norm == 2,
        ),
        (
            "stages.teacher.optimizer.groups.1.learning_rate=0.5",
            lambda run: run.stages[0].optimizer.groups[1].learning_rate == 0.5,
        ),
        (
            "stages.teacher.optimizer.groups=[{'type': 'Group', 'pattern': 'norm'}]",
            lambda run: run.stages[0].optimizer.groups == (Group("norm"),),
        ),
        (
            "stages.teacher.on_plateau={'type': 'OnPlateau', 'factor': 0.1}",
            lambda run: run.stages[0].on_plateau == OnPlateau(0.1),
        ),
        (
            "stages.teacher.tasks.InfoNCE.objective.temperature=0.5",
            lambda run: run.stages[0].tasks[0].objective.temperature == 0.5,
        ),
        (
            "stages.again.stages.distil.tasks.mined.weight=2",
            lambda run: run.stages[4].stages[1].tasks[1].weight == 2,
        ),
        (
            "stages.again.stages.distil.tasks.0.teachers.teacher=some/model",
            lambda run: run.stages[4].stages[1].tasks[0].teachers == {"teacher": "some/model"},
        ),
        (
            "stages.again.stages.distil.tasks.0.objective.aligner.epsilon=0.02",
            lambda run: run.stages[4].stages[1].tasks[0].objective.aligner == Sinkhorn(0.02),
        ),
        (
            "stages.again.stages.distil.tasks.0.objective.aligner={'type': 'IPOT', 'beta': 1}",
            lambda run: run.stages[4].stages[1].tasks[0].objective.aligner == IPOT(1.0),
        ),
        (
            "stages.teacher.tasks.0.sources.ranking.weights.1=5",
            lambda run: run.stages[0].tasks[0].sources["ranking"].weights == (1.0, 5),
        ),
        (
            "stages.teacher.tasks.0.sources.ranking.sources.0.translations.so=q.so.tsv",
            lambda run: (
                run.stages[0].tasks[0].sources["ranking"].sources[0].translations
                == {"sw": "q.sw.tsv", "so": "q.so.tsv"}
            ),
        ),
        (
            "stages.teacher.evaluate.collections.mlqa.sw.split=test",
            lambda run: run.stages[0].evaluate.collections["mlqa.sw"].split == "test",
        ),
        (
            "stages.teacher.evaluate.metrics=['RR@10', 'AP']",
            lambda run: run.stages[0].evaluate.metrics == ("RR@10", "AP"),
        ),
        (
            "stages.teacher.evaluate.metrics.0=Success@1",
            lambda run: run.stages[0].evaluate.metrics[0] == "Success@1",
        ),
    ],
)
def test_set(assignment, look):
    # Nothing stops or plateaus, so that evaluations may be switched off.
    run = set_values(everything(), ["stages.teacher.stop=None", "stages.teacher.on_plateau=None"])
    assert not look(run) or "null" in assignment
    changed = set_values(run, [assignment])
    assert look(changed)
    assert from_json(to_json(changed)) == changed


def test_values_that_fit_together_only_are_set_together():
    run = set_values(
        everything(),
        ["stages.teacher.evaluate.metrics=['AP']", "stages.0.evaluate.best=AP mlqa.sw"],
    )
    assert run.stages[0].evaluate.selection == "AP mlqa.sw"


def test_of_two_values_for_one_path_the_later_holds():
    first, second = "stages.teacher.stop.patience=2", "stages.teacher.stop={'type': 'Stop'}"
    assert set_values(everything(), ["seed=1", "seed=2"]).seed == 2
    assert set_values(everything(), [first, second]).stages[0].stop == Stop()
    assert set_values(everything(), [second, first]).stages[0].stop == Stop(2)


def test_nothing_set_is_the_same_run():
    assert set_values(everything(), []) == everything()


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("seed", "seed: write it as path=value, as in --set seed=1"),
        ("=1", "=1: write it as path=value, as in --set seed=1"),
        ("sed=1", "sed=1: Run has no 'sed'; did you mean 'seed'?"),
        (
            "stages.techer.steps=1",
            "stages.techer.steps=1: stages has no 'techer'; did you mean 'teacher'?",
        ),
        (
            "stages.9.steps=1",
            "stages.9.steps=1: stages has no '9'; choose from 0, 1, 2, 3, 4, 5, teacher, ahead, "
            "asked, scored, again, dense",
        ),
        (
            "stages.teacher.stepz=1",
            "stages.teacher.stepz=1: stages.teacher has no 'stepz'; did you mean 'steps'?",
        ),
        (
            "stages.teacher.title=1",
            re.compile(
                r"stages\.teacher\.title=1: stages\.teacher has no 'title'; choose from name, .*"
            ),
        ),
        (
            "stages.teacher.tasks.0.sources.rankings.path=x",
            "stages.teacher.tasks.0.sources.rankings.path=x: stages.teacher.tasks.0.sources has no "
            "'rankings'; did you mean 'ranking'?",
        ),
        (
            "stages.teacher.vocabulary.size=5",
            "stages.teacher.vocabulary.size=5: stages.teacher.vocabulary is None, which has no "
            "'size'; shorten the path",
        ),
        ("seed.x=1", "seed.x=1: seed is 3, which has no 'x'; shorten the path"),
        (
            "stages.teacher.evaluate.metrics.0.x=1",
            "stages.teacher.evaluate.metrics.0.x=1: stages.teacher.evaluate.metrics.0 is "
            "'nDCG@10', which has no 'x'; shorten the path",
        ),
        (
            "stages.teacher.evaluate.metrics.3=1",
            "stages.teacher.evaluate.metrics.3=1: stages.teacher.evaluate.metrics has no '3'; "
            "choose from 0, 1, 2",
        ),
        ("seed=ten", "seed is 'ten'; it must be a whole number"),
        ("seed=1.5", "seed is 1.5; it must be a whole number"),
        ("seed=None", "seed is None; it must be a whole number"),
        ("seed=True", "seed is True; it must be a whole number"),
        ("seed=-1", "seed=-1: run: seed is -1; it must be from 0 to 2147483647"),
        (
            "stages.teacher.dtype=fp8",
            "stages.teacher.dtype is 'fp8'; it must be 'float32' or 'bfloat16'",
        ),
        (
            "stages.teacher.evaluate.metrics=R@5",
            "stages.teacher.evaluate.metrics is 'R@5'; it must be a tuple (in JSON a list) of text",
        ),
        (
            "stages.teacher.stop={'patience': 3}",
            "stages.teacher.stop is {'patience': 3}, which has no \"type\"; it must be Stop or "
            "None",
        ),
        (
            "stages.teacher.stop={'type': 'Stop', 1: 3}",
            "stages.teacher.stop: Stop has no key 1; choose from patience",
        ),
        (
            "stages.again.stages.distil.tasks.0.objective.aligner={'type': 'Greedy', 'beta': 1}",
            "stages.again.stages.distil.tasks.0.objective.aligner: Greedy has no key 'beta'",
        ),
        (
            "stages.again.stages.distil.tasks.0.objective.aligner=Greedi",
            "stages.again.stages.distil.tasks.0.objective.aligner is 'Greedi'; it must be Greedy "
            "or Assignment or Sinkhorn or IPOT or Attention",
        ),
        (
            "stages.teacher.tasks.0.batch_size=0",
            "stages.teacher.tasks.0.batch_size=0: task InfoNCE: batch_size is 0; it must be at "
            "least 1",
        ),
        (
            "stages.teacher.name=english",
            "stages.teacher.name=english: stage ahead: it takes the model of stage 'teacher', "
            "and those trained before it are english; name one of these",
        ),
    ],
)
def test_set_with_a_mistake(assignment, sentence):
    with pytest.raises(ConfigError, match=exactly("--set ", sentence)):
        set_values(everything(), [assignment])


# ---- files of Python

GOOD = """
from clir_jax.config import Evaluate, Run, Stage, Task
from clir_jax.data.sources import Atlas
from clir_jax.models.retriever import Dense
from clir_jax.objectives.contrastive import InfoNCE


def get_config(language: str = "sw", steps: int = 3, rate: float = 1e-3, chunk: int | None = None):
    task = Task(InfoNCE(), {"ranking": Atlas("ranking", "sw")})
    stage = Stage("s", Dense(), "x", (task,), steps, tokens_per_chunk=chunk)
    return Run(f"r-{language}-{rate}", (stage,))
"""


def written(folder, text, name="recipe.py"):
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(file)


def test_arguments_have_the_types_of_get_config(tmp_path):
    file = written(tmp_path, GOOD)
    run = load(f"{file}:language=no,steps=9,rate=1,chunk=64")
    assert (run.name, run.stages[0].steps) == ("r-no-1", 9)
    assert run.stages[0].tokens_per_chunk == 64
    assert load(f"{file}:chunk=none") == load(file)


def test_a_path_may_hold_a_colon(tmp_path):
    folder = tmp_path / "12:30"
    folder.mkdir()
    assert load(written(folder, GOOD)).name == "r-sw-0.001"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("langage=so", "{}: get_config takes no argument 'langage'; did you mean 'language'?"),
        ("language", "{}: argument 'language' has no value; write language=VALUE"),
        ("steps=many", "{}: argument steps is 'many'; it must be a whole number"),
        ("chunk=x", "{}: argument chunk is 'x'; it must be a whole number or None"),
        ("steps=0", "{}:10: stage s: steps is 0; it must be at least 1"),
    ],
)
def test_arguments_with_a_mistake(tmp_path, arguments, sentence):
    file = written(tmp_path, GOOD)
    with pytest.raises(ConfigError, match=exactly(sentence.format(file))):
        load(f"{file}:{arguments}")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def get_config(:", ":1: this is not Python: invalid syntax"),
        ("import no_such_package\n", ":1: ModuleNotFoundError: No module named 'no_such_package'"),
        ("x = 1\n", ": it defines no get_config(); write one that returns a Run"),
        ("get_config = 5\n", ": it defines no get_config(); write one that returns a Run"),
        ("def get_config():\n    return 5\n", ": get_config() returned 5; return a Run"),
        ("def get_config():\n\n    return {}['sw']\n", ":3: KeyError: 'sw'"),
        ("def get_config():\n    return zzyzx\n", ":2: NameError: name 'zzyzx' is not defined"),
        ("def get_config(x: Nothing): ...\n", ":1: NameError: name 'Nothing' is not defined"),
        ("def get_config():\n    assert False\n", ":2: AssertionError"),
        (
            "def get_config(language): ...\n",
            ": argument 'language' is missing; write {}:language=VALUE",
        ),
        (
            GOOD.replace("(task,), steps", "(task,), stepz=steps"),
            ":10: Stage has no key 'stepz'; did you mean 'steps'?",
        ),
        (
            GOOD.replace("InfoNCE()", "InfoNCE(temprature=1)"),
            ":9: InfoNCE has no key 'temprature'; did you mean 'temperature'?",
        ),
        (
            GOOD.replace("InfoNCE()", "InfoNCE(in_batch='no')"),
            ":9: Task.objective.in_batch is 'no'; it must be True or False",
        ),
        (
            GOOD.replace("InfoNCE()", "InfoNCE(temperature='1')"),
            ":9: TypeError: '<=' not supported between instances of 'str' and 'int'",
        ),
    ],
)
def test_python_with_a_mistake(tmp_path, text, sentence):
    file = written(tmp_path, text)
    with pytest.raises(ConfigError, match=exactly(file + sentence.format(file))):
        load(file)


def test_python_that_is_not_utf_8(tmp_path):
    file = written(tmp_path, b"x = '\xff'\n")
    with pytest.raises(
        ConfigError, match=exactly(file, re.compile(":1: this is not Python: .*utf-8.*"))
    ):
        load(file)


def test_files_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, GOOD)
    ways = "write FILE.py, FILE.py:key=value,key=value or a run's config.json"
    with pytest.raises(
        ConfigError,
        match=exactly(
            f"--config recipes.py: there is no such file (did you mean recipe.py?); {ways}"
        ),
    ):
        load("recipes.py:language=sw")
    with pytest.raises(
        ConfigError, match=exactly(f"--config a/b.py: there is no such file; {ways}")
    ):
        load("a/b.py")


def test_json_files_with_a_mistake(tmp_path):
    file = written(tmp_path, b"\xff", "config.json")
    with pytest.raises(
        ConfigError, match=exactly(f"{file}: this is not UTF-8 text; write it as UTF-8")
    ):
        load(file)
    with pytest.raises(
        ConfigError,
        match=exactly(f"--config {file}:a=b: a JSON file takes no arguments; use --set"),
    ):
        load(f"{file}:a=b")
