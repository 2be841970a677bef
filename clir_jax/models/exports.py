"""A model written as other libraries read it: the same vectors, or a sentence about why not.

=========================  ========================================================================
``transformers``           the encoder for ``AutoModel``, and ``clir_jax.json`` for all else;
                           cross-encoders for ``AutoModelForSequenceClassification``, generators for
                           ``AutoModelForSeq2SeqLM``
``sentence-transformers``  one vector a text: ``SentenceTransformer``
``pylate``                 late interaction: PyLate's ``ColBERT`` and sentence-transformers 6's
                           ``MultiVectorEncoder``
``colbert``                late interaction: Stanford's ColBERT
``onnx``                   as ``transformers``, and a graph from token ids to vectors
=========================  ========================================================================

Layouts are the older ones that all versions of a library read; their versions are claimed, because
a library warns of files from a newer one. All is written by hand, without torch, but for ``onnx``.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken

from clir_jax.files import write_json, write_text
from clir_jax.models.cross_encoder_files import LoadedCrossEncoder, save_cross_encoder
from clir_jax.models.directories import new_directory
from clir_jax.models.export_onnx import write_graph
from clir_jax.models.foreign import CONFIG, METADATA, MODULES, stanford_skiplist
from clir_jax.models.foreign_parts import TRANSFORMER
from clir_jax.models.formats import (
    PROJECTION,
    TOWERS,
    LoadedRetriever,
    replace_embeddings,
    save_retriever,
)
from clir_jax.models.generator_files import save_generator
from clir_jax.models.hub import PathLike, encoder_tensors, save_encoder
from clir_jax.models.model_card import Training, model_card
from clir_jax.models.model_card_code import Model
from clir_jax.models.projection import projection_tensors
from clir_jax.models.retriever import Dense, LateInteraction
from clir_jax.models.tokenizer import marker_id, markers_of
from clir_jax.models.vocabulary import grow
from clir_jax.models.weights import write_weights

_TRANSFORMER = ("", "sentence_transformers.models.Transformer")
_CLAIMED = {"sentence_transformers": "3.0.0", "transformers": "4.41.0", "pytorch": "2.2.0"}
_ACTIVATIONS = {
    "identity": "torch.nn.modules.linear.Identity",
    "tanh": "torch.nn.modules.activation.Tanh",
}
# A long list has a name for each token; this many are told.
_TOLD = 8
_UNUSED = ("[unused0]", "[unused1]")
_BASES = {"bert": "bert.", "roberta": "roberta.", "xlm-roberta": "roberta."}


def export(
    model: Model,
    layout: str,
    directory: PathLike,
    name: str,
    training: Training | None = None,
) -> list[str]:
    """Write a model for another library, with a model card.

    Args:
      model: a retriever; one with two towers goes to ``query/`` and ``passage/``. A cross-encoder
        or a generator goes to ``transformers`` only.
      layout: one of ``LAYOUTS``.
      directory: new, or empty. It is whole in the end, or not there.
      name: what the model is called.
      training: what ``training.model_card.training_of`` tells of it, for the card; None where that
        is not known.

    Returns:
      Sentences on what that library does otherwise; empty where all vectors are the same.

    Raises:
      ValueError: if the layout cannot say what the model does.
      FileExistsError: if the directory holds something.
      ImportError: if ``onnx`` is asked for and a package is missing.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; write one of {', '.join(map(repr, LAYOUTS))}")
    towers: dict[str, Model] = {"": model}
    if isinstance(model, LoadedRetriever) and model.passage is not None:
        one = dataclasses.replace(model, passage=None)
        towers = dict(zip(TOWERS, (one, model.passage), strict=True))
    remarks = []
    with new_directory(Path(directory)) as temporary:
        for place, tower in towers.items():
            try:
                told = _write(tower, layout, temporary / place)
            except _CannotSay as error:
                raise ValueError(f"{name}: {error}") from None
            remarks += [f"{place}/: {remark}" if place else remark for remark in told]
        write_text(temporary / "README.md", model_card(model, layout, name, remarks, training))
    return remarks


class _CannotSay(ValueError):
    """What a layout has no place for."""


def _write(model: Model, layout: str, directory: Path) -> list[str]:
    if isinstance(model, LoadedRetriever):
        return LAYOUTS[layout](model, directory)
    if layout != "transformers":
        what = "a cross-encoder" if isinstance(model, LoadedCrossEncoder) else "a generator"
        raise _CannotSay(f"it is {what}, and {layout} is for retrievers; write --to transformers")
    if isinstance(model, LoadedCrossEncoder):
        save_cross_encoder(directory, model)
    else:
        save_generator(directory, model)
    return []


