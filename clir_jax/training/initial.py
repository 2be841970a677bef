"""The model a stage starts from: its weights, its vocabulary, its tokenizer."""

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from clir_jax.config import (
    Collection,
    Model,
    ReplaceVocabulary,
    Run,
    Scratch,
    Source,
    Stage,
    TrainVocabulary,
)
from clir_jax.data.collections import Collection as OpenedCollection
from clir_jax.data.gold_alignment import GoldAlignment, OpenedGold
from clir_jax.data.records import Bitext, Ranking
from clir_jax.models import formats, hub
from clir_jax.models.foreign import foreign_kind, read_foreign
from clir_jax.models.formats import LoadedRetriever
from clir_jax.models.retriever import LateInteraction, RetrieverSpec
from clir_jax.models.t5_config import T5Config
from clir_jax.models.tokenizer import TextTokenizer, load_tokenizer
from clir_jax.models.vocabulary import train_wordpiece, transplant, trim
from clir_jax.training.kinds import (
    RETRIEVER,
    Backbone,
    LoadedModel,
    abstract,
    backbone_of,
    kind_at,
    kind_of,
)
from clir_jax.tree import paths


def initial_model(run: Run, stage: Stage) -> LoadedModel:
    """Make the model that ``stage`` starts from; the same one every time it is called.

    Args:
      run: the run, for its seed and data root.
      stage: the stage, bound: it names no earlier one.

    Returns:
      The model, with the stage's specification and dtype.

    Raises:
      ValueError, FileNotFoundError: if what ``init`` names does not exist or does not fit.
    """
    if isinstance(stage.init, Scratch):
        loaded = _from_scratch(run, stage, stage.init)
    else:
        assert isinstance(stage.init, str)  # It is bound.
        loaded = load_model(stage.init, stage.model, seed=run.seed, dtype=stage.dtype)
        loaded = _query_tower(loaded, stage)
    if isinstance(stage.vocabulary, ReplaceVocabulary):
        loaded = _with_vocabulary(run, stage.vocabulary, loaded)
    return loaded


def load_model(
    name: str, spec: Model | None = None, *, seed: int = 0, dtype: str = "float32"
) -> LoadedModel:
    """Load a model by what a configuration calls it.

    Args:
      name: a directory or a hub name.
      spec: what it is to be; None takes what it was saved as, and then it must be no plain
        encoder.
      seed: of parameters that a plain encoder lacks.
      dtype: of its arithmetic.

    Returns:
      The model. A warning names what ``spec`` does to a text in another way than the saved model:
      pooling or prompts, but not lengths.

    Raises:
      ValueError: if the saved model has other parameters than ``spec`` describes.
    """
    directory = hub.locate(name)
    if spec is None:
        return (kind_at(directory) or RETRIEVER).load(directory, dtype=dtype)
    kind = kind_of(spec)
    if kind.holds(directory, spec):
        loaded = kind.load(directory, dtype=dtype)
        changed = _with_spec(loaded, spec, name)
        _tell_changes(loaded.spec, spec, name)
        return changed
    if isinstance(spec, RetrieverSpec) and foreign_kind(directory) is type(spec):
        described = read_foreign(directory)
        assert described is not None  # It is of that kind.
        _tell_changes(described.spec, spec, name)
    return kind.start(directory, spec, seed=seed, dtype=dtype)


def load_teacher(stage: Stage, name: str) -> LoadedModel:
    """Load a teacher of ``stage``.

    Args:
      stage: the stage; a plain encoder is read as its ``model``.
      name: a directory or a hub name.

    Returns:
      The model, with the stage's dtype.

    Raises:
      ValueError: if a plain encoder would need parameters that nobody has trained.
    """
    if kind_at(hub.locate(name)) is not None:
        return load_model(name, dtype=stage.dtype)
    spec = stage.model
    if not isinstance(spec, RetrieverSpec):
        raise ValueError(
            f"teacher {name}: it is a plain encoder, whose scores nobody has trained; train it in "
            "an earlier stage and name that"
        )
    if isinstance(spec, LateInteraction):
        trained = spec.dimension is None and not (spec.query_marker or spec.passage_marker)
    else:
        trained = spec.projection is None
    if not trained:
        raise ValueError(
            f"teacher {name}: it is a plain encoder, and as {spec} it would teach with a "
            "projection or markers that nobody has trained; train it in an earlier stage and name "
            "that"
        )
    return load_model(name, spec, dtype=stage.dtype)


def texts_of(origin: Source | Collection | GoldAlignment, data_root: str) -> Iterator[str]:
    """Every text of a source, a collection or a gold alignment, for counting its pieces."""
    opened = origin.open(data_root)
    if isinstance(opened, OpenedGold):
        for pair in opened.pairs:
            yield pair.source.text
            yield pair.target.text
        return
    if isinstance(opened, OpenedCollection):
        yield from opened.passages
        yield from opened.queries
        return
    for place in range(len(opened)):
        record = opened[place]
        if isinstance(record, Bitext):
            yield record.english
            yield record.other
        elif isinstance(record, Ranking):
            yield from record.queries.values()
            listed = (*record.positives, *record.negatives)
            yield from (text for passage in listed for text in passage.readings)
        else:
            yield record.text


