"""Bad input of every kind to every command; ``errors.txt`` holds the sentence that each gets."""

import contextlib
import dataclasses
import gzip
import io
import json
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import datasets
import jax
import jaxtyping
import pytest
from safetensors.numpy import load, save

from clir_jax import evaluate, mine, prepare, train
from clir_jax.mesh import make_mesh
from clir_jax.models.formats import save_retriever
from clir_jax.models.retriever import Dense, LateInteraction
from clir_jax.training import loop
from tests.training.workshop import WORDS, retriever

PROGRAMS = {
    "train": train.main,
    "evaluate": evaluate.main,
    "mine": mine.main,
    "prepare": prepare.main,
}

# A configuration as people write it; a case ends it with another run.
RECIPE = """\
from clir_jax.config import *
from clir_jax.data.bitext import *
from clir_jax.data.collections import *
from clir_jax.data.hub_datasets import *
from clir_jax.data.ir import *
from clir_jax.data.rankings import *
from clir_jax.data.sources import *
from clir_jax.data.tfds import *
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.retriever import *
from clir_jax.objectives.contrastive import InfoNCE
from clir_jax.objectives.alignment import TokenAlignmentDistillation

TRIPLES, PAIRS = TriplesTSV("train.tsv"), BitextTSV("pairs.tsv", "sw")
TEXT = TextLines("text", "en")
VOCABULARY = TrainVocabulary((TEXT,))
TEST = Retrieval("corpus.jsonl", "queries.tsv", "qrels.trec", "en")
MINED = Mine("mined", "bm25", TRIPLES, TEXT, negatives=2)
DENSE = Dense(query_length=8, passage_length=8)
LATE = LateInteraction(dimension=8, query_length=8, passage_length=8)
NARROW = LateInteraction(dimension=4, query_length=8, passage_length=8)
SCRATCH = Scratch(EncoderConfig(
    vocab_size=100, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=8, max_position_embeddings=16,
))


def ranks(source, **changes):
    return Task(InfoNCE(), {"ranking": source}, batch_size=8, **changes)


def aligns(teacher="late", **options):
    objective = TokenAlignmentDistillation(**options)
    return Task(objective, {"bitext": PAIRS}, {"teacher": teacher}, batch_size=8)


def stage(*tasks, **changes):
    # The rate is so high that the second step is not finite.
    values = {"name": "small", "model": DENSE, "init": "dense", "tasks": tasks, "steps": 2}
    values |= {"checkpoint_every": 1, "optimizer": Optimizer(1e30, "constant")}
    return Stage(**values | changes)


def run(*stages):
    return Run("small", stages)


def get_config({arguments}):
    return {run}
"""
GOOD = "run(MINED, stage(ranks(Artifact('mined'))))"
GO_ON = "train --config recipe.py --run-dir run"
BROKEN = '{\n"type" 3}\n'
STAGE = "run/stages/02-small"
CHECKPOINT = f"{STAGE}/checkpoints/1"


