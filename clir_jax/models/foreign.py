"""Retrievers of other libraries: their directories say what they are, and nothing is guessed.

===============================  ==================================================================
``modules.json``                 sentence-transformers, the layouts before and of version 6; PyLate;
                                 ``MultiVectorEncoder``
``artifact.metadata``            Stanford's ColBERT
===============================  ==================================================================

A setting that is not computed here, or a key that is not known, is an error that names the file and
the key: what it would change is nobody's guess. A directory with neither file is a plain encoder.
"""

import dataclasses
import re
import string
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clir_jax.files import read_json
from clir_jax.models.foreign_parts import (
    check_normalize,
    dense_of,
    inserted_marker,
    longest_text,
    pooling_of,
    prepended_marker,
    prompts_of,
    refuse_long,
    refuse_upper_case,
    skiplist_ids,
    transformer_settings,
)
from clir_jax.models.foreign_settings import Settings
from clir_jax.models.hub import load_config
from clir_jax.models.retriever import Dense, LateInteraction, RetrieverSpec
from clir_jax.models.tokenizer import TextTokenizer, load_tokenizer

_OF_PASSAGES = ("document", "passage", "corpus")
MODULES, METADATA = "modules.json", "artifact.metadata"
CONFIG = "config_sentence_transformers.json"
_KINDS = {"SentenceTransformer": "sentence_embedding"} | dict.fromkeys(
    ("ColBERT", "MultiVectorEncoder"), "token_embeddings"
)
_SEQUENCES = {
    "SentenceTransformer": ["Transformer", "Pooling", "[Dense]", "[Normalize]"],
    "ColBERT": ["Transformer", "[Dense]"],
    "MultiVectorEncoder": ["Transformer", "[Dense]", "MultiVectorMask", "Normalize"],
}


@dataclasses.dataclass(frozen=True, eq=False)
class Described:
    """A retriever in a directory, without its weights.

    Args:
      spec: what kind of retriever.
      tokenizer: its tokenizer, markers included.
      skiplist: ids of tokens left out of passages.
      transformer: the directory of its encoder.
      projection: the directory of its projection; None where it has none.
      projection_alone: whether the projection has a file of its own.
    """

    spec: RetrieverSpec
    tokenizer: TextTokenizer
    skiplist: tuple[int, ...]
    transformer: Path
    projection: Path | None
    projection_alone: bool = True


def read_foreign(directory: Path) -> Described | None:
    """Read what a retriever of another library is.

    Args:
      directory: of the model, as ``hub.locate`` gives it.

    Returns:
      The description; None if the directory holds no such retriever, a plain encoder for instance.

    Raises:
      ValueError: if a file says something that is not computed here, or is not known; one sentence
        with the file and the key.
    """
    if (directory / MODULES).is_file():
        return _sentence_transformers(directory)
    return None if foreign_kind(directory) is None else _stanford(directory)


def foreign_kind(directory: Path) -> type[Dense] | type[LateInteraction] | None:
    """Tell which kind of retriever of another library a directory holds, and read nothing else.

    Args:
      directory: of the model, as ``hub.locate`` gives it.

    Returns:
      The kind; None if the directory holds no such retriever.

    Raises:
      ValueError: if it holds one of a kind that is not known here.
    """
    if (directory / MODULES).is_file():
        kind = _kind(Settings(directory / CONFIG, optional=True))
        return Dense if kind == "SentenceTransformer" else LateInteraction
    stanford = (directory / METADATA).is_file() or _is_colbert(directory)
    return LateInteraction if stanford else None


def _kind(about: Settings) -> str:
    # The first PyLates do not say what they write.
    default = "ColBERT" if "query_prefix" in about.values else "SentenceTransformer"
    return about.choice("model_type", list(_KINDS), default)