def _from_scratch(run: Run, stage: Stage, init: Scratch) -> LoadedModel:
    vocabulary = stage.vocabulary
    assert isinstance(vocabulary, TrainVocabulary)  # Stage has checked it.
    texts = (text for source in vocabulary.sources for text in texts_of(source, run.data_root))
    tokenizer = train_wordpiece(texts, vocabulary.size, lowercase=vocabulary.lowercase)
    tokenizer = kind_of(stage.model).prepared(tokenizer, stage.model)
    tokens = {"pad_token_id": tokenizer.id("pad")}
    if isinstance(init.encoder, T5Config):  # a T5 starts a text with padding
        tokens |= {
            "decoder_start_token_id": tokenizer.id("pad"),
            "eos_token_id": tokenizer.id("eos"),
        }
    config: Backbone = dataclasses.replace(
        init.encoder, vocab_size=tokenizer.size, dtype=stage.dtype, **tokens
    )
    module: Any = kind_of(stage.model).module
    make = jax.jit(lambda: nnx.split(module(stage.model, config, rngs=nnx.Rngs(run.seed)))[1])
    return _assembled(stage.model, config, make(), tokenizer)


def _with_vocabulary(run: Run, vocabulary: ReplaceVocabulary, loaded: LoadedModel) -> LoadedModel:
    tokenizer = _find_tokenizer(run, vocabulary.tokenizer)
    if vocabulary.trim_to:
        origins = vocabulary.trim_to
        texts = (text for origin in origins for text in texts_of(origin, run.data_root))
        tokenizer, _ = trim(tokenizer, texts)
    tokenizer = kind_of(loaded.spec).prepared(tokenizer, loaded.spec)
    old_tokenizer: Any = loaded.tokenizer
    encoder: Any = loaded.params["encoder"]
    old = np.asarray(encoder["embeddings"]["word"]["embedding"].get_value())
    before: Any = backbone_of(loaded)
    table, _ = transplant(old, old_tokenizer, tokenizer, seed=run.seed)
    config, encoder = formats.replace_embeddings(before, encoder, table, tokenizer)
    _, target = abstract(loaded.spec, config)
    rest = jax.tree.leaves({k: v for k, v in loaded.params.items() if k != "encoder"})
    params = jax.tree.unflatten(jax.tree.structure(target), jax.tree.leaves(encoder) + rest)
    return _assembled(loaded.spec, config, params, tokenizer)


def _assembled(spec: Any, config: Backbone, params: Any, tokenizer: Any) -> LoadedModel:
    graphdef, _ = abstract(spec, config)
    return kind_of(spec).assembled(spec, config, graphdef, params, tokenizer)


def _query_tower(loaded: LoadedModel, stage: Stage) -> LoadedModel:
    if not isinstance(loaded, LoadedRetriever) or loaded.passage is None:
        return loaded
    if stage.passage_encoder == "student":
        raise ValueError(
            f"init {stage.init}: the model saved there has two towers, and this stage trains one "
            "for queries and passages; name query/ or passage/ in that directory, or set "
            "passage_encoder='teacher'"
        )
    return dataclasses.replace(loaded, passage=None)


def _find_tokenizer(run: Run, name: str) -> TextTokenizer:
    local = Path(run.data_root) / name
    if local.is_file() or (local / "tokenizer.json").is_file():
        return load_tokenizer(local)
    if Path(name).suffix == ".txt" and not Path(name).is_file():
        raise FileNotFoundError(
            f"vocabulary: there is no file {name}, here or under data_root {run.data_root!r}; "
            "correct it"
        )
    return load_tokenizer(Path(name) if Path(name).is_file() else hub.resolve(name))


def _tell_changes(saved: Any, wanted: Model, name: str) -> None:
    """Warn of what makes other vectors or scores of a text than those the model was saved with."""
    if type(saved) is not type(wanted):
        return  # Nothing of the one is said of the other.
    changed = [
        f"{field} is {getattr(wanted, field)!r} and was {getattr(saved, field)!r}"
        for field in (f.name for f in dataclasses.fields(wanted))
        if not (field.endswith("length") or field == "languages")
        and getattr(wanted, field) != getattr(saved, field)
    ]
    if changed:
        warnings.warn(
            f"init {name}: the stage's model reads a text in another way than the one saved there: "
            f"{'; '.join(changed)}; set model to the saved values to begin with what it could do",
            stacklevel=3,
        )


def _with_spec(loaded: LoadedModel, spec: Model, name: str) -> LoadedModel:
    """Read a saved model as another with the same parameters: other lengths, for example."""
    if loaded.spec == spec:
        return loaded
    graphdef, target = abstract(spec, backbone_of(loaded))
    what = kind_of(spec).name
    if _shapes(target) != _shapes(loaded.params):
        raise ValueError(
            f"init {name}: the {what} saved there is {loaded.spec} and the stage's model is "
            f"{spec}, which has other parameters; set model to the saved one, with other "
            "lengths at most"
        )
    tokenizer = kind_of(spec).prepared(loaded.tokenizer, spec)
    if tokenizer.size != loaded.tokenizer.size:
        raise ValueError(
            f"init {name}: the {what} saved there lacks the markers of the stage's model "
            f"{spec}; set its markers to those of {loaded.spec}"
        )
    same: Any = loaded
    changed: LoadedModel = dataclasses.replace(same, spec=spec, graphdef=graphdef)
    return changed


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in paths(params).items()}
