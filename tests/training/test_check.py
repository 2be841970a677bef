"""``--check``: what is built without weights, and which data are missed."""

import re
from pathlib import Path

import pytest

from clir_jax.config import (
    Evaluate,
    FromStage,
    Generate,
    Group,
    MeshShape,
    Optimizer,
    ReplaceVocabulary,
    Rounds,
    Run,
    Scratch,
    Stage,
    Task,
    TrainVocabulary,
)
from clir_jax.config_files import ConfigError, load
from clir_jax.data.bitext import BitextMoses, BitextTSV
from clir_jax.data.collections import (
    AtlasRetrieval,
    BitextRetrieval,
    IRDatasetRetrieval,
    Retrieval,
)
from clir_jax.data.dpr import DPRJSON
from clir_jax.data.hub_datasets import HubDataset
from clir_jax.data.ir import IRDataset
from clir_jax.data.rankings import Beir
from clir_jax.data.sources import Atlas, Mixture, TextLines
from clir_jax.data.tfds import TFDS
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.retriever import Dense, LateInteraction
from clir_jax.objectives.alignment import TokenAlignmentDistillation
from clir_jax.objectives.contrastive import InfoNCE
from clir_jax.training.check import check

CONFIGS = Path(__file__).parents[2] / "configs"
LATE = LateInteraction(dimension=16, query_length=8, passage_length=16)
WIDE = LateInteraction(dimension=None, query_length=8, passage_length=16)


def stage(name="teacher", source=None, **changes):
    task = Task(InfoNCE(), {"ranking": Atlas("ranking", "en") if source is None else source})
    whole = {"model": LATE, "init": "bert-base-uncased", "tasks": (task,), "steps": 7}
    return Stage(name=name, **(whole | changes))


def distilled(source=None, length=8, **changes):
    task = Task(
        TokenAlignmentDistillation(length=length),
        {"bitext": Atlas("bitext", "sw") if source is None else source},
        teachers={"teacher": FromStage("teacher")},
    )
    return stage("distil", **({"init": FromStage("teacher"), "tasks": (task,)} | changes))


def lines(run, capsys, *, data_required=False, status=0):
    assert check(run, data_required=data_required) == status
    return capsys.readouterr().out.splitlines()


def parameters(config, model_parameters):
    """A BERT encoder counted by hand."""
    d, f = config.hidden_size, config.intermediate_size
    rows = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
    layer = 4 * (d * d + d) + (d * f + f) + (f * d + d) + 4 * d
    return rows * d + 2 * d + config.num_hidden_layers * layer + model_parameters


def test_what_is_built_is_told(capsys):
    tiny = EncoderConfig(
        vocab_size=1,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=200,
        max_position_embeddings=40,
    )
    first = stage(
        init=Scratch(tiny), vocabulary=TrainVocabulary((TextLines("t.txt", "en"),), 12_345)
    )
    # The vocabulary's size is the one that is trained, not the encoder's.
    count = parameters(tiny, 96 * 16) + (12_345 - 1) * 96
    assert lines(Run("r", (first, distilled())), capsys) == [
        f"teacher: LateInteraction, {count / 1e6:.1f} M parameters, 7 steps of InfoNCE (32)",
        f"distil: LateInteraction, {count / 1e6:.1f} M parameters, 7 steps of "
        "TokenAlignmentDistillation (32)",
        "missing: t.txt",
        "set data_root to the directory that holds these, as in --set data_root=DIR",
    ]


def test_known_models_are_built_without_a_network(capsys):
    told = lines(Run("r", (stage(model=Dense()),)), capsys)
    assert told == ["teacher: Dense, 108.9 M parameters, 7 steps of InfoNCE (32)"]


def test_a_model_in_a_directory_is_built(tmp_path, capsys):
    sizes = (
        '"vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, '
        '"intermediate_size": 64, "max_position_embeddings": 32'
    )
    (tmp_path / "config.json").write_text(f'{{"model_type": "bert", {sizes}}}')
    told = lines(Run("r", (stage(init=str(tmp_path)),)), capsys)
    assert told == ["teacher: LateInteraction, 0.1 M parameters, 7 steps of InfoNCE (32)"]
    (tmp_path / "config.json").unlink()
    with pytest.raises(
        ConfigError, match=r"^stages\.teacher\.init: .*: no config\.json here; give a model's dir"
    ):
        check(Run("r", (stage(init=str(tmp_path)),)), data_required=False)


def test_a_vocabulary_to_come_is_told_of_the_stages_that_inherit_it(tmp_path, capsys):
    (tmp_path / "v.txt").write_text("[PAD]\n")
    swapped = distilled(vocabulary=ReplaceVocabulary("v.txt"))
    later = stage("later", init=FromStage("distil"))
    run = Run("r", (stage(), swapped, later), data_root=str(tmp_path))
    assert [" before its vocabulary is replaced, " in line for line in lines(run, capsys)] == [
        False,
        True,
        True,
    ]