def _transformers(model: LoadedRetriever, directory: Path) -> list[str]:
    about = model.spec, model.encoder_config, model.params, model.tokenizer, model.skiplist
    save_retriever(directory, *about)
    return []


def _onnx(model: LoadedRetriever, directory: Path) -> list[str]:
    _transformers(model, directory)
    write_graph(directory, model.spec)
    return []


def _sentence_transformers(model: LoadedRetriever, directory: Path) -> list[str]:
    spec = model.spec
    if not isinstance(spec, Dense):
        raise _CannotSay(
            "it answers with one vector a token, and a sentence-transformers directory holds "
            "one vector a text; write --to pylate, which sentence-transformers 6 reads too"
        )
    width, longest = model.encoder_config.hidden_size, max(spec.query_length, spec.passage_length)
    save_encoder(directory, model.encoder_config, model.params["encoder"])
    model.tokenizer.save(directory, positions=model.encoder_config.max_length, reads=longest)
    modules = [_TRANSFORMER, ("1_Pooling", "sentence_transformers.models.Pooling")]
    modes = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}
    modes |= dict.fromkeys(("mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"), "")
    pooling = {f"pooling_mode_{name}": mode == spec.pooling for name, mode in modes.items()}
    write_json(
        directory / "1_Pooling" / "config.json",
        {"word_embedding_dimension": width, **pooling, "include_prompt": True},
    )
    if spec.projection is not None:
        modules.append(("2_Dense", "sentence_transformers.models.Dense"))
        head = projection_tensors(model.params)
        _write_dense(directory / "2_Dense", head, spec.projection_activation)
    if spec.normalize:
        place = f"{len(modules)}_Normalize"
        modules.append((place, "sentence_transformers.models.Normalize"))
    about = {
        "prompts": {"query": spec.query_prompt, "document": spec.passage_prompt},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine" if spec.normalize else "dot",
    }
    _write_settings(directory, modules, longest, about)
    if spec.query_length == spec.passage_length:
        return []
    short = "query" if spec.query_length < longest else "passage"
    return [
        f"sentence-transformers cuts all texts to {longest} tokens, and this model was made for "
        f"{getattr(spec, f'{short}_length')} tokens a {short}: a longer {short} has another vector "
        "there"
    ]


def _pylate(model: LoadedRetriever, directory: Path) -> list[str]:
    spec = _late(model, "pylate")
    config, markers = model.encoder_config, markers_of(spec)
    save_encoder(directory, config, model.params["encoder"])
    reads = max(spec.query_length, spec.passage_length)
    model.tokenizer.save(directory, positions=config.max_length, reads=reads)
    _write_dense(directory / PROJECTION, _head(model), "identity", {"use_residual": False})
    skipped = model.skiplist if spec.skip_punctuation else ()
    about = {
        "model_type": "ColBERT",
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "MaxSim",
        "query_prefix": markers[0],
        "document_prefix": markers[1],
        "query_length": spec.query_length,
        "document_length": spec.passage_length,
        "attend_to_expansion_tokens": spec.attend_to_expansion,
        # The vocabulary's own pieces: a word that is none would stand for the unknown token.
        "skiplist_words": [model.tokenizer.backend.id_to_token(i) for i in skipped],
        "do_query_expansion": spec.expansion,
    }
    modules = [_TRANSFORMER, (PROJECTION, "pylate.models.Dense.Dense")]
    _write_settings(directory, modules, config.max_length - 1, about)
    return []


