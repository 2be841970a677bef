"""A place for work to be tested in: a tiny retriever, tiny rankings, and a log that is kept."""

import dataclasses
import json

import jax
import numpy as np
from flax import nnx

from clir_jax.config import MeshShape, Run, Scratch, Stage, Task, TrainVocabulary
from clir_jax.data.rankings import RankingJSONL
from clir_jax.data.sources import TextLines
from clir_jax.data.tokenization import RequestTokenizer
from clir_jax.mesh import make_mesh, shardings
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.formats import LoadedRetriever
from clir_jax.models.requests import EncodePassage, EncodeQuery
from clir_jax.models.retriever import LateInteraction, Retriever
from clir_jax.models.tokenizer import add_markers, punctuation_ids
from clir_jax.models.vocabulary import train_wordpiece
from clir_jax.objectives.contrastive import InfoNCE
from clir_jax.training.artifacts import Workplace

WORDS = [a + b for a in ("la", "ri", "mo", "tu") for b in ("ke", "ver", "un", "na")]
LATE = LateInteraction(dimension=8, query_length=12, passage_length=40)
RANKINGS = RankingJSONL("rankings.jsonl", "sw")
CORPUS = TextLines("corpus.txt", "en")


def sentence(rng, least, most):
    """Some words and a full stop."""
    return " ".join(rng.choice(WORDS, rng.integers(least, most + 1))) + "."


def write_data(folder, records=11, passages=30):
    """Rankings in two languages, some questions twice, and a corpus with all of their passages."""
    rng = np.random.default_rng(0)
    texts = list(dict.fromkeys(sentence(rng, 2, 18) for _ in range(passages)))
    rows = []
    for n in range(records):
        # The last two ask what the first two asked, and know other passages to be relevant.
        again = n - records + 2
        queries = rows[again] if again >= 0 else {"query": sentence(rng, 1, 4)}
        other = queries.get("queries", {"en": sentence(rng, 1, 3)})
        chosen = [texts[i] for i in rng.choice(len(texts), 4, replace=False)]
        positives = int(rng.integers(1, 3))
        rows.append(
            {
                "query": queries["query"],
                "queries": other,
                "positives": chosen[:positives],
                "negatives": chosen[positives : int(rng.integers(positives, 5))],
            }
        )
    (folder / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "corpus.txt").write_text("".join(text + "\n" for text in [*texts, *texts[:3]]))
    return rows, texts


def retriever(spec=LATE, mesh=None):
    """A retriever with random weights, its parameters on the mesh."""
    tokenizer = train_wordpiece([*WORDS, "a.b,c"], 60)
    tokenizer, _ = add_markers(tokenizer, spec)
    config = EncoderConfig(
        vocab_size=tokenizer.size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=40,
        initializer_range=0.5,  # vectors that differ: no two passages with scores nearly equal
    )
    graphdef, params = nnx.split(Retriever(spec, config, rngs=nnx.Rngs(0)))
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    params = jax.device_put(params, shardings(params, mesh))
    return LoadedRetriever(spec, config, graphdef, params, tokenizer, punctuation_ids(tokenizer))


def by_hand(model, kind, texts, layer=None, **how):
    """The vectors of each text, and which are kept: the model asked about it alone."""
    tokenizer = RequestTokenizer(model.tokenizer, model.spec, skiplist=model.skiplist)
    params = jax.device_put(jax.device_get(model.params), jax.devices()[0])
    asked = jax.jit(lambda params, request: nnx.merge(model.graphdef, params)(request, layer=layer))
    for text in texts:
        out = jax.device_get(asked(params, tokenizer.tokenize(kind, [text], **how)))
        yield out.vectors[0], out.mask[0]


def scores_by_hand(model, queries, passages, passage_model=None):
    """MaxSim of every query and passage, two loops and the formula."""
    asked, searched = (
        [vectors[mask] for vectors, mask in by_hand(encoder, kind, texts)]
        for encoder, kind, texts in (
            (model, EncodeQuery, queries),
            (passage_model or model, EncodePassage, passages),
        )
    )
    return np.array([[(q @ p.T).max(axis=1).sum() for p in searched] for q in asked])


def stage(*tasks):
    """A stage that could train; nothing of it but its tasks is looked at."""
    encoder = EncoderConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=40,
    )
    return Stage(
        name="train",
        model=LATE,
        init=Scratch(encoder),
        vocabulary=TrainVocabulary((CORPUS,)),
        tasks=tasks or (Task(InfoNCE(), {"ranking": RANKINGS}),),
        steps=1,
    )


@dataclasses.dataclass
class Workshop:
    """Where the works of a run are carried out: ``folder`` has the data and a model's directory.

    Args:
      folder: an empty directory.
      works: of the run, before its only stage.
      model: what every name of a model means.
      tasks: of the stage.
      mesh: of the model.
      seed: of the work.
    """

    folder: object
    works: tuple = ()
    model: LoadedRetriever | None = None
    tasks: tuple = ()
    mesh: object = None
    seed: int = 0

    def __post_init__(self):
        self.said, self.progressed, self.content = [], [], "one"
        (self.folder / "model").mkdir(exist_ok=True)
        (self.folder / "model" / "weights").write_text("weights")

    def place(self, name, progress=None):
        """The place of one artifact; ``progress`` may stop the work by an exception."""
        run = Run(
            "r", (*self.works, stage(*self.tasks)), data_root=str(self.folder), mesh=MeshShape()
        )
        return Workplace(
            run=run,
            mesh=self.mesh or make_mesh(devices=jax.devices()[:1]),
            seed=self.seed,
            directory=self.folder / "artifacts" / name,
            say=self.said.append,
            progress=progress or (lambda *told: self.progressed.append(told)),
            open_source=lambda source: source.open(str(self.folder)),
            load_model=lambda name, stage: self.model,
            model_directory=lambda name: self.folder / "model",
            artifact_print=lambda name: f"{name} {self.content}",
        )


class Killed(BaseException):
    """A kill, at a moment that a test chooses."""


def kill_at(call):
    """A callable that raises at its n-th call."""
    calls = []

    def told(*_):
        calls.append(None)
        if len(calls) == call:
            raise Killed

    return told


def bytes_of(directory):
    """Every file below a directory, by name."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}
