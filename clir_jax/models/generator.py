"""Generators: a T5 that writes a question for a passage, and says how likely a given one is.

A generator is specified by plain values (``Generator``) that go into configuration files and beside
saved weights; ``GeneratorModel`` is the module that such a specification describes.
"""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, UInt32

from clir_jax.mesh import ROW_AXES, row_shards, rowwise
from clir_jax.models.requests import Likelihood, Tokens, TokenScores
from clir_jax.models.t5 import T5, Cache, Fixed, T5Config, in_compute_dtype
from clir_jax.ops.chunking import map_rows
from clir_jax.ops.decoding import Step, Written, beam_search, sample, write

# Numbers of one piece of the scores of all tokens: 256 MB in float32.
_LOGITS_AT_ONCE = 1 << 26


@dataclasses.dataclass(frozen=True)
class Generator:
    """A model that reads a prompt with a passage and writes a question in a given language.

    Args:
      source_length: tokens a prompt, the end token included; the passage in it is cut to fit.
      target_length: tokens a question, the end token included.
      prompt: what the model reads; ``{passage}`` stands for the passage and ``{language}`` for the
        English name of the question's language.
      languages: codes of the languages it is trained for; others are written in too, and people
        are told. Empty: a stage fills in what it reads; where nothing did, nobody is told.

    Raises:
      ValueError: if a value is out of range.
    """

    source_length: int = 256
    target_length: int = 32
    prompt: str = "Generate a {language} question for this passage: {passage}"
    languages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("source_length", "target_length"):
            value = getattr(self, name)
            if type(value) is not int or value < 2:
                raise ValueError(
                    f"generator: {name} is {value!r}; write a whole number of at least 2, room for "
                    "a piece and the end token"
                )
        if not isinstance(self.prompt, str) or self.prompt.count("{passage}") != 1:
            raise ValueError(
                f"generator: prompt is {self.prompt!r}; write a text with {{passage}} in it once"
            )


@dataclasses.dataclass(frozen=True)
class Greedy:
    """Take the likeliest token every time."""


