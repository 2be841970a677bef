"""Exports of models that read query and passage together: torch's scores and texts are ours."""

import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from clir_jax.data.pairs import PairTokenizer
from clir_jax.data.prompts import PromptTokenizer
from clir_jax.export import main
from clir_jax.models.cross_encoder import CrossEncoder
from clir_jax.models.cross_encoder_files import (
    LoadedCrossEncoder,
    abstract_cross_encoder,
    load_cross_encoder,
    save_cross_encoder,
)
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.exports import export
from clir_jax.models.generator import Generator, Greedy
from clir_jax.models.generator_files import (
    LoadedGenerator,
    abstract_generator,
    load_generator,
    save_generator,
)
from clir_jax.models.generator_tokenizer import GeneratorTokenizer
from clir_jax.models.requests import Relevance
from clir_jax.models.t5 import T5Config
from clir_jax.models.vocabulary import train_wordpiece
from tests.interop.backbones import PASSAGES, QUERIES, xlmr_tokenizer

# Long queries, long passages, both, and short ones.
PAIRS = [
    *zip(QUERIES, PASSAGES, strict=False),
    (QUERIES[2], PASSAGES[2]),
    (QUERIES[3], PASSAGES[4]),
]


def _random(target, scale, seed=0):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(scale * random.normal(size=x.shape), x.dtype), target)


def cross_encoder(kind):
    sizes = {"max_position_embeddings": 40}
    if kind == "bert":
        tokenizer = train_wordpiece([*QUERIES, *PASSAGES], 300)
    else:
        tokenizer = xlmr_tokenizer()
        tokenizer.backend.post_processor = TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> </s> $B </s>",
            special_tokens=[("<s>", 0), ("</s>", 2)],
        )
        sizes = {"max_position_embeddings": 42, "type_vocab_size": 1, "pad_token_id": 1}
        sizes |= {"bos_token_id": 0, "eos_token_id": 2}
    config = EncoderConfig(
        vocab_size=tokenizer.size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        model_type=kind,
        **sizes,
    )
    spec = CrossEncoder(40, 12, query_prompt="who asks: ", passage_prompt="the text: ")
    graphdef, target = abstract_cross_encoder(spec, config)
    return LoadedCrossEncoder(spec, config, graphdef, _random(target, 1.0), tokenizer)


def generator():
    special = {"eos": "</s>", "pad": "<pad>", "unk": "<unk>"}
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(c, -4.0) for c in string.ascii_letters + ":?"] + [("▁the", -1.0), ("▁a", -1.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    backend.add_special_tokens([AddedToken(t, special=True) for t in special.values()])
    config = T5Config(vocab_size=60, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    spec = Generator(48, 6, "in {language}: {passage} the question?", languages=("sw",))
    graphdef, target = abstract_generator(spec, config)
    tokenizer = GeneratorTokenizer(backend, special, {"model_max_length": 48})
    return LoadedGenerator(spec, config, graphdef, _random(target, 1.0), tokenizer)


@pytest.fixture
def transformers(monkeypatch):
    """The library, without a network and without a word."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("torch")
    found = pytest.importorskip("transformers")
    found.logging.set_verbosity_error()
    found.logging.disable_progress_bar()
    return found


def run_card(directory, monkeypatch):
    """The names that the code of the model card defines, run where it says."""
    monkeypatch.chdir(directory)
    names = {}
    exec((directory / "README.md").read_text().split("```python\n")[1].split("```")[0], names)
    return names


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_scores_of_a_cross_encoder(kind, tmp_path, monkeypatch, transformers, capsys):
    model = cross_encoder(kind)
    save_cross_encoder(tmp_path / "model", model)
    out = tmp_path / "out"
    arguments = ["--model", str(tmp_path / "model"), "--to", "transformers", "--output", str(out)]
    assert main(arguments) == 0
    request = PairTokenizer(model.tokenizer, model.spec).tokenize(Relevance, PAIRS)
    ours = np.asarray(jax.jit(lambda m, r: m(r).values)(model.model, request))
    names = run_card(out, monkeypatch)
    theirs = names["score"](PAIRS).numpy()
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    assert np.ptp(ours) > 0.1
    # A pair is cut to what the model reads where no length is named.
    assert names["tokenizer"].model_max_length == 40
    assert (request.tokens.mask.sum(axis=1) == 40).any()
    card = (out / "README.md").read_text()
    assert 'pipeline_tag: "text-ranking"' in card
    assert "| pieces of a query, at most | 12 |" in card
    again = load_cross_encoder(out)
    assert again.spec == model.spec
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


@pytest.mark.filterwarnings("ignore:the generator was trained to write in")
def test_texts_of_a_generator(tmp_path, monkeypatch, transformers):
    model = generator()
    save_generator(tmp_path / "model", model)
    out = tmp_path / "out"
    arguments = ["--model", str(tmp_path / "model"), "--to", "transformers", "--output", str(out)]
    assert main(arguments) == 0
    passages = ["a rain", "the " * 40 + "town", "x"]
    source, cut = PromptTokenizer(model.tokenizer, model.spec).sources(passages, ["sw"] * 3)
    written = jax.jit(lambda m: m.generate(source, Greedy()))(model.model)
    ours = model.tokenizer.decode(np.asarray(written.ids), np.asarray(written.mask))
    names = run_card(out, monkeypatch)
    rows = [names["prompt"](passage, "Swahili") for passage in passages]
    assert rows == [row[on].tolist() for row, on in zip(source.ids, source.mask, strict=True)]
    assert cut.tolist() == [0, cut[1], 0]
    assert cut[1] > 0
    assert names["tokenizer"].model_max_length == 48
    theirs = names["generate"](passages, "Swahili", num_beams=1, do_sample=False)
    assert [text.strip() for text in theirs] == ours
    assert len(set(ours)) > 1
    assert "| languages of questions | sw |" in (out / "README.md").read_text()
    again = load_generator(out)
    assert again.spec == model.spec
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


@pytest.mark.parametrize(
    ("made", "what"), [(lambda: cross_encoder("bert"), "cross-encoder"), (generator, "generator")]
)
def test_layouts_of_retrievers_are_refused(made, what, tmp_path):
    with pytest.raises(ValueError, match=rf"^mine: it is a {what}, and pylate is for retrievers"):
        export(made(), "pylate", tmp_path / "out", "mine")
    assert list(tmp_path.iterdir()) == []
