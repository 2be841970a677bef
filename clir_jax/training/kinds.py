"""Kinds of models: the one place that knows how each is loaded, started, saved and asked.

A stage, a work or a command names a model by a specification or a directory. What differs between
retrievers, cross-encoders and generators is one entry here; the rest of the training package treats
them alike.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from clir_jax.data.assembly import TokenizerLike
from clir_jax.data.pairs import PairTokenizer, QuestionTokenizer
from clir_jax.data.tokenization import RequestTokenizer
from clir_jax.evaluation.reranking import PairScorer
from clir_jax.mesh import shardings
from clir_jax.models import cross_encoder_files, formats, generator_files, hub, t5_files
from clir_jax.models.cross_encoder import CrossEncoder, CrossEncoderModel
from clir_jax.models.cross_encoder_files import LoadedCrossEncoder, is_cross_encoder
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.formats import LoadedRetriever
from clir_jax.models.generator import Generator, GeneratorModel
from clir_jax.models.generator_files import LoadedGenerator, is_generator
from clir_jax.models.generator_tokenizer import generator_tokenizer
from clir_jax.models.requests import EncodePassage, EncodeQuery, Likelihood, Relevance
from clir_jax.models.retriever import Dense, LateInteraction, Retriever, RetrieverSpec
from clir_jax.models.t5_config import T5Config
from clir_jax.models.tokenizer import TextTokenizer, add_markers, punctuation_ids
from clir_jax.objectives.base import ModelFacts, facts_of

Spec = RetrieverSpec | CrossEncoder | Generator
Backbone = EncoderConfig | T5Config
LoadedModel = LoadedRetriever | LoadedCrossEncoder | LoadedGenerator


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is particular to one kind of model.

    Args:
      name: in sentences for people.
      specs: its specifications.
      answers: the requests that it answers.
      module: what a specification and a backbone's configuration describe.
      holds: ``(directory, specification or None) -> bool``, whether a directory holds one that the
        specification may describe; None leaves open which.
      load: ``(directory, dtype=...)`` gives what is held there.
      start: ``(directory, specification, seed=..., dtype=...)`` makes one of a pretrained backbone.
      save: ``(directory, loaded)``.
      assembled: ``(specification, backbone, graphdef, params, tokenizer)`` gives one in memory.
      reader: what makes requests of texts for one in memory.
      prepared: ``(tokenizer, specification)`` gives the tokenizer with what the kind adds to it.
      known: backbones that are known without a network.
      config: ``(name)`` reads what a backbone is, without its weights.
    """

    name: str
    specs: tuple[type, ...]
    answers: tuple[type, ...]
    module: type[nnx.Module]
    holds: Callable[[Path, Any], bool]
    load: Callable[..., LoadedModel]
    start: Callable[..., LoadedModel]
    save: Callable[[Path, Any], None]
    assembled: Callable[..., LoadedModel]
    reader: Callable[[Any], TokenizerLike]
    prepared: Callable[[Any, Any], Any] = lambda tokenizer, spec: tokenizer
    known: Mapping[str, Backbone] = dataclasses.field(
        default_factory=lambda: hub.KNOWN_ARCHITECTURES
    )
    config: Callable[[str], Backbone] = hub.load_config


def _holds_retriever(directory: Path, spec: RetrieverSpec | None) -> bool:
    others = is_cross_encoder(directory) or is_generator(directory)
    return not others and formats.is_retriever(directory, spec)


def _assembled_retriever(
    spec: RetrieverSpec, config: EncoderConfig, graphdef: Any, params: Any, tokenizer: TextTokenizer
) -> LoadedRetriever:
    skiplist = punctuation_ids(tokenizer)
    return LoadedRetriever(spec, config, graphdef, params, tokenizer, skiplist)