@dataclasses.dataclass(frozen=True)
class Beam:
    """Beam search, as Hugging Face's ``generate`` does it; see ``ops.decoding.beam_search``.

    Args:
      beams: texts written side by side.
      length_penalty: the power of the length that log-probabilities are divided by.
      early_stopping: whether the first ``beams`` finished texts are enough.

    Raises:
      ValueError: if ``beams`` is below 1.
    """

    beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool = False

    def __post_init__(self) -> None:
        if type(self.beams) is not int or self.beams < 1:
            raise ValueError(f"beam: beams is {self.beams!r}; write a whole number of at least 1")


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draw every token by chance; see ``ops.decoding.sample``.

    Args:
      temperature: below 1 sharpens the distribution.
      top_k: draw from the k likeliest tokens; None from all.
      top_p: draw from the likeliest tokens of this total probability; None from all.

    Raises:
      ValueError: if a value is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(
                f"sample: temperature is {self.temperature!r}; write a number above 0, or decode "
                "with Greedy()"
            )
        if self.top_k is not None and (type(self.top_k) is not int or self.top_k < 1):
            raise ValueError(
                f"sample: top_k is {self.top_k!r}; write a whole number of at least 1, or None"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(
                f"sample: top_p is {self.top_p!r}; write a number above 0 and at most 1, or None"
            )


Decoding = Greedy | Beam | Sample


class GeneratorModel(nnx.Module):
    """A T5 that answers ``Likelihood`` with ``TokenScores``, and writes texts.

    Args:
      spec: lengths and prompt.
      t5_config: size, kind and dtype.
      rngs: source of the initial weights (stream ``params``).

    Example:
      >>> import numpy as np
      >>> config = T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
      >>> on = np.ones((2, 5), bool)
      >>> text = Tokens(np.ones((2, 5), np.int32), on, on)
      >>> def score():
      ...     return GeneratorModel(Generator(), config, rngs=nnx.Rngs(0))(Likelihood(text, text))
      >>> jax.eval_shape(score).log_probs.shape
      (2, 5)
    """

    def __init__(self, spec: Generator, t5_config: T5Config, *, rngs: nnx.Rngs) -> None:
        self.spec = spec
        self.t5 = T5(t5_config, rngs=rngs)

    def tower(self, kind: type) -> Hashable:
        """Name the part of the model that answers requests of ``kind``.

        Raises:
          TypeError: if a generator does not answer such requests.
        """
        if kind is not Likelihood:
            raise TypeError(
                f"generator: asked for {getattr(kind, '__name__', kind)}, and a generator answers "
                "Likelihood; give the objective a model of another kind"
            )
        return "t5"

    def __call__(
        self, request: Likelihood, row_seeds: UInt32[Array, " R"] | None = None
    ) -> TokenScores:
        """Say how likely each token of a target is, given the source and the tokens before.

        Args:
          request: source ``[R, S]`` and target ``[R, T]``, padded on the right.
          row_seeds: ``[R]`` seeds of dropout; None turns it off.

        Returns:
          Log-probabilities ``[R, T]``, float32 or float64, exactly 0 outside ``mask``, the target's
          ``keep``.

        Raises:
          TypeError: if the request is of another kind.
        """
        self.tower(type(request))
        source, mask = jnp.asarray(request.source.ids), jnp.asarray(request.source.mask)
        target, keep = jnp.asarray(request.target.ids), jnp.asarray(request.target.keep)
        start = jnp.full_like(target[:, :1], self.t5.config.decoder_start_token_id)
        inputs = jnp.concatenate([start, target[:, :-1]], axis=1)
        encoded = self.t5.encode(source, mask, row_seeds)
        hidden = self.t5.decode(inputs, encoded, mask, row_seeds)
        found = self._log_probs(hidden, target)
        return TokenScores(jnp.where(keep, found, jnp.zeros_like(found)), keep)

    def _log_probs(
        self, hidden: Float[Array, "R T D"], target: Int[Array, "R T"]
    ) -> Float[Array, "R T"]:
        """Score tokens a piece at a time: the scores of all tokens are never whole in memory."""
        table = self.t5.head_table()

        def score(rows: tuple[Array, Array]) -> Array:
            hidden, target = rows
            logits = self.t5.logits(hidden, table)
            own = jnp.take_along_axis(logits, target[:, None], axis=1)[:, 0]
            return own - jax.nn.logsumexp(logits, axis=1)

        rows = (hidden.reshape(-1, hidden.shape[-1]), target.reshape(-1))
        devices = _shared_by()
        size = devices * max(1, _LOGITS_AT_ONCE // table.shape[0])
        return map_rows(score, rows, size, multiple=devices).reshape(target.shape)

    def generate(
        self, source: Tokens, decoding: Decoding, keys: Key[Array, "R *N"] | None = None
    ) -> Written:
        """Write a text for each source, of at most ``target_length`` tokens; to be compiled.

        Args:
          source: ``[R, S]`` prompts, padded on the right.
          decoding: how tokens are chosen.
          keys: ``[R]`` random keys, for ``Sample``; ``[R, N]`` draws N texts for each source, which
            is encoded once for all of them.

        Returns:
          The texts, ``[R * N]``: those of a source one after another.

        Raises:
          ValueError: if ``Sample`` gets no keys.
        """
        model, config = in_compute_dtype(self.t5), self.t5.config
        ids, mask = jnp.asarray(source.ids), jnp.asarray(source.mask)
        texts = 1 if keys is None else keys.size // len(ids)
        beams = decoding.beams if isinstance(decoding, Beam) else texts
        length = self.spec.target_length
        fixed, cache = model.begin(model.encode(ids, mask), mask, length, beams)
        return search(
            _stepping(model, fixed, len(ids)), cache, _follow, len(ids) * texts, length, config,
            decoding, None if keys is None else keys.reshape(-1),
        )  # fmt: skip


def generate(
    graphdef: nnx.GraphDef[GeneratorModel],
    params: Any,
    source: Tokens,
    row_ids: UInt32[Array, "R *N"],
    decoding: Decoding,
    seed: int | Int[Array, ""] = 0,
) -> Written:
    """Write a text for each source, every device for its own rows; jit with ``decoding`` static.

    A row's text depends on its source, ``seed`` and its id, not on the rows beside it.

    Args:
      graphdef: the generator's structure, from ``nnx.split``.
      params: its parameters.
      source: ``[R, S]`` prompts; R divisible by the mesh's row shards.
      row_ids: ``[R]`` numbers of the rows, for ``Sample``: another one for each text wanted; or
        ``[R, N]``, to draw N texts for each source.
      decoding: how tokens are chosen.
      seed: the root of all draws.

    Returns:
      The texts, those of a source one after another.
    """

    def local(params: Any, rows: tuple[Tokens, Array]) -> Written:
        source, ids = rows
        key = jax.random.key(seed)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(ids.reshape(-1)).reshape(ids.shape)
        return nnx.merge(graphdef, params).generate(source, decoding, keys)

    return rowwise(local, params, (source, row_ids))


def search(
    step: Step,
    state: Any,
    follow: Callable[[Any, Array], Any],
    rows: int,
    length: int,
    config: T5Config,
    decoding: Decoding,
    keys: Key[Array, " R"] | None = None,
) -> Written:
    """Write texts with any step: the loop of ``decoding``, see ``ops.decoding``.

    Args:
      step: scores the next token.
      state: what the first step gets.
      follow: see ``beam_search``.
      rows: R.
      length: at most so many tokens a text.
      config: names the tokens that start, end and pad a text.
      decoding: how tokens are chosen.
      keys: ``[R]`` random keys, for ``Sample``.

    Returns:
      The texts.

    Raises:
      ValueError: if ``Sample`` gets no keys.
    """
    special: dict[str, Any] = {
        "length": length,
        "start": config.decoder_start_token_id,
        "end": config.eos_token_id,
        "pad": config.pad_token_id,
    }
    if isinstance(decoding, Beam):
        return beam_search(step, state, rows, follow, **dataclasses.asdict(decoding), **special)
    if isinstance(decoding, Greedy):

        def likeliest(logits: Array, place: Array) -> Array:
            return jnp.argmax(logits, axis=1).astype(jnp.int32)

        return write(step, state, rows, likeliest, **special)
    if keys is None:
        raise ValueError("generate: Sample draws by chance; give a random key for each row")

    def drawn(logits: Array, place: Array) -> Array:
        here = jax.vmap(jax.random.fold_in, (0, None))(keys, place)
        return sample(logits, here, **dataclasses.asdict(decoding))

    return write(step, state, rows, drawn, **special)


def _stepping(model: T5, fixed: Fixed, sources: int) -> Step:
    table = model.head_table()

    def step(tokens: Array, place: Array, cache: Cache) -> tuple[Array, Cache]:
        ids = jax.lax.dynamic_index_in_dim(tokens, place, axis=2, keepdims=False)
        # The texts of one source are to the model what beams are.
        hidden, cache = model.step(ids.reshape(sources, -1), place, fixed, cache)
        return model.logits(hidden, table).reshape(*ids.shape, -1), cache

    return step


def _follow(cache: Cache, parents: Int[Array, "R B"]) -> Cache:
    """Give every beam the keys and values of the beam it goes on from."""
    rows, beams = parents.shape
    places = (jnp.arange(rows, dtype=parents.dtype)[:, None] * beams + parents).reshape(-1)
    return Cache(cache.keys[:, places], cache.values[:, places])


def _shared_by() -> int:
    """How many devices share the rows that this code sees: 1 where rows are a device's own."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    manual = any(kinds.get(axis) == jax.sharding.AxisType.Manual for axis in ROW_AXES)
    return 1 if manual else row_shards(mesh)
