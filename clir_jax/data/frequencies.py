"""How rare a token is: document frequencies, counted once over a source's own texts."""

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from clir_jax.data.records import Record, Records
from clir_jax.models.requests import Tokens

MOST_TEXTS = 100_000
FLOOR = 1e-3
_SEED = 0
_BLOCK = 512


class InverseDocumentFrequency:
    r"""Gives each token the weight of its rarity.

    With n texts, of which :math:`df_t` have token t among their kept positions,

    .. math::
      idf_t = \log \frac{n + 1}{df_t + 1} + 10^{-3}

    so a token of every text weighs 0.001 and not nothing. The texts are counted at the first call,
    by whichever thread comes first: all of them, or those of a fixed random choice of records until
    there are 100,000.

    Args:
      records: the source.
      texts_of: the texts of a record.
      tokenize: gives ``Tokens [R, T]`` of R texts.
    """

    def __init__(
        self,
        records: Records,
        texts_of: Callable[[Record], Sequence[str]],
        tokenize: Callable[[Sequence[str]], Tokens],
    ):
        self._records, self._texts_of, self._tokenize = records, texts_of, tokenize
        self._lock = threading.Lock()
        self._weights: Float[np.ndarray, " V"] | None = None

    def __call__(self, tokens: Tokens) -> Float[np.ndarray, "*batch T"]:
        """``[..., T]`` float32 weights of ``tokens``; 0 where a token is not kept."""
        with self._lock:
            if self._weights is None:
                self._weights = self._count()
            weights = self._weights
        # An id beyond every counted one is in no text: it weighs as much as the last entry.
        ids = np.minimum(tokens.ids, len(weights) - 1)
        return np.where(tokens.keep, weights[ids], np.float32(0))

    def _count(self) -> Float[np.ndarray, " V"]:
        frequencies: Int[np.ndarray, " V"] = np.zeros(1, np.int64)
        n = 0
        for texts in self._blocks():
            tokens = self._tokenize(texts)
            kept = np.where(tokens.keep, tokens.ids, -1)
            for row in kept:
                found = np.unique(row[row >= 0])
                if len(found) and found[-1] >= len(frequencies):
                    frequencies = np.pad(frequencies, (0, found[-1] + 1 - len(frequencies)))
                frequencies[found] += 1
            n += len(texts)
        weights = np.log((n + 1) / (np.append(frequencies, 0) + 1)) + FLOOR
        return weights.astype(np.float32)

    def _blocks(self) -> Iterator[list[str]]:
        block: list[str] = []
        left = MOST_TEXTS
        for i in np.random.default_rng(_SEED).permutation(len(self._records)):
            block += self._texts_of(self._records[int(i)])
            while len(block) >= min(_BLOCK, left) and left:
                size = min(_BLOCK, left)
                yield block[:size]
                block, left = block[size:], left - size
            if not left:
                return
        if block:
            yield block