def _sentence_transformers(directory: Path) -> Described:
    modules = module_directories(directory)
    names = [name for name, _ in modules]
    places = dict(modules)
    about = Settings(directory / CONFIG, optional=True)
    kind = _kind(about)
    wanted = " ".join(_SEQUENCES[kind])
    if not re.fullmatch(re.sub(r" \[(\w+)\]", r"( \1)?", wanted), " ".join(names)):
        raise ValueError(
            f"{directory / MODULES}: type: the modules of this {kind} are {', '.join(names)}, and "
            f"{wanted} (brackets: perhaps) are computed here; choose a model made of these"
        )
    transformer = places["Transformer"]
    config = load_config(transformer)
    tokenizer = load_tokenizer(transformer)
    head = {"out": None, "activation": "identity", "bias": kind == "SentenceTransformer"}
    if "Dense" in places:
        head = dense_of(places["Dense"], config.hidden_size, _KINDS[kind])
    if "Normalize" in places:
        check_normalize(places["Normalize"], _KINDS[kind])
    settings = transformer_settings(transformer)
    longest = longest_text(settings, transformer, config.max_length)
    spec: RetrieverSpec
    skiplist: tuple[int, ...] = ()
    refuse_upper_case(settings, tokenizer)
    if kind == "SentenceTransformer":
        pooling = pooling_of(places["Pooling"], config.hidden_size)
        spec = _dense_spec(about, settings, longest, head, pooling, "Normalize" in places)
    elif kind == "ColBERT":
        spec, skiplist = _pylate_spec(about, head, tokenizer)
        settings.finish()
    else:
        mask = Settings(places["MultiVectorMask"] / "config.json")
        spec, skiplist = _multi_vector_spec(about, settings, mask, longest, head, tokenizer)
    refuse_long(spec, config.max_length, about if kind == "ColBERT" else settings)
    return Described(spec, tokenizer, skiplist, transformer, places.get("Dense"))


def module_directories(directory: Path) -> list[tuple[str, Path]]:
    """List the modules of a sentence-transformers directory.

    Args:
      directory: of the model, with a ``modules.json``.

    Returns:
      The name and the directory of each module.

    Raises:
      ValueError: if one of them is code of another library.
    """
    path = directory / MODULES
    found = []
    for module in read_json(path, list):
        if not isinstance(module, dict) or not {"type", "path"} <= set(module):
            raise ValueError(f"{path}: a module without type and path; restore the file")
        library, _, rest = str(module["type"]).partition(".")
        if library not in ("sentence_transformers", "pylate"):
            raise ValueError(
                f"{path}: type is {module['type']!r}, which is code of its own and is not computed "
                "here; choose a model whose modules are those of sentence_transformers or pylate"
            )
        found.append((rest.rpartition(".")[2], directory / str(module["path"])))
    return found


def _dense_spec(
    about: Settings,
    settings: Settings,
    longest: int,
    head: dict[str, Any],
    pooling: str,
    normalized: bool,
) -> Dense:
    prompts = prompts_of(about)
    # What the library compares vectors by where nobody says otherwise is the cosine.
    similarity = about.choice("similarity_fn_name", ["cosine", "dot"], "cosine")
    about.ignore("__version__", "requirements")
    about.require("truncate_dim", None)
    default = about.text("default_prompt_name", None)
    about.finish()
    lengths = {
        f"{ours}_length": settings.length(f"{theirs}_length", longest)
        for ours, theirs in (("query", "query"), ("passage", "document"))
    }
    settings.require("query_expansion", None)
    settings.finish()
    if default is not None and default not in prompts:
        raise about.refusal("default_prompt_name", "one of its prompts, or null")
    query, passage = (
        _prompt(about, prompts, names, default) for names in (("query",), _OF_PASSAGES)
    )
    return Dense(
        pooling=pooling,
        projection=head["out"],
        projection_activation=head["activation"],
        projection_bias=head["bias"],
        normalize=normalized or similarity == "cosine",
        query_prompt=query,
        passage_prompt=passage,
        **lengths,
    )


def _prompt(
    about: Settings, prompts: dict[str, str], names: Sequence[str], default: str | None
) -> str:
    """The prompt of queries or of passages: the first of its names, or else the default one."""
    name = next((name for name in (*names, default) if name in prompts), None)
    if name is None:
        return ""
    # Its encode_query and encode_document look for no other names, against what it documents, and
    # its encode puts the default before everything: what a model was trained with, it cannot say.
    if name != names[0] and prompts[name]:
        what = "queries" if names == ("query",) else "passages"
        warnings.warn(
            f"{about.path}: {what} get the prompt {name!r}, because there is none that is named "
            f"{names[0]!r}; sentence-transformers 6 gives them none unless it is named there",
            stacklevel=2,
        )
    return prompts[name]