def _colbert(model: LoadedRetriever, directory: Path) -> list[str]:
    spec = _late(model, "colbert")
    if "" in markers_of(spec):
        raise _CannotSay(
            "it has no marker for every kind of text, and Stanford's ColBERT always puts one; "
            "write --to pylate"
        )
    if not spec.expansion or not spec.skip_punctuation or spec.projection_bias:
        field, always = (
            ("expansion=False", "fills queries up with mask tokens")
            if not spec.expansion
            else ("skip_punctuation=False", "leaves punctuation out of passages")
            if not spec.skip_punctuation
            else ("projection_bias=True", "projects without a bias")
        )
        raise _CannotSay(
            f"it has {field}, and Stanford's ColBERT always {always}; write --to pylate"
        )
    tokenizer = model.tokenizer.copy()
    lacking = [name for name in _UNUSED if tokenizer.backend.token_to_id(name) is None]
    tokenizer.backend.add_tokens(
        [AddedToken(name, normalized=False, special=False) for name in lacking]
    )
    encoder: Any = model.params["encoder"]
    table = np.asarray(encoder["embeddings"]["word"]["embedding"].get_value(), np.float32)
    # The library, and all that imitate it, mark texts with these two tokens.
    marked = grow(table, tokenizer.size).copy()
    for name, marker in zip(_UNUSED, markers_of(spec), strict=True):
        marked[marker_id(tokenizer, name)] = table[marker_id(tokenizer, marker)]
    config, encoder = replace_embeddings(model.encoder_config, encoder, marked)
    tensors = dict(encoder_tensors(encoder, _BASES[config.model_type]))
    head = _head(model)
    write_weights(directory, tensors | head)
    write_json(directory / "config.json", config.to_hf() | {"architectures": ["HF_ColBERT"]})
    reads = max(spec.query_length, spec.passage_length)
    tokenizer.save(directory, positions=config.max_length, reads=reads)
    about = {
        "query_token_id": _UNUSED[0],
        "doc_token_id": _UNUSED[1],
        "query_token": "[Q]",
        "doc_token": "[D]",
        "similarity": "cosine",
        "interaction": "colbert",
        "dim": head["linear.weight"].shape[0],
        "query_maxlen": spec.query_length,
        "doc_maxlen": spec.passage_length,
        "attend_to_mask_tokens": spec.attend_to_expansion,
        "mask_punctuation": True,
        # A name would be looked up on the hub, and bert-base-uncased taken where it is not found.
        "model_name": None,
        "nbits": 1,
        "version": "colbert-v0.4",
    }
    write_json(directory / METADATA, about)
    return _other_punctuation(model)


def _other_punctuation(model: LoadedRetriever) -> list[str]:
    theirs, ours = set(stanford_skiplist(model.tokenizer)), set(model.skiplist)
    if theirs == ours:
        return []
    parts = [
        f"{what} {len(ids)} ({' '.join(model.tokenizer.pieces(sorted(ids)[:_TOLD]))}"
        f"{' ...' if len(ids) > _TOLD else ''})"
        for what, ids in (("keeps", ours - theirs), ("leaves out", theirs - ours))
        if ids
    ]
    return [
        "Stanford's ColBERT has a list of its own of the tokens that it leaves out of passages; "
        f"of this model's tokens it {' and '.join(parts)}, so that passages with these have "
        "other vectors there"
    ]


def _late(model: LoadedRetriever, layout: str) -> LateInteraction:
    """The specification, if a late-interaction library can do what it says."""
    spec = model.spec
    if not isinstance(spec, LateInteraction):
        raise _CannotSay(
            f"it answers with one vector a text, and {layout} is for one vector a token; "
            "write --to sentence-transformers"
        )
    if spec.content_only:
        raise _CannotSay(
            "it has content_only=True, which keeps no vector of CLS, SEP and marker, and these are "
            f"always kept in {layout}; write --to transformers"
        )
    return spec


def _head(model: LoadedRetriever) -> dict[str, np.ndarray]:
    """The projection; of a retriever without one, that which changes nothing."""
    head = projection_tensors(model.params)
    return head or {"linear.weight": np.eye(model.encoder_config.hidden_size, dtype=np.float32)}


def _write_dense(
    directory: Path,
    head: Mapping[str, np.ndarray],
    activation: str,
    more: Mapping[str, Any] | None = None,
) -> None:
    outputs, inputs = head["linear.weight"].shape
    config = {
        "in_features": inputs,
        "out_features": outputs,
        "bias": "linear.bias" in head,
        "activation_function": _ACTIVATIONS[activation],
    }
    write_weights(directory, head)
    write_json(directory / "config.json", config | dict(more or {}))


def _write_settings(
    directory: Path, modules: list[tuple[str, str]], longest: int, about: Mapping[str, Any]
) -> None:
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": kind}
        for i, (path, kind) in enumerate(modules)
    ]
    write_json(directory / MODULES, listed)
    write_json(directory / TRANSFORMER, {"max_seq_length": longest, "do_lower_case": False})
    write_json(directory / CONFIG, {"__version__": _CLAIMED, **about})


LAYOUTS: Mapping[str, Callable[[LoadedRetriever, Path], list[str]]] = {
    "transformers": _transformers,
    "sentence-transformers": _sentence_transformers,
    "pylate": _pylate,
    "colbert": _colbert,
    "onnx": _onnx,
}
