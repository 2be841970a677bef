"""A whole retriever in one directory: save it, load it, or start one from an encoder.

The directory is a Hugging Face model directory with two additions::

  config.json model.safetensors                        the encoder, for transformers.AutoModel
  tokenizer.json tokenizer_config.json special_tokens_map.json      for AutoTokenizer
  1_Dense/model.safetensors                            linear.weight [E, D], linear.bias [E]
  clir_jax.json                                        all else that encoding needs

A retriever with a tower of its own for passages is two such directories, ``query/`` and
``passage/``, in one.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, Sharding

from clir_jax.files import read_json, write_json
from clir_jax.mesh import shardings as shardings_on
from clir_jax.models.directories import new_directory
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.foreign import (
    METADATA,
    MODULES,
    Described,
    foreign_kind,
    read_foreign,
)
from clir_jax.models.generator_files import refuse_plain_t5
from clir_jax.models.hub import PathLike, State, load_encoder, locate, resolve, save_encoder
from clir_jax.models.projection import load_projection, projection_tensors
from clir_jax.models.retriever import (
    LateInteraction,
    Retriever,
    RetrieverSpec,
    make_projection,
    spec_from_dict,
    spec_to_dict,
)
from clir_jax.models.tokenizer import (
    TextTokenizer,
    add_markers,
    load_tokenizer,
    marker_id,
    markers_of,
    punctuation_ids,
)
from clir_jax.models.vocabulary import grow
from clir_jax.models.weights import write_weights

FILE = "clir_jax.json"
VERSION = 1
TOWERS = ("query", "passage")
PROJECTION = "1_Dense"


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedRetriever:
    """A retriever in memory, with all that encoding text takes.

    Args:
      spec: what kind of retriever.
      encoder_config: size, kind and dtype of its encoder.
      graphdef: the structure of its ``Retriever``.
      params: the parameters, the state that goes with ``graphdef``.
      tokenizer: its tokenizer, markers included.
      skiplist: ids of punctuation, left out of passages; for ``data.tokenization``.
      passage: the retriever that encodes passages, where the other fields are those of a tower for
        queries; None where one model encodes both.
    """

    spec: RetrieverSpec
    encoder_config: EncoderConfig
    graphdef: nnx.GraphDef[Retriever]
    params: State
    tokenizer: TextTokenizer
    skiplist: tuple[int, ...]
    passage: "LoadedRetriever | None" = None

    @property
    def model(self) -> Retriever:
        """The module, made of ``graphdef`` and ``params``."""
        return nnx.merge(self.graphdef, self.params)

    @property
    def of_passages(self) -> "LoadedRetriever":
        """The retriever that encodes passages: this one, unless it has two towers."""
        return self.passage or self


def on_mesh(loaded: LoadedRetriever, mesh: Mesh) -> LoadedRetriever:
    """The same retriever with its parameters on the devices of a mesh."""
    params = jax.device_put(loaded.params, shardings_on(loaded.params, mesh))
    passage = None if loaded.passage is None else on_mesh(loaded.passage, mesh)
    return dataclasses.replace(loaded, params=params, passage=passage)


def abstract_retriever(
    spec: RetrieverSpec, encoder_config: EncoderConfig
) -> tuple[nnx.GraphDef[Retriever], State]:
    """Describe a retriever without making any array.

    Args:
      spec: what kind of retriever.
      encoder_config: what its encoder is.

    Returns:
      The graph definition, and a state whose leaves are ``jax.ShapeDtypeStruct``.
    """
    return nnx.split(nnx.eval_shape(lambda: Retriever(spec, encoder_config, rngs=nnx.Rngs(0))))


def save_retriever(
    directory: PathLike,
    spec: RetrieverSpec,
    encoder_config: EncoderConfig,
    params: State,
    tokenizer: TextTokenizer,
    skiplist: Sequence[int] | None = None,
) -> None:
    """Write a retriever. The directory is whole, or what it was before.

    Args:
      directory: made if it does not exist; a retriever saved there before is replaced.
      spec: what kind of retriever.
      encoder_config: what its encoder is.
      params: the state of its ``Retriever``; saved as float32. Every host must call, the first one
        writes.
      tokenizer: its tokenizer, markers included.
      skiplist: ids of punctuation; None takes ``punctuation_ids``.

    Raises:
      FileExistsError: if the directory holds other files than those of a saved retriever.
      ValueError: if the tokenizer has more tokens than the encoder has embeddings.
    """
    skiplist = punctuation_ids(tokenizer) if skiplist is None else skiplist
    if tokenizer.size > encoder_config.vocab_size:
        raise ValueError(
            f"{directory}: the tokenizer has {tokenizer.size} tokens and the encoder "
            f"{encoder_config.vocab_size} embeddings; grow the table after adding markers"
        )
    about = {
        "format": VERSION,
        "retriever": spec_to_dict(spec),
        "markers": [marker_id(tokenizer, m) if m else None for m in markers_of(spec)],
        "skiplist": [int(i) for i in skiplist],
        "compute": {"dtype": encoder_config.dtype, "remat": encoder_config.remat},
    }
    with _new_directory(directory) as temporary:
        save_encoder(temporary, encoder_config, params["encoder"])
        projection = projection_tensors(params)
        if jax.process_index() == 0:
            if projection:
                write_weights(temporary / PROJECTION, projection)
            reads = max(spec.query_length, spec.passage_length)
            tokenizer.save(temporary, positions=encoder_config.max_length, reads=reads)
            write_json(temporary / FILE, about)


def save_loaded(directory: PathLike, model: LoadedRetriever) -> None:
    """Write a retriever in memory, with ``query/`` and ``passage/`` if it has two towers.

    Args:
      directory: as for ``save_retriever``.
      model: what to write.

    Raises:
      FileExistsError, ValueError: as ``save_retriever``.
    """
    if model.passage is None:
        about = model.spec, model.encoder_config, model.params, model.tokenizer, model.skiplist
        save_retriever(directory, *about)
        return
    with _new_directory(directory) as temporary:
        for name, tower in zip(TOWERS, (model, model.passage), strict=True):
            save_loaded(temporary / name, dataclasses.replace(tower, passage=None))


def is_saved(directory: Path) -> bool:
    """Whether a directory holds a retriever of this library, with one tower or two."""
    return (directory / FILE).is_file() or any((directory / x / FILE).is_file() for x in TOWERS)


def _new_directory(directory: PathLike) -> contextlib.AbstractContextManager[Path]:
    return new_directory(Path(directory), is_saved, "a retriever of clir_jax")


def load_retriever(name: PathLike, *, shardings: Any = None, **overrides: Any) -> LoadedRetriever:
    """Load what ``save_retriever`` or ``save_loaded`` wrote, or a retriever of another library.

    Args:
      name: a directory, or a name as for ``hub.locate``; with ``query/`` and ``passage/`` in it,
        both are loaded. What other libraries write: see ``foreign.read_foreign``.
      shardings: where the parameters go: one ``Sharding`` for all, or a tree of them with the
        structure of ``abstract_retriever``'s state. None: JAX's default device.
      **overrides: fields of the encoder's configuration that replace the file's, such as
        ``dtype="bfloat16"`` or ``remat=True``.

    Returns:
      The retriever.

    Raises:
      FileNotFoundError: if there is no such model, or a file of it is missing.
      ValueError: if the directory holds no retriever, one that is not computed here, or files that
        do not agree.
    """
    directory = locate(name)
    if not (directory / FILE).is_file() and is_saved(directory):
        query, passage = (
            load_retriever(directory / tower, shardings=shardings, **overrides) for tower in TOWERS
        )
        return dataclasses.replace(query, passage=passage)
    if (directory / FILE).is_file():
        found, compute = _read_own(directory)
    else:
        found, compute = read_foreign(directory) or _refuse(directory), {}
    in_parts = shardings is not None and not isinstance(shardings, Sharding)
    config, encoder = load_encoder(
        found.transformer,
        shardings=shardings["encoder"] if in_parts else shardings,
        ignore=() if found.projection_alone else ("linear.",),
        **(compute | overrides),
    )
    if found.tokenizer.size > config.vocab_size:
        raise ValueError(
            f"{directory}: the tokenizer has {found.tokenizer.size} tokens and the encoder "
            f"{config.vocab_size} embeddings; take both from one model"
        )
    graphdef, target = abstract_retriever(found.spec, config)
    leaves = jax.tree.leaves(encoder)
    if "projection" in target:
        places = shardings["projection"] if in_parts else shardings
        head, alone = found.projection or directory / PROJECTION, found.projection_alone
        leaves += load_projection(head, target["projection"], places, alone=alone)
    params = jax.tree.unflatten(jax.tree.structure(target), leaves)
    return LoadedRetriever(found.spec, config, graphdef, params, found.tokenizer, found.skiplist)


def is_retriever(directory: Path, spec: RetrieverSpec | None = None) -> bool:
    """Whether a directory holds a retriever, rather than an encoder to make one of.

    Args:
      directory: as ``hub.locate`` gives it.
      spec: what is to be made of it. A retriever of another library that is of another kind, or has
        no projection and markers of its own, is then taken for its encoder.
    """
    if is_saved(directory):
        return True
    kind = foreign_kind(directory)
    if kind is None or spec is None:
        return kind is not None
    if kind is not type(spec):
        return False
    found = read_foreign(directory)
    return kind is LateInteraction or (found is not None and found.projection is not None)


def _read_own(directory: Path) -> tuple[Described, dict[str, Any]]:
    """What ``save_retriever`` wrote, without its weights, and how it is computed."""
    about = _read_about(directory)
    try:
        spec = spec_from_dict(about["retriever"])
    except ValueError as error:
        raise ValueError(f"{directory / FILE}: {error}") from None
    tokenizer = load_tokenizer(directory)
    markers = [tokenizer.backend.token_to_id(m) if m else None for m in markers_of(spec)]
    if markers != about["markers"]:
        raise ValueError(
            f"{directory / FILE}: the markers were saved as tokens {about['markers']} and are "
            f"{markers} in tokenizer.json; copy tokenizer files and {FILE} from one place"
        )
    skiplist, compute = tuple(about["skiplist"]), about["compute"]
    return Described(spec, tokenizer, skiplist, directory, directory / PROJECTION), compute


def _refuse(directory: Path) -> NoReturn:
    refuse_plain_t5(directory)
    raise ValueError(
        f"{directory}: no {FILE}, {MODULES} or {METADATA} here, so this is no retriever saved by "
        "clir_jax, sentence-transformers, PyLate or ColBERT; give a run, its model/, or a "
        "directory that one of these saved, or train one from it"
    )


def _read_about(directory: Path) -> dict[str, Any]:
    path = directory / FILE
    about: dict[str, Any] = read_json(path, dict)
    if about.get("format") != VERSION:
        raise ValueError(
            f"{path}: format is {about.get('format')!r} and this version of clir_jax reads "
            f"{VERSION}; update clir_jax, or save the retriever again"
        )
    for other in ("cross_encoder", "generator"):
        if other in about:
            raise ValueError(
                f"{path}: this is a {other.replace('_', '-')}, which gives texts no vectors; give "
                "the directory of a retriever"
            )
    kinds = {"retriever": dict, "markers": list, "skiplist": list, "compute": dict}
    for key, kind in kinds.items():
        if key not in about:
            raise ValueError(f"{path}: no {key!r}; save the retriever again")
        if not isinstance(about[key], kind):
            wanted = "an object" if kind is dict else "a list"
            raise ValueError(f"{path}: {key!r} is {about[key]!r}, not {wanted}; restore the file")
    return about


def start_retriever(
    name: PathLike, spec: RetrieverSpec, *, seed: int = 0, **overrides: Any
) -> LoadedRetriever:
    """Make a retriever out of a pretrained encoder, ready to be trained.

    Markers that the vocabulary lacks are added and get new embeddings (``vocabulary.grow``); a
    projection starts at random.

    Args:
      name: an encoder with its tokenizer, as for ``hub.resolve``.
      spec: what kind of retriever.
      seed: of the new parameters.
      **overrides: fields of the encoder's configuration that replace the file's.

    Returns:
      The retriever.

    Raises:
      FileNotFoundError: if there is no such model.
      ValueError: if its files do not fit, or it has no positions for the specification's lengths.
    """
    directory = resolve(name)
    tokenizer, _ = add_markers(load_tokenizer(directory), spec)
    config, encoder = load_encoder(directory, **overrides)
    config, encoder = resize_embeddings(config, encoder, tokenizer.size, seed=seed)
    graphdef, target = abstract_retriever(spec, config)
    projection = make_projection(spec, config, rngs=nnx.Rngs(seed))
    leaves = jax.tree.leaves(encoder) + jax.tree.leaves(projection)
    params = jax.tree.unflatten(jax.tree.structure(target), leaves)
    skiplist = punctuation_ids(tokenizer)
    return LoadedRetriever(spec, config, graphdef, params, tokenizer, skiplist)


def resize_embeddings(
    config: EncoderConfig, encoder: State, size: int, *, seed: int = 0
) -> tuple[EncoderConfig, State]:
    """Give an encoder at least ``size`` word embeddings; see ``vocabulary.grow``.

    Args:
      config: what the encoder is.
      encoder: its own state; is not changed.
      size: rows wanted.
      seed: of the new rows.

    Returns:
      The configuration and the state with the larger table; the given ones if it is large enough.
    """
    if size <= config.vocab_size:
        return config, encoder
    word: Any = encoder["embeddings"]["word"]["embedding"]
    table = grow(np.asarray(word.get_value()), size, seed=seed)
    return replace_embeddings(config, encoder, table)


def replace_embeddings(
    config: EncoderConfig, encoder: State, table: np.ndarray, tokenizer: TextTokenizer | None = None
) -> tuple[EncoderConfig, State]:
    """Give an encoder another table of word embeddings, after ``transplant`` or ``trim``.

    Args:
      config: what the encoder is.
      encoder: its own state; is not changed.
      table: ``[V, D]``.
      tokenizer: the vocabulary's, if its padding is another id now; None keeps that of ``config``.

    Returns:
      The configuration and the state with the new table.

    Raises:
      ValueError: if the table's width is not the encoder's, or padding moves in a RoBERTa-like
        encoder, whose positions are counted from its id.
    """
    pad = config.pad_token_id if tokenizer is None else tokenizer.id("pad")
    if table.ndim != 2 or table.shape[1] != config.hidden_size:
        raise ValueError(
            f"embeddings: the new table is {table.shape} and the encoder's width "
            f"{config.hidden_size}; give a table of that width"
        )
    if config.model_type != "bert" and pad != config.pad_token_id:
        raise ValueError(
            f"embeddings: padding is token {pad} of the new vocabulary, and {config.model_type} "
            f"counts positions from {config.pad_token_id}; give a vocabulary with padding there"
        )
    word: Any = encoder["embeddings"]["word"]["embedding"]
    changed: State = jax.tree.map(lambda x: x, encoder)
    changed["embeddings"]["word"]["embedding"] = word.replace(
        jnp.asarray(table, word.get_value().dtype)
    )
    return dataclasses.replace(config, vocab_size=table.shape[0], pad_token_id=pad), changed