def _pylate_spec(
    about: Settings, head: dict[str, Any], tokenizer: TextTokenizer
) -> tuple[LateInteraction, tuple[int, ...]]:
    if any(prompts_of(about).values()):
        raise about.refusal("prompts", "empty ones; markers are query_prefix and document_prefix")
    about.require("default_prompt_name", None)
    about.choice("similarity_fn_name", ["MaxSim"], "MaxSim")
    about.ignore("__version__", "model_type")
    words = about.texts("skiplist_words")
    spec = LateInteraction(
        dimension=head["out"],
        query_length=about.length("query_length"),
        passage_length=about.length("document_length"),
        query_marker=inserted_marker(about, "query_prefix", tokenizer, optional=True),
        passage_marker=inserted_marker(about, "document_prefix", tokenizer, optional=True),
        expansion=about.flag("do_query_expansion"),
        attend_to_expansion=about.flag("attend_to_expansion_tokens"),
        skip_punctuation=bool(words),
        projection_bias=head["bias"],
    )
    about.finish()
    return spec, skiplist_ids(words, tokenizer)


def _multi_vector_spec(
    about: Settings,
    settings: Settings,
    mask: Settings,
    longest: int,
    head: dict[str, Any],
    tokenizer: TextTokenizer,
) -> tuple[LateInteraction, tuple[int, ...]]:
    prompts = prompts_of(about)
    about.require("default_prompt_name", None)
    about.choice("similarity_fn_name", ["maxsim"], "maxsim")
    about.ignore("__version__", "requirements", "model_type")
    about.require("truncate_dim", None)
    about.finish()
    markers = [
        prepended_marker(about, prompts.get(k, ""), tokenizer) for k in ("query", "document")
    ]
    length = settings.length("query_length", longest)
    passage_length = settings.length("document_length", longest)
    expansion: Any = settings.pop("query_expansion", None)
    settings.finish()
    if expansion is not None:
        own = (None, tokenizer.special["mask"])
        if expansion.get("strategy") != "fixed" or expansion.get("token") not in own:
            raise settings.refusal("query_expansion", "strategy 'fixed' and mask tokens", expansion)
        length = expansion["length"]
    words = mask.texts("skiplist_words")
    if words:
        mask.require("skiplist_tasks", ["document"], ["document"])
    mask.ignore("skiplist_tasks")
    mask.require("keep_only_token_ids", None)
    mask.finish()
    spec = LateInteraction(
        dimension=head["out"],
        query_length=length,
        passage_length=passage_length,
        query_marker=markers[0],
        passage_marker=markers[1],
        expansion=expansion is not None,
        attend_to_expansion=bool(expansion and expansion.get("attend")),
        skip_punctuation=bool(words),
        projection_bias=head["bias"],
    )
    return spec, skiplist_ids(words, tokenizer)


def _stanford(directory: Path) -> Described:
    about = Settings(directory / METADATA)
    tokenizer = load_tokenizer(directory)
    for key, value in (("interaction", "colbert"), ("similarity", "cosine")):
        about.choice(key, [value])
    spec = LateInteraction(
        dimension=about.length("dim"),
        query_length=about.length("query_maxlen"),
        passage_length=about.length("doc_maxlen"),
        query_marker=inserted_marker(about, "query_token_id", tokenizer),
        passage_marker=inserted_marker(about, "doc_token_id", tokenizer),
        attend_to_expansion=about.flag("attend_to_mask_tokens"),
        skip_punctuation=about.flag("mask_punctuation"),
    )
    refuse_long(spec, load_config(directory).max_length, about)
    # The file holds every option of the training run beside these: not finish().
    skiplist = stanford_skiplist(tokenizer) if spec.skip_punctuation else ()
    return Described(spec, tokenizer, skiplist, directory, directory, projection_alone=False)


def stanford_skiplist(tokenizer: TextTokenizer) -> tuple[int, ...]:
    """List the tokens that Stanford's ColBERT leaves out of passages.

    Args:
      tokenizer: the model's.

    Returns:
      Ids of the first piece of each ASCII symbol, which with XLM-R may be that of a space, in
      ascending order; never the unknown token.
    """
    pieces = [ids[0] for ids in tokenizer.encode(string.punctuation) if ids]
    return tuple(sorted(set(pieces) - {tokenizer.id("unk")}))


def _is_colbert(directory: Path) -> bool:
    path = directory / "config.json"
    named = read_json(path, dict).get("architectures") if path.is_file() else None
    return isinstance(named, list) and "HF_ColBERT" in named
