"""Writing texts token by token: one compiled loop for greedy search, sampling and beam search.

The loops know no model. A ``step`` reads the tokens so far and answers with the scores of every
next one; what it keeps between steps is its own affair. Every row is written as if it were alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

_State = TypeVar("_State")
# (tokens [R, B, T + 1], the place to read, state) -> (logits [R, B, V], state); the start token is
# at place 0, and what follows place is padding.
Step = Callable[[Array, Array, _State], tuple[Array, _State]]
_NEVER = -1e9


class Written(NamedTuple):
    """Texts that a model wrote.

    Args:
      ids: ``[R, T]`` int32, the end token included, padding after it; no start token.
      mask: ``[R, T]`` bool, False in the padding.
      log_prob: ``[R]`` log-probability of each text: the sum over its tokens.
    """

    ids: Int[Array, "R T"]
    mask: Bool[Array, "R T"]
    log_prob: Float[Array, " R"]


def sample(
    logits: Float[Array, "R V"],
    keys: Key[Array, " R"],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Int[Array, " R"]:
    r"""Draw a token a row with probability softmax(logits / temperature), from the likeliest ones.

    Args:
      logits: ``[R, V]``.
      keys: ``[R]`` random keys; a row's draw depends on its own logits and key.
      temperature: below 1 sharpens; above 0.
      top_k: draw from the k likeliest tokens; None from all.
      top_p: draw from the smallest set of likeliest tokens (of the top k) whose probability is at
        least this; None from all.

    Returns:
      ``[R]`` int32.

    References:
      Holtzman et al., The Curious Case of Neural Text Degeneration, ICLR 2020, arXiv:1904.09751.
    """
    draw = jax.vmap(jax.random.categorical)
    scores = logits / jnp.asarray(temperature, logits.dtype)
    if top_k is None and top_p is None:
        return draw(keys, scores).astype(jnp.int32)
    count = logits.shape[-1]
    scores, order = jax.lax.top_k(scores, count if top_k is None else min(top_k, count))
    if top_p is not None:
        share = jax.nn.softmax(scores)
        before = jnp.cumsum(share, axis=-1) - share
        before = before.at[:, 0].set(jnp.zeros((), before.dtype))  # the likeliest always stays
        scores = jnp.where(before < top_p, scores, jnp.asarray(-jnp.inf, scores.dtype))
    drawn = draw(keys, scores)[:, None]
    return jnp.take_along_axis(order, drawn, axis=1)[:, 0].astype(jnp.int32)


def write(
    step: Step,
    state: Any,
    rows: int,
    choose: Callable[[Array, Array], Array],
    *,
    length: int,
    start: int,
    end: int,
    pad: int,
) -> Written:
    """Write one text a row, one token after another.

    Args:
      step: scores the next token; B is 1.
      state: what the first step gets.
      rows: R.
      choose: ``(logits [R, V], place) -> tokens [R]``.
      length: T, at most so many tokens a text, the end token included.
      start: what the model reads before the first token.
      end: the token that ends a text.
      pad: what follows it.

    Returns:
      The texts.
    """

    def going(loop: Any) -> Array:
        place, _, done, *_ = loop
        unfinished: Array = (place < length) & ~jnp.all(done)
        return unfinished

    def body(loop: Any) -> Any:
        place, tokens, done, lengths, total, state = loop
        logits, state = step(tokens, place, state)
        logits = logits[:, 0]
        found = choose(logits, place)
        chances = jax.nn.log_softmax(logits)
        chance = jnp.take_along_axis(chances, found[:, None], axis=1)[:, 0].astype(total.dtype)
        total = total + jnp.where(done, jnp.zeros_like(chance), chance)
        found = jnp.where(done, jnp.int32(pad), found)
        tokens = _put(tokens, found[:, None], place)
        lengths = lengths + (~done).astype(lengths.dtype)
        return place + 1, tokens, done | (found == end), lengths, total, state

    tokens = _blank(rows, 1, length, start, pad)
    nothing = jnp.zeros((rows,), jnp.int32)
    begin = (jnp.int32(0), tokens, nothing != 0, nothing, jnp.zeros((rows,), jnp.float32), state)
    _, tokens, _, lengths, total, _ = jax.lax.while_loop(going, body, begin)
    return _written(tokens[:, 0, 1:], lengths, total)


class _Beams(NamedTuple):
    """The loop of beam search: what is being written, and the best of what is finished."""

    place: Array
    tokens: Array  # [R, B, T + 1]
    scores: Array  # [R, B], sums of log-probabilities
    texts: Array  # [R, B, T + 1], the best first; what is not filled has a score of about -1e9
    values: Array  # [R, B], scores / length ** length_penalty
    lengths: Array  # [R, B]
    filled: Array  # [R, B]
    hopeful: Array  # [R], whether a text that is being written may still beat a finished one
    state: Any


def beam_search(
    step: Step,
    state: Any,
    rows: int,
    follow: Callable[[Any, Array], Any],
    *,
    beams: int,
    length_penalty: float,
    early_stopping: bool,
    length: int,
    start: int,
    end: int,
    pad: int,
) -> Written:
    """Write the text a row with the best score that a search on ``beams`` beams finds.

    The score is the text's log-probability divided by its length (the end token included) to the
    power ``length_penalty``. A row's search ends once it has ``beams`` finished texts and, unless
    ``early_stopping``, the best unfinished one would score below the worst of them if it ended
    now; a text of ``length`` tokens counts as finished. This is what Hugging Face's ``generate``
    does, token by token, with its ``early_stopping`` of True or False.

    Args:
      step: scores the next token on every beam.
      state: what the first step gets.
      rows: R.
      follow: ``(state, parents [R, B]) -> state``: beam b goes on from beam ``parents[r, b]``.
      beams: B.
      length_penalty: above 0 favours longer texts.
      early_stopping: whether the first ``beams`` finished texts are enough.
      length: T, at most so many tokens a text, the end token included.
      start: what the model reads before the first token.
      end: the token that ends a text.
      pad: what follows it.

    Returns:
      The texts.
    """

    def enough(loop: _Beams) -> Array:
        return jnp.all(loop.filled, axis=1) & early_stopping

    def going(loop: _Beams) -> Array:
        return (loop.place < length) & jnp.any(loop.hopeful & ~enough(loop))

    def body(loop: _Beams) -> _Beams:
        logits, state = step(loop.tokens, loop.place, loop.state)
        scores = jax.nn.log_softmax(logits.astype(jnp.float32)) + loop.scores[:, :, None]
        # Twice the beams, so that enough go on if all of the best end here.
        scores, chosen = jax.lax.top_k(scores.reshape(rows, -1), 2 * beams)
        parents, found = jnp.divmod(chosen.astype(jnp.int32), jnp.int32(logits.shape[-1]))
        tokens = _put(_pick(loop.tokens, parents), found, loop.place)
        place = loop.place + 1
        ended = (found == end) | (place == length)

        going_on, kept = jax.lax.top_k(_unless(scores, ended), beams)
        parents = _pick(parents, kept)

        size = place.astype(jnp.float32) ** length_penalty
        closed = enough(loop) | ~loop.hopeful
        among_best = jnp.arange(2 * beams)[None, :] < beams
        new = _unless(_unless(scores / size, closed[:, None]), ~(ended & among_best))
        values, best = jax.lax.top_k(jnp.concatenate([loop.values, new], axis=1), beams)

        def merge(old: Array, new: Array) -> Array:
            return _pick(jnp.concatenate([old, new], axis=1), best)

        filled = merge(loop.filled, ended & among_best)
        worst = jnp.min(jnp.where(filled, values, jnp.float32(_NEVER)), axis=1)
        return _Beams(
            place,
            _pick(tokens, kept),
            going_on,
            merge(loop.texts, tokens),
            values,
            merge(loop.lengths, jnp.broadcast_to(place, found.shape)),
            filled,
            loop.hopeful & (going_on[:, 0] / size > worst),
            follow(state, parents),
        )

    tokens = _blank(rows, beams, length, start, pad)
    nothing = jnp.zeros((rows, beams), jnp.int32)
    never = jnp.full((rows, beams), _NEVER, jnp.float32)
    first = never.at[:, 0].set(jnp.float32(0))  # all beams start alike: only one may go on
    begin = _Beams(
        jnp.int32(0), tokens, first, tokens, never, nothing, nothing != 0,
        jnp.ones((rows,), bool), state,
    )  # fmt: skip
    loop = jax.lax.while_loop(going, body, begin)
    lengths = loop.lengths[:, 0]
    total = loop.values[:, 0] * lengths.astype(jnp.float32) ** length_penalty
    return _written(loop.texts[:, 0, 1:], lengths, total)


def _blank(rows: int, beams: int, length: int, start: int, pad: int) -> Int[Array, "R B T"]:
    return jnp.full((rows, beams, length + 1), pad, jnp.int32).at[:, :, 0].set(jnp.int32(start))


def _put(
    tokens: Int[Array, "R C T"], found: Int[Array, "R C"], place: Int[Array, ""]
) -> Int[Array, "R C T"]:
    """Write one token a beam behind ``place``."""
    return jax.lax.dynamic_update_slice_in_dim(tokens, found[:, :, None], place + 1, axis=2)


def _pick(x: Array, beams: Int[Array, "R C"]) -> Array:
    """Take some beams of every row, from axis 1."""
    index = beams.reshape(*beams.shape, *(1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1)


def _unless(scores: Float[Array, "R C"], not_these: Bool[Array, "R #C"]) -> Float[Array, "R C"]:
    return scores + jnp.where(not_these, jnp.float32(_NEVER), jnp.float32(0))


def _written(
    ids: Int[Array, "R T"], lengths: Int[Array, " R"], total: Float[Array, " R"]
) -> Written:
    mask = jnp.arange(ids.shape[1])[None, :] < lengths[:, None]
    return Written(ids, mask, total)
