"""What can be asked of a model, and what it answers.

A *request* is token arrays for one kind of question to a model; an *output* is the arrays it
answers with. Both are pytrees, so they pass through ``jit``, ``scan`` and ``shard_map`` unchanged.
Requests may carry any leading dimensions (``[B, T]`` for one text a record, ``[B, N, T]`` for N
passages); models see them flattened to rows.
"""

import dataclasses
import typing
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

_T = TypeVar("_T")
if typing.TYPE_CHECKING:  # what compiled code sees, where nearly all types are read
    Array = jax.Array
else:  # data make requests of numpy arrays, and devices answer with their own
    Array = jax.Array | np.ndarray


@typing.dataclass_transform(frozen_default=True)
def pytree(cls: type[_T]) -> type[_T]:
    """Make a frozen dataclass of which every field is data (an array or a pytree of arrays)."""
    made = dataclasses.dataclass(frozen=True)(cls)
    names = [field.name for field in dataclasses.fields(made)]  # type: ignore[arg-type]
    keys = [jax.tree_util.GetAttrKey(name) for name in names]

    def flatten(node: Any) -> tuple[list[tuple[Any, Any]], None]:
        return [(key, getattr(node, name)) for key, name in zip(keys, names, strict=True)], None

    def unflatten(_: None, leaves: Any) -> Any:
        # JAX also builds trees of shardings, shapes and flags: the constructor, which in tests
        # checks shapes and dtypes, is for arrays.
        node = object.__new__(made)
        for name, leaf in zip(names, leaves, strict=True):
            object.__setattr__(node, name, leaf)
        return node

    jax.tree_util.register_pytree_with_keys(made, flatten, unflatten)
    return made


@pytree
class Tokens:
    """Tokenised text of a fixed width.

    Args:
      ids: ``[..., T]`` int32 piece numbers.
      mask: ``[..., T]`` bool; True where other tokens may attend to this one.
      keep: ``[..., T]`` bool; True where the token's vector is embedded and scored. Markers,
        punctuation and query expansion differ only here and in ``mask``.
    """

    ids: Int[Array, "*batch T"]
    mask: Bool[Array, "*batch T"]
    keep: Bool[Array, "*batch T"]


@pytree
class EncodeQuery:
    """Ask a retriever for the vectors of queries."""

    tokens: Tokens


@pytree
class EncodePassage:
    """Ask a retriever for the vectors of passages."""

    tokens: Tokens


@pytree
class Relevance:
    """Ask a cross-encoder for the relevance of query-passage pairs, tokenised together.

    Nothing of a pair is embedded by itself; ``keep`` is True at the tokens that the tokenizer calls
    the second text's (BERT's sentence B), and nowhere if it does not number texts.
    """

    tokens: Tokens


@pytree
class Likelihood:
    """Ask a generator for the log-probability of each target token given the source."""

    source: Tokens
    target: Tokens


@pytree
class Embeddings:
    """A retriever's answer: token vectors and which of them count.

    Args:
      vectors: ``[..., T, E]`` float; a dense retriever has T = 1. Vectors outside ``mask`` are 0.
      mask: ``[..., T]`` bool.
    """

    vectors: Float[Array, "*batch T E"]
    mask: Bool[Array, "*batch T"]


@pytree
class Scores:
    """A cross-encoder's answer: ``values`` ``[...]``, one relevance score a pair."""

    values: Float[Array, "*batch"]


@pytree
class TokenScores:
    """A generator's answer: ``log_probs`` ``[..., T]`` of the target tokens, and their ``mask``."""

    log_probs: Float[Array, "*batch T"]
    mask: Bool[Array, "*batch T"]


Request = EncodeQuery | EncodePassage | Relevance | Likelihood
Output = Embeddings | Scores | TokenScores