def test_missing_data_are_listed_once_and_an_error_when_required(tmp_path, capsys):
    (tmp_path / "c.jsonl").write_text("{}\n")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.tsv").write_text("x\n")
    english = Beir("c.jsonl", "q.tsv", "r.trec", translations={"sw": "q.sw.tsv", "so": 2})
    tests = {
        "files": Retrieval("c.jsonl", "test.tsv", "r.trec", "sw"),
        "pairs": BitextRetrieval("b/*.tsv", "sw", 5, distractors="d.jsonl"),
        "atlas": AtlasRetrieval("sw"),
        "id": IRDatasetRetrieval("an/id", "sw", corpus="another/id"),
    }
    # Ids and names are no files here, whatever they look like.
    named = (IRDataset("an/id", query_field="title"), HubDataset("no.parquet"), TFDS("a/name"))
    sources = (english, english, DPRJSON("dpr.json.gz"), *named)
    first = stage(source=Mixture(sources), evaluate=Evaluate(tests))
    aligned = BitextMoses("m.en", "m.sw.gz", "sw")
    swapped = distilled(
        BitextTSV("none/*.tsv", "sw"),
        vocabulary=ReplaceVocabulary(
            "vocab/v.txt", (TextLines("t.txt", "sw"), aligned, tests["pairs"])
        ),
    )
    run = Run("r", (first, swapped), data_root=str(tmp_path))
    told = lines(run, capsys)
    missing = [line.removeprefix("missing: ") for line in told if line.startswith("missing: ")]
    names = ["q.tsv", "r.trec", "q.sw.tsv", "test.tsv", "d.jsonl", "dpr.json.gz", "m.en", "m.sw.gz"]
    names += ["none/*.tsv", "vocab/v.txt", "t.txt"]
    assert sorted(missing) == sorted(str(tmp_path / name) for name in names)
    assert told[-1].startswith("set data_root to the directory that holds these")
    assert lines(run, capsys, data_required=True, status=1) == told
    for name in names:
        file = tmp_path / name.replace("*", "1")
        file.parent.mkdir(exist_ok=True)
        file.write_text("x\n")
    assert len(lines(run, capsys, data_required=True)) == 2


def test_a_tokenizer_with_another_name_is_not_looked_for(capsys):
    swapped = stage(vocabulary=ReplaceVocabulary("bert-base-multilingual-cased"))
    assert len(lines(Run("r", (swapped,)), capsys, data_required=True)) == 1


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: Run("r", (stage(init="bert-basic"),)),
            r"stages\.teacher\.init is 'bert-basic', which is no directory here and none of the "
            "architectures that --check knows without a network; did you mean 'bert-base-cased'[?]",
        ),
        (
            lambda: Run("r", (stage(init="someone/else"),)),
            ".* --check knows without a network; training may find it on the hub",
        ),
        (
            lambda: Run("r", (stage(), stage("next", model=WIDE, init=FromStage("teacher")))),
            r"stages\.next\.model has other parameters than that of stage 'teacher', from which it "
            "starts; make it the same, but for lengths",
        ),
        (
            lambda: Run("r", (stage(model=LateInteraction(passage_length=600)),)),
            r"stages\.teacher: retriever: passage_length is 600 and the encoder has positions for "
            "512 tokens; write at most that",
        ),
        (
            lambda: Run("r", (stage(optimizer=Optimizer(groups=(Group("encodr"),))),)),
            r"stages\.teacher: optimizer: the group 'encodr' matches no parameter .*",
        ),
        (
            lambda: Run("r", (stage(), distilled(model=Dense(), init="xlm-roberta-base"))),
            r"stages\.distil\.tasks\.TokenAlignmentDistillation: TokenAlignmentDistillation "
            "aligns tokens, and the student is a dense retriever .*",
        ),
        # The teacher's width is its own encoder's.
        (
            lambda: Run("r", (stage(model=WIDE), distilled(model=WIDE, init="xlm-roberta-large"))),
            r"stages\.distil\.tasks\.TokenAlignmentDistillation: TokenAlignmentDistillation "
            "compares token vectors, and the student's have 1024 numbers where the teacher's have "
            "768; .*",
        ),
        (
            lambda: Run("r", (stage(), distilled(length=513))),
            r"stages\.distil\.tasks\.TokenAlignmentDistillation: its objective asks "
            "for texts of 513 tokens, and the encoder has positions for 512; set its length to at "
            "most that",
        ),
        (
            lambda: Run("r", (stage(),), mesh=MeshShape(data=8, fsdp=6)),
            r"stages\.teacher\.tasks\.InfoNCE\.batch_size is 32, which the mesh's 48 row shards .*",
        ),
        (
            lambda: Run(
                "r", (stage(), Generate("a", FromStage("teacher"), Atlas("text", "en"), ("sw",)))
            ),
            r"stages\.a\.model is the retriever of stage 'teacher', which writes no text; name .*",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(make, sentence):
    with pytest.raises(ConfigError, match=f"^{sentence}$"):
        check(make(), data_required=False)


@pytest.mark.parametrize("name", sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob("*.py")))
def test_every_recipe_can_be_built(name, capsys):
    run = load(str(CONFIGS / name))
    told = lines(run, capsys)
    for stage in run.training_stages():
        assert any(
            re.match(rf"{stage.name}(\.1)?: \w+, [\d.]+ M parameters", line) for line in told
        )


def test_rounds_are_built_as_they_begin_and_told_once(capsys):
    """The stage starts from itself: the first time from what its rounds start with."""
    told = lines(load(str(Path(__file__).with_name("rounds_recipe.py"))), capsys)
    assert [line.split(",")[0] for line in told] == [
        "warm: LateInteraction",
        "mined.1: Mine",
        "ranker.1: LateInteraction",
        "answers: EncodeTeacher",
        "distil: LateInteraction",
        "again: 2 rounds of mined",
    ]
    wide = stage("wide", init=FromStage("wide"), model=WIDE)
    group = Rounds("again", 2, (wide,), start={"wide": FromStage("teacher")})
    with pytest.raises(ConfigError, match=r"^stages\.wide\.model has other parameters"):
        check(Run("r", (stage(), group)), data_required=False)