RETRIEVER = Kind(
    "retriever",
    (Dense, LateInteraction),
    (EncodeQuery, EncodePassage),
    Retriever,
    _holds_retriever,
    formats.load_retriever,
    formats.start_retriever,
    formats.save_loaded,
    _assembled_retriever,
    lambda loaded: RequestTokenizer(loaded.tokenizer, loaded.spec, skiplist=loaded.skiplist),
    lambda tokenizer, spec: add_markers(tokenizer, spec)[0],
)
CROSS_ENCODER = Kind(
    "cross-encoder",
    (CrossEncoder,),
    (Relevance,),
    CrossEncoderModel,
    lambda directory, spec: is_cross_encoder(directory),
    cross_encoder_files.load_cross_encoder,
    cross_encoder_files.start_cross_encoder,
    cross_encoder_files.save_cross_encoder,
    LoadedCrossEncoder,
    lambda loaded: PairTokenizer(loaded.tokenizer, loaded.spec),
)
GENERATOR = Kind(
    "generator",
    (Generator,),
    (Likelihood,),
    GeneratorModel,
    lambda directory, spec: is_generator(directory),
    generator_files.load_generator,
    generator_files.start_generator,
    generator_files.save_generator,
    LoadedGenerator,
    lambda loaded: QuestionTokenizer(loaded.tokenizer, loaded.spec),
    lambda tokenizer, spec: generator_tokenizer(tokenizer),
    t5_files.KNOWN_T5,
    t5_files.load_t5_config,
)
KINDS = (CROSS_ENCODER, GENERATOR, RETRIEVER)


def kind_of(spec: Spec) -> Kind:
    """The kind that a specification describes."""
    return next(kind for kind in KINDS if isinstance(spec, kind.specs))


def kind_at(directory: Path) -> Kind | None:
    """The kind of model that a directory holds; None if it is a plain encoder.

    Args:
      directory: as ``hub.locate`` gives it.
    """
    return next((kind for kind in KINDS if kind.holds(directory, None)), None)


def abstract(spec: Spec, backbone: Backbone) -> tuple[nnx.GraphDef[Any], Any]:
    """Describe a model without making any array; see ``formats.abstract_retriever``."""
    module: Any = kind_of(spec).module
    return nnx.split(nnx.eval_shape(lambda: module(spec, backbone, rngs=nnx.Rngs(0))))


def backbone_of(loaded: LoadedModel) -> Backbone:
    """The configuration of a model's encoder, or of its T5."""
    return loaded.t5_config if isinstance(loaded, LoadedGenerator) else loaded.encoder_config


def facts(spec: Spec, backbone: Backbone, vocabulary: str = "") -> ModelFacts:
    """What objectives may know of a model; see ``objectives.base.facts_of``."""
    kind = kind_of(spec)
    if isinstance(spec, RetrieverSpec) and isinstance(backbone, EncoderConfig):
        return facts_of(spec, backbone, vocabulary)
    longest = backbone.max_length if isinstance(backbone, EncoderConfig) else None
    return ModelFacts(
        late_interaction=False,
        embedding_size=0,
        vocabulary=vocabulary,
        kind=kind.name,
        answers=kind.answers,
        max_length=longest,
    )


def reader_of(loaded: LoadedModel) -> TokenizerLike:
    """What makes requests of texts for a model."""
    return kind_of(loaded.spec).reader(loaded)


def on_mesh(loaded: LoadedModel, mesh: Mesh) -> LoadedModel:
    """The same model with its parameters on the devices of a mesh."""
    if isinstance(loaded, LoadedRetriever):
        return formats.on_mesh(loaded, mesh)
    params = jax.device_put(loaded.params, shardings(loaded.params, mesh))
    return dataclasses.replace(loaded, params=params)


def pair_scorer(loaded: LoadedModel, mesh: Mesh) -> PairScorer:
    """Who scores pairs of texts, of a model that reads them together.

    Args:
      loaded: a cross-encoder or a generator, its parameters on ``mesh``.
      mesh: the mesh.
    """
    (kind,) = kind_of(loaded.spec).answers
    return PairScorer(loaded.graphdef, loaded.params, reader_of(loaded), kind, mesh)
