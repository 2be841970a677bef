"""The contract of every objective: no chunk, device, mesh or padding changes loss or gradient.

Objectives are discovered, so a new file in ``clir_jax/objectives`` is under contract at once. They
are tasks of one step, compiled once for each variant: the sum of their gradients, each scaled to
length 1, is compared, and each alone where the sums differ.
Random inputs are made from what an objective asks; the reference is one device that encodes
everything at once, and in it nothing of the machinery under test (chunks, shard_map, weight-0 rows)
takes part.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clir_jax import objectives
from clir_jax.mesh import make_mesh, put_rows, shardings
from clir_jax.models.cross_encoder import CrossEncoder, CrossEncoderModel
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.generator import Generator, GeneratorModel
from clir_jax.models.requests import EncodePassage, EncodeQuery, Likelihood, Relevance, Tokens
from clir_jax.models.retriever import Dense, LateInteraction, Retriever
from clir_jax.models.t5_config import T5Config
from clir_jax.objectives.alignment import TokenAlignmentDistillation
from clir_jax.objectives.base import Batch, ModelFacts
from clir_jax.objectives.contrastive import InfoNCE
from clir_jax.objectives.distillation import MarginMSE, RelevanceDistillation
from clir_jax.objectives.generation import GeneratorContrastive, QueryAlignment
from clir_jax.objectives.language import LanguageContrastive, LanguageFairness
from clir_jax.objectives.triplet import Triplet
from clir_jax.ops.alignment import IPOT, Assignment, Attention, Greedy, Sinkhorn
from clir_jax.training.step import Chunking, StepTask, answer, make_gradient
from clir_jax.tree import paths


@dataclasses.dataclass(frozen=True)
class OfAnother:
    """An objective whose teacher, of another kind, stands beside the retrievers that teach others.

    Its model is called ``"cross-encoder"`` or ``"generator"``.
    """

    objective: object
    kind: str

    def __getattr__(self, name):
        return getattr(self.objective, name)

    @property
    def teacher(self):
        asks = self.objective.teacher.items()
        return {name: dataclasses.replace(ask, model=self.kind) for name, ask in asks}


OBJECTIVES = {name: cls() for name, cls in objectives.discover().items()}
# A generator with random weights is rarely sure: any threshold would close all gates.
OBJECTIVES["QueryAlignment"] = OfAnother(QueryAlignment(threshold=0.0), "generator")
# Other code paths of the same objectives.
OPTIONS = {
    "own list only": InfoNCE(in_batch=False),
    "in batch": RelevanceDistillation(in_batch=True, similarity="l2"),
    "stored scores": MarginMSE(teacher_kind="stored"),
    "of a cross-encoder": OfAnother(
        RelevanceDistillation(teacher_kind="cross_encoder"), "cross-encoder"
    ),
    "of a generator": OfAnother(RelevanceDistillation(teacher_kind="generator"), "generator"),
    "both follow, ungated": QueryAlignment(confidence="none", stop_gradient=False),
    "sum": GeneratorContrastive(reduction="sum"),
    "with text": LanguageContrastive(text=True, read_as="passage"),
    "fair over the batch": LanguageFairness(in_batch=True),
    "fair over passages": LanguageFairness(("query",), passages=("passages.en", "passages.de")),
    "squared distance": Triplet(distance="l2", reduction="mean"),
    "idf, unbalanced": TokenAlignmentDistillation(
        Sinkhorn(tau_student=0.9, tau_teacher=0.95), query_weight=1.0, marginals="idf"
    ),
    "ott, no English, no specials": TokenAlignmentDistillation(
        Sinkhorn(solver="ott"), query_weight=1.0, specials_weight=0.0
    ),
    "greedy, from a layer": TokenAlignmentDistillation(
        Greedy(), "mse", english="passage", english_pairs="in_order", layer=1
    ),
    "assignment, null": TokenAlignmentDistillation(
        Assignment(), "l1", query_weight=1.0, null=0.9, specials_weight=0.0
    ),
    "ipot": TokenAlignmentDistillation(IPOT(), query_weight=1.0, specials_weight=0.0),
    "attention, agreement": TokenAlignmentDistillation(
        Attention(0.2), query_weight=1.0, agreement=True, specials_weight=0.0
    ),
}
LATE = LateInteraction(dimension=8, query_length=8, passage_length=16)
DENSE = Dense(projection=8, query_length=8, passage_length=16)
CROSS = CrossEncoder(length=16, query_length=4)
GENERATOR = Generator(source_length=10, target_length=6)
KINDS = {
    "late interaction": LATE,
    "dense": DENSE,
    "cross-encoder": CROSS,
    "generator": GENERATOR,
}
ANSWERS = {"cross-encoder": (Relevance,), "generator": (Likelihood,)}
WITNESSES = ("InfoNCE", "SemanticContrastive")
ROWS, PASSAGES, WIDTH = 16, 3, {"query": 6, "passages": 10}
MESHES = {
    "1 device": {"data": 1, "fsdp": 1, "tensor": 1},
    "data 8": {"data": 8, "fsdp": 1, "tensor": 1},
    "fsdp 8": {"data": 1, "fsdp": 8, "tensor": 1},
    "2 x 2 x 2": {"data": 2, "fsdp": 2, "tensor": 2},
}
# Tokens a chunk, encoding, rows of padding, tokens of padding. Small chunks cut unevenly: 16 rows
# in pieces of 5 need rows to be filled up.
PLAIN = (None, "gather_once", 0, 0)
VARIANTS = [
    ("1 device", (50, "gather_once", 8, 3)),
    ("data 8", (20, "gather_once", 8, 3)),
    ("fsdp 8", PLAIN),
    ("fsdp 8", (50, "per_layer", 0, 0)),
    ("2 x 2 x 2", (20, "gather_once", 8, 3)),
]
# Requests of pairs are rows like others: the variant that has everything is enough.
CASES = [
    (kind, *case) for kind in KINDS for case in (VARIANTS if kind not in ANSWERS else VARIANTS[-1:])
]


@dataclasses.dataclass(frozen=True)
class Setting:
    """Models of one kind, objectives that accept them, and a batch for each."""

    tasks: dict
    student: object
    teachers: dict
    batches: dict


@dataclasses.dataclass(frozen=True)
class Scaled:
    """An objective whose weight is an argument: one program has the gradient of each alone."""

    objective: object
    weight: object

    def __getattr__(self, name):
        return getattr(self.objective, name)

    def loss(self, student, teacher, batch):
        value, metrics = self.objective.loss(student, teacher, batch)
        return self.weight.astype(value.dtype) * value, metrics


def _accepts(objective, spec):
    kind = next(name for name, own in KINDS.items() if own is spec)
    facts = ModelFacts(False, 0, kind=kind, answers=ANSWERS.get(kind, ()))
    if kind not in ANSWERS:
        facts = ModelFacts(spec.late_interaction, spec.embedding_size(16), hidden_size=16, layers=1)
    names = {ask.model for ask in objective.teacher.values()}
    if any(ask.kind not in facts.answers for ask in objective.student.values()):
        return False
    try:
        objective.check(facts, dict.fromkeys(names, facts))
    except ValueError:
        return False
    return True


def _setting(spec, dtype, tasks):
    names = {ask.model for task in tasks.values() for ask in task.teacher.values()}
    student = _model(spec, dtype, layers=2, seed=0)
    teachers = {
        name: _model(KINDS.get(name, spec), dtype, layers=1, seed=1 + i)
        for i, name in enumerate(sorted(names))
    }
    return Setting(tasks, student, teachers, {name: _batch(task) for name, task in tasks.items()})


def _model(spec, dtype, layers, seed):
    if spec is GENERATOR:
        t5 = T5Config(
            vocab_size=101,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=layers,
            num_heads=2,
            dropout_rate=0.2,
            dtype=dtype,
        )
        return nnx.split(GeneratorModel(spec, t5, rngs=nnx.Rngs(seed)))
    config = EncoderConfig(
        vocab_size=101,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.2,
        dtype=dtype,
    )
    module = CrossEncoderModel if spec is CROSS else Retriever
    return nnx.split(module(spec, config, rngs=nnx.Rngs(seed)))


def _batch(objective):
    # MaxSim has kinks: with seed 0 two tokens are 8e-8 from being equally near to a third, and
    # float32 may choose either. Here no two are nearer than 1e-5.
    rng = np.random.default_rng(1)

    def tokens(ask, field):
        listed = any(text.startswith("ranking.passages") for text in ask.texts)
        shape = (ROWS, PASSAGES) if listed else (ROWS,)
        width = WIDTH.get(field, WIDTH["query"])
        used = np.arange(width) < rng.integers(3, width + 1, shape)[..., None]
        ids = np.where(used, rng.integers(5, 101, used.shape), 0).astype(np.int32)
        return Tokens(ids, used, used & (rng.random(used.shape) < 0.8))

    def request(ask):
        if ask.kind is Likelihood:
            return Likelihood(tokens(ask, "passages"), tokens(ask, "query"))
        return ask.kind(tokens(ask, ask.texts[-1].split(".")[1]))

    student = {name: request(ask) for name, ask in objective.student.items()}
    teacher = {name: request(ask) for name, ask in objective.teacher.items()}
    # Few passages, so that duplicates and known positives do meet in the batch.
    passages = rng.integers(0, 25, (ROWS, PASSAGES)).astype(np.int32)
    passages[3, 2] = -1
    known = np.stack([passages[:, 0], rng.integers(-1, 25, ROWS)], axis=1).astype(np.int32)
    labels = {
        "ranking.query_id": np.arange(ROWS, dtype=np.int32),
        "ranking.passage_ids": passages,
        "ranking.known": known,
        "ranking.scores": rng.normal(size=(ROWS, PASSAGES)).astype(np.float32),
        "bitext.id": np.minimum(np.arange(ROWS), ROWS - 2).astype(np.int32),
        "text.id": np.arange(ROWS, dtype=np.int32),
    }
    for label in objective.token_labels:
        side, name, kind = label.split(".")
        keep = {"student": student, "teacher": teacher}[side][name].tokens.keep
        inner = keep & (np.arange(keep.shape[-1]) > 0)
        labels[label] = inner if kind == "content" else rng.random(keep.shape, np.float32)
    return Batch(student, teacher, np.ones(ROWS, np.float32), labels)


def _padded(batch, rows, tokens):
    """The same batch with rows of weight 0 (copies of real ones) and wider texts."""

    def more_rows(x):
        return np.concatenate([x, x[:rows]])

    def wider(x):
        x = more_rows(x)
        return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, tokens)])

    token_labels = {k: wider(v) for k, v in batch.labels.items() if k.count(".") == 2}
    labels = {k: more_rows(v) for k, v in batch.labels.items()} | token_labels
    weight = np.concatenate([batch.weight, np.zeros(rows, np.float32)])
    student, teacher = jax.tree.map(wider, (batch.student, batch.teacher))
    return Batch(student, teacher, weight, labels)


def _program(setting, mesh_name, variant):
    """From the weights of tasks to the gradient of their sum, and the metrics of all."""
    tokens_per_chunk, encode, rows, tokens = variant
    sizes = MESHES[mesh_name]
    count = sizes["data"] * sizes["fsdp"] * sizes["tensor"]
    mesh = make_mesh(**sizes, devices=jax.devices()[:count])
    graphdef, params = setting.student

    def of_weights(weights, *arguments):
        scaled = {name: Scaled(task, weights[name]) for name, task in setting.tasks.items()}
        gradient = make_gradient(
            graphdef,
            {name: model[0] for name, model in setting.teachers.items()},
            {name: StepTask(task) for name, task in scaled.items()},
            seed=7,
            chunking=Chunking(tokens_per_chunk, encode),
        )
        return gradient(*arguments)

    place = shardings(params, mesh)
    teachers = {
        name: jax.device_put(model[1], shardings(model[1], mesh))
        for name, model in setting.teachers.items()
    }
    params, step = jax.device_put(params, place), jnp.asarray(3, jnp.int32)
    batches = {n: put_rows(_padded(b, rows, tokens), mesh) for n, b in setting.batches.items()}
    compiled = jax.jit(of_weights, out_shardings=(place, NamedSharding(mesh, P())))

    def run(weights):
        weights = {name: np.float64(weights.get(name, 0.0)) for name in setting.tasks}
        with jax.set_mesh(mesh):
            found = compiled(weights, params, teachers, batches, step)
        return jax.device_get(found)

    return run


def _reference(setting):
    """Of every task alone, on one device and all at once: its gradient, and its metrics."""
    run = _program(setting, "1 device", PLAIN)
    found = {}
    for name in setting.tasks:
        gradient, metrics = run({name: 1.0})
        mine = {metric: x for metric, x in metrics.items() if metric.startswith(f"{name}/")}
        found[name] = gradient, mine
    return found


def _distance(gradient, expected):
    return float(optax.tree.norm(jax.tree.map(lambda a, b: a - b, gradient, expected)))


def _compare(run, reference, tolerance):
    norms = {name: float(optax.tree.norm(gradient)) for name, (gradient, _) in reference.items()}
    assert min(norms.values()) > 1e-3, norms
    weights = {name: 1 / norm for name, norm in norms.items()}
    gradient, metrics = run(weights)
    for name, (_, expected) in reference.items():
        for metric, value in expected.items():
            scale = norms[name] if metric == f"{name}/loss" else 1.0
            found = metrics.pop(metric) * scale
            np.testing.assert_allclose(found, value, rtol=tolerance, atol=tolerance, err_msg=metric)
    assert metrics.keys() == {"loss"}
    scaled = [jax.tree.map(lambda x, w=weights[n]: w * x, g) for n, (g, _) in reference.items()]
    if _distance(gradient, jax.tree.map(lambda *x: sum(x), *scaled)) > tolerance:
        alone = {name: _distance(run({name: 1.0})[0], g) for name, (g, _) in reference.items()}
        assert [name for name in alone if alone[name] > tolerance * norms[name]] == []


@functools.cache
def _of_kind(kind, dtype):
    """What a kind of retriever is tested with, and the reference of each task."""
    spec = KINDS[kind]
    tasks = {name: task for name, task in (OBJECTIVES | OPTIONS).items() if _accepts(task, spec)}
    if kind == "dense":  # what late interaction is tested with needs few witnesses here
        tasks = {n: t for n, t in tasks.items() if n in WITNESSES or not _accepts(t, LATE)}
    setting = _setting(spec, dtype, tasks)
    return setting, _reference(setting)


def test_every_objective_accepts_a_kind_of_retriever():
    refused = [
        name
        for name, task in OBJECTIVES.items()
        if not any(_accepts(task, spec) for spec in KINDS.values())
    ]
    assert refused == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_has_a_gradient_everywhere(kind):
    with jax.enable_x64(True):
        for name, (gradient, _) in _of_kind(kind, "float64")[1].items():
            zero = [path for path, leaf in paths(gradient).items() if not np.any(leaf)]
            # Adding a constant to every key changes no attention, and one to all scores of a list
            # no softmax: these gradients are 0 by nature.
            assert all(path.endswith(("key/bias", "head/score/bias")) for path in zero), name


@pytest.mark.parametrize(("kind", "mesh", "variant"), CASES)
def test_contract_in_float64(kind, mesh, variant):
    with jax.enable_x64(True):
        setting, reference = _of_kind(kind, "float64")
        _compare(_program(setting, mesh, variant), reference, 1e-10)


@pytest.mark.parametrize("kind", ["late interaction", "dense"])
def test_contract_in_float32(kind):
    setting, reference = _of_kind(kind, "float32")
    _compare(_program(setting, *VARIANTS[-1]), reference, 1e-5)


def test_dropout_is_on_and_follows_the_step():
    graphdef, params = _model(
        LateInteraction(dimension=8, query_length=8, passage_length=16), "float32", 1, 0
    )
    tokens = Tokens(*(np.ones((4, 6), d) for d in (np.int32, bool, bool)))
    requests = {"a": EncodeQuery(tokens), "b": EncodePassage(tokens)}

    def vectors(key):
        out = answer(graphdef, params, requests, key, Chunking())
        return np.asarray(out["a"].vectors), np.asarray(out["b"].vectors)

    still, _ = vectors(None)
    first, second = vectors(jax.random.key(0))
    again, _ = vectors(jax.random.key(0))
    other, _ = vectors(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - still).max() > 1e-3
    assert np.abs(first - other).max() > 1e-3
    # Equal texts in other requests and rows have other masks.
    assert np.abs(first - second).max() > 1e-3
    assert np.abs(first[0] - first[1]).max() > 1e-3


def test_stored_answers_take_the_requests_place():
    objective = OBJECTIVES["TokenAlignmentDistillation"]
    setting = _setting(LATE, "float32", {"task": objective})
    live = _reference(setting)
    batch = setting.batches["task"]
    told = answer(*setting.teachers["teacher"], batch.teacher, None, Chunking())
    batch = dataclasses.replace(batch, teacher=jax.device_get(told))
    stored = dataclasses.replace(setting, batches={"task": batch})
    _compare(_program(stored, "1 device", PLAIN), live, 1e-5)