@dataclasses.dataclass(frozen=True)
class Case:
    """What is run, and on which files."""

    command: str
    # What is written before, or how what is there is changed.
    files: Mapping[str, bytes | str | Callable[[bytes], bytes] | None] = dataclasses.field(
        default_factory=dict
    )
    # What is told besides, on standard output.
    told: str = ""

    def carry_out(self, capsys):
        """Run it here; returns the exit status, and what it wrote to both streams."""
        for name, content in self.files.items():
            file = Path(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                file.unlink()
                continue
            if callable(content):
                content = content(file.read_bytes())
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        program, *arguments = shlex.split(self.command)
        try:
            status = PROGRAMS[program](arguments)
        except SystemExit as stopped:  # what argparse does
            status = stopped.code
        told = capsys.readouterr()
        return status, told.out, told.err


def recipe(run=GOOD, arguments=""):
    return RECIPE.replace("{arguments}", arguments).replace("{run}", run)


def configured(run, options="", told="", **files):
    """A configuration that goes wrong before anything is trained."""
    files = {"recipe.py": recipe(run), **_named(files)}
    return Case(f"train --config recipe.py {options}", files, told)


def opened(source, **files):
    """A source that goes wrong when it is opened, before there is a model."""
    vocabulary = f"TrainVocabulary(({source},))"
    run = f"run(stage(ranks(TRIPLES), init=SCRATCH, vocabulary={vocabulary}))"
    return configured(run, **files)


def searched(options="", **files):
    """Files that go wrong when BM25 is measured on them."""
    named = "--corpus corpus.jsonl --queries queries.tsv --qrels qrels.trec"
    return Case(f"evaluate --model bm25 {named} {options}", _named(files))


def mined(options="", **files):
    """Files and options that go wrong when hard negatives are mined."""
    named = "--corpus corpus.jsonl --queries queries.tsv --qrels qrels.trec --output mined.jsonl"
    return Case(f"mine --model bm25 {named} {options}", _named(files))


def prepared(source, options="", **files):
    """Bitext that goes wrong when it is prepared."""
    named = f"--source {source} --language sw --name mine --out out"
    return Case(f"prepare {named} {options}", _named(files))


def _named(files):
    return {name.replace("__", "."): content for name, content in files.items()}


def damaged(file, change, told=""):
    """A file of a run, or of the model it starts from, that goes wrong when the run goes on."""
    return Case(GO_ON, {file: change}, told)


def halved(content):
    return content[: len(content) // 2]


def without(tensor):
    def change(content):
        return save({name: value for name, value in load(content).items() if name != tensor})

    return change


def with_tensor(content):
    tensors = load(content)
    return save(tensors | {"classifier.bias": tensors["embeddings.LayerNorm.bias"]})


def with_values(**values):
    def change(content):
        changed = json.loads(content) | values
        return json.dumps({k: v for k, v in changed.items() if v is not None}).encode()

    return change


COMMANDS = {
    "a configuration that is not there": Case("train --config nowhere/other.py"),
    "a misspelled one": Case("train --config recipes.py:language=sw"),
    "JSON with arguments": Case("train --config run/config.json:steps=3"),
    "damaged JSON": Case("train --config a.json", {"a.json": BROKEN}),
    "--set without a value": Case("train --config recipe.py --set seed"),
    "--set of an unknown path": Case(
        "train --config recipe.py --set stages.small.optimiser.warmup=3"
    ),
    "--set to another type": Case("train --config recipe.py --set stages.small.steps=many"),
    "--set to a value that does not fit": Case(
        "train --config recipe.py --set stages.small.optimizer.beta1=1.5"
    ),
    "an argument that is missing": Case(
        "train --config recipe.py", {"recipe.py": recipe(arguments="language: str")}
    ),
    "an unknown argument": Case(
        "train --config recipe.py:langauge=so", {"recipe.py": recipe(arguments="language='sw'")}
    ),
    "no Python": Case("train --config a.py", {"a.py": "def get_config()\n    return 1\n"}),
    "get_config raises": configured("{}['sw']"),
    "get_config returns no run": configured("'small'"),
    "no get_config": Case("train --config a.py", {"a.py": "def config():\n    return 1\n"}),
    "a run directory that is a model": Case("train --config recipe.py --run-dir dense"),
    "a run directory with other files": Case("train --config recipe.py --run-dir run/stages"),
    "a run directory of another run": Case(f"{GO_ON} --set seed=1"),
    "a run directory that is a file": Case("train --config recipe.py --run-dir text"),
    "a run directory below a file": Case("train --config recipe.py --run-dir text/run"),
    "an unknown option": Case("train --config recipe.py --steps 3"),
    "no model here": searched("--model ./nowhere"),
    "no model anywhere": searched("--model run/modle"),
    "a directory without a model": searched("--model run/stages"),
    "an unknown metric": searched("--metrics NDGC@10"),
    "a metric that cannot be read": searched("--metrics nDCG@ten"),
    "a run file nowhere": searched("--run-file nowhere/small.trec"),
    "a run file that is a directory": searched("--run-file run"),
    "three files of bitext": prepared("pairs.tsv pairs.tsv pairs.tsv"),
    "a name that TFDS refuses": prepared("pairs.tsv", "--name My-Pairs"),
    "no shards": prepared("pairs.tsv", "--shards 0"),
    "data sets below a file": prepared("pairs.tsv", "--out text/out"),
    "negatives that are there": mined(mined__jsonl="{}"),
    "more negatives than passages looked at": mined("--depth 5"),
    "titles of a corpus without": mined("--other-documents"),
    "questions without a word of the corpus": mined(queries__tsv="1\tfox\n2\tbear\n"),
    "bitext of a model that encodes nothing": Case(
        "evaluate --model bm25 --bitext pairs.tsv --language sw"
    ),
}
CONFIGURATIONS = {
    "an unknown key": configured("run(stage(step=3))"),
    "an unknown key in JSON": Case(
        "train --config run/config.json",
        {"run/config.json": lambda content: content.replace(b'"seed"', b'"sede"')},
    ),
    "a wrong type": configured("run(stage(ranks(TRIPLES), steps='3'))"),
    "a list for a tuple": configured("Run('small', [stage(ranks(TRIPLES))])"),
    "an impossible value": configured("run(stage(optimizer=Optimizer(beta1=1.0)))"),
    "an objective without its source": configured("run(stage(Task(InfoNCE(), {'bitext': PAIRS})))"),
    "a source of another kind": configured("run(stage(ranks(PAIRS)))"),
    "no teacher": configured("run(stage(Task(TokenAlignmentDistillation(), {'bitext': PAIRS})))"),
    "two stages of one name": configured("run(stage(ranks(TRIPLES)), stage(ranks(TRIPLES)))"),
    "the model of a later stage": configured(
        "run(stage(ranks(TRIPLES), name='a', init=FromStage('b')), stage(ranks(TRIPLES), name='b'))"
    ),
    "an artifact that nothing writes": configured("run(MINED, stage(ranks(Artifact('mind'))))"),
    "a batch that shards do not divide": configured(
        GOOD, "--set stages.small.tasks.InfoNCE.batch_size=12"
    ),
    "a mesh of other devices": configured(GOOD, "--set mesh.fsdp=3"),
    "a group of nothing": configured(
        "run(stage(ranks(TRIPLES), optimizer=Optimizer(groups=(Group('embedings'),))))"
    ),
    "everything frozen": configured(
        "run(stage(ranks(TRIPLES), optimizer=Optimizer(groups=(Group('.', freeze=True),))))"
    ),
    "steps that make no update": configured(
        "run(stage(ranks(TRIPLES), optimizer=Optimizer(accumulate=4)))"
    ),
    "best by what is not measured": configured(
        "run(stage(ranks(TRIPLES), evaluate=Evaluate({'en': TEST}, best='RR@10 sw')))"
    ),
    "a dense student of tokens": configured("run(stage(aligns()))"),
    "embeddings of two sizes": configured(
        "run(stage(ranks(TRIPLES), name='a', init='late', model=LATE),"
        " stage(aligns(FromStage('a')), init=SCRATCH, vocabulary=VOCABULARY, model=NARROW))",
        "--check",
        "a: LateInteraction, 0.0 M parameters, 2 steps of InfoNCE (8)\n",
    ),
    "pairs in order of two tokenizers": configured(
        "run(stage(aligns(english_pairs='in_order', length=8), init=SCRATCH, model=LATE,"
        " vocabulary=VOCABULARY))"
    ),
    "a layer that there is not": configured(
        "run(stage(aligns(layer=2, length=8), init='late', model=LATE))"
    ),
    "a plain encoder for a teacher": configured(
        "run(stage(aligns('plain'), init='late', model=LATE))"
    ),
    "generated questions": configured(
        "run(Generate('questions', 'dense', TEXT, ('sw',)), stage(ranks(TRIPLES)))"
    ),
    "buckets of a weighted mixture": configured(
        "run(stage(ranks(Mixture((TRIPLES, TRIPLES), (1.0, 2.0)), buckets=2)))"
    ),
    "passages beyond the positions": configured(
        "run(stage(ranks(TRIPLES), model=Dense(query_length=8, passage_length=64)))"
    ),
    "texts beyond the positions": configured(
        "run(stage(aligns(length=64), init='late', model=LATE))"
    ),
    "another model than the one saved": configured(
        "run(stage(aligns(), init='late', model=NARROW))"
    ),
    "no vocabulary": configured(
        "run(stage(ranks(TRIPLES), vocabulary=ReplaceVocabulary('words.txt')))"
    ),
    "a vocabulary that is not UTF-8": configured(
        "run(stage(ranks(TRIPLES), vocabulary=ReplaceVocabulary('words.txt')))",
        words__txt=b"[PAD]\ncaf\xe9\n",
    ),
    "no tokenizer": configured(
        "run(stage(ranks(TRIPLES), vocabulary=ReplaceVocabulary('run/stages')))"
    ),
    "no model to start from": configured("run(stage(ranks(TRIPLES), init='desne'))"),
    "a plain encoder for a work": configured(
        "run(Mine('mined', 'plain', TRIPLES, TEXT), stage(ranks(Artifact('mined'))))"
    ),
}
DATA = {
    "no file": opened("TextLines('texts', 'en')"),
    "no file of a pattern": opened("TextLines('*.text', 'en')"),
    "an empty file": opened("TEXT", text=""),
    "a line that is not UTF-8": opened("TEXT", text=b"lake\ncaf\xe9\n"),
    "UTF-16": opened("TEXT", text="lake".encode("utf-16")),
    "pairs that cannot be held out": opened("BitextTSV('pairs.tsv', 'sw', hold_out=99)"),
    "no data set of TFDS": opened("TFDS('mine', language='sw', data_dir='out')"),
    "no data set of ir_datasets": opened("IRDataset('msmarco-pasage/train')"),
    "no column": opened(
        "HubDataset('pairs.jsonl', columns={'english': 'en'}, language='sw')",
        pairs__jsonl='{"en": "lake", "sw": "ziwa"}\n',
    ),
    "no positive": opened(
        "RankingJSONL('ranks.jsonl')", ranks__jsonl='{"query": "lake", "positives": []}\n'
    ),
    "a field too few": prepared("pairs.tsv", pairs__tsv="1\tgood\tnzuri\n2\tgood\n"),
    "an empty side": prepared("pairs.tsv", pairs__tsv="1\tgood\t \n"),
    "files of other lengths": prepared("a.en a.sw", a__en="one\ntwo\n", a__sw="moja\n"),
    "a compressed file cut short": prepared(
        "a.gz", a__gz=gzip.compress(b"1\ta\tb\n" * 99, mtime=0)[:-9]
    ),
    "a file that is not compressed": prepared("a.gz", a__gz="1\ta\tb\n"),
    "a line that is not JSON": searched(corpus__jsonl='{"_id": "1", "text": "a"}\n{"_id": }\n'),
    "a passage without an id": searched(corpus__jsonl='{"id": "1", "text": "a"}\n'),
    "a passage twice": searched(corpus__jsonl='{"_id": "1", "text": "a"}\n' * 2),
    "a judged passage that is missing": searched(qrels__trec="1 0 1 1\n2 0 99 1\n"),
    "a judgement with two columns": searched(qrels__trec="1 1\n"),
    "no judgement": searched(qrels__trec="query-id\tcorpus-id\tscore\n"),
    "a column that is not there": searched("--query-column 2"),
}
DAMAGE = {
    "weights cut short": damaged("dense/model.safetensors", halved),
    "an index of weights": Case(
        GO_ON, {"dense/model.safetensors": None, "dense/model.safetensors.index.json": "{}"}
    ),
    "a tensor too few": damaged("dense/model.safetensors", without("embeddings.LayerNorm.bias")),
    "a tensor too many": damaged("dense/model.safetensors", with_tensor),
    "config.json of a model": damaged("dense/config.json", BROKEN),
    "no kind of model": damaged("dense/config.json", with_values(model_type=None)),
    "an unknown kind of model": damaged("dense/config.json", with_values(model_type="t5")),
    "clir_jax.json": damaged("dense/clir_jax.json", BROKEN),
    "a value of clir_jax.json": damaged("dense/clir_jax.json", with_values(retriever=3)),
    "tokenizer.json": damaged("dense/tokenizer.json", ""),
    "the parameters of a checkpoint": damaged(f"{CHECKPOINT}/state/manifest.ocdbt", halved),
    "the facts of a checkpoint": damaged(f"{CHECKPOINT}/meta/metadata", halved),
    "a checkpoint of another model": damaged(
        f"{CHECKPOINT}/meta/metadata",
        lambda content: content.replace(
            b'embeddings/norm/bias": [16]', b'embeddings/norm/bias": [9]', 1
        ),
    ),
    "a checkpoint of another version": damaged(
        f"{CHECKPOINT}/meta/metadata", lambda content: content.replace(b'"stale"', b'"bored"')
    ),
    "the log": damaged(f"{STAGE}/metrics.jsonl", lambda content: b"{}\n" + content),
    "the summary of a stage": damaged(f"{STAGE}/summary.json", BROKEN),
    "what a stage read": damaged(f"{STAGE}/artifacts.json", "[]"),
    "an artifact that changed": damaged(
        "train.tsv",
        lambda content: b"".join(reversed(content.splitlines(keepends=True))),
        "stage 1/2 mined  artifact mined is built again: its source changed; lines removed: 16\n"
        "stage 1/2 mined  artifact mined: 48 passages found, of these\n"
        "   0  known to be relevant\n"
        "  16  more than are kept\n"
        "  32  negatives\n",
    ),
    "config.json of a run": damaged("run/config.json", BROKEN),
}
CASES = COMMANDS | CONFIGURATIONS | DATA | DAMAGE
LINES = Path(__file__).with_name("errors.txt").read_text(encoding="utf-8").splitlines()
SENTENCES = dict(zip(LINES[::2], (line.strip() for line in LINES[1::2]), strict=True))


@pytest.fixture(autouse=True)
def _as_people_run_it(tmp_path, monkeypatch):
    """Without the suite's own type checker, which would speak first, and without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where every case starts, in a copy of its own."""
    directory = tmp_path_factory.mktemp("home")
    pairs = list(zip(WORDS, WORDS[3:] + WORDS[:3], strict=True))
    passages = [{"_id": str(n), "text": f"{a} {b}"} for n, (a, b) in enumerate(pairs)]
    for name, lines in {
        "train.tsv": [f"{a} {b}\t{b} {a}\t{a} {a}" for a, b in pairs],
        "pairs.tsv": [f"{n}\t{a}\t{b}" for n, (a, b) in enumerate(pairs)],
        "text": [f"{a} {b}" for a, b in pairs],
        "corpus.jsonl": map(json.dumps, passages),
        "queries.tsv": ["1\tlake", "2\triver"],
        "qrels.trec": ["1 0 1 1", "2 0 2 1"],
        "recipe.py": [recipe()],
    }.items():
        (directory / name).write_text("".join(f"{line}\n" for line in lines))
    for name, kind in {"dense": Dense, "late": LateInteraction}.items():
        size = {} if kind is Dense else {"dimension": 8}
        model = retriever(kind(query_length=8, passage_length=8, **size))
        config, words = model.encoder_config, model.tokenizer
        save_retriever(directory / name, model.spec, config, model.params, words, model.skiplist)
    shutil.copytree(directory / "dense", directory / "plain")
    (directory / "plain" / "clir_jax.json").unlink()
    return directory


@pytest.fixture(scope="module")
def stopped(home):
    """A run that stopped at its second step: what the command gave and told."""
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(told):
        patch.chdir(home)
        patch.setattr(loop, "make_mesh", lambda *_: make_mesh(devices=jax.devices()[:1]))
        status = train.main(shlex.split(GO_ON)[1:])
    return status, told.getvalue()


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_sentence(name, home, stopped, tmp_path, monkeypatch, capsys):
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    trained = []
    monkeypatch.setattr(loop, "put_rows", lambda *given: trained.append(given))
    told = CASES[name].carry_out(capsys)
    assert told == (2, CASES[name].told, f"error: {SENTENCES[name]}\n")
    assert trained == []


def test_every_sentence_has_its_case():
    assert list(SENTENCES) == list(CASES)


def test_a_loss_that_is_not_finite_is_one_sentence(stopped):
    assert stopped == (
        1,
        "error: stage 2/2 small: the loss of step 2 or its gradient is not finite "
        f"(InfoNCE/loss nan, grad_norm nan, loss nan); the last good checkpoint is {CHECKPOINT}; "
        "start another --run-dir with a lower learning rate or a clip_norm, or look at the data of "
        "that step\n",
    )
