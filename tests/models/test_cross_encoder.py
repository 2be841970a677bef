"""Cross-encoders: equal to torch's, in both layouts, and the same after they were saved."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from clir_jax.data.pairs import PairTokenizer
from clir_jax.data.pipeline import task_dataset
from clir_jax.data.rankings import RankingJSONL
from clir_jax.mesh import make_mesh, shardings
from clir_jax.models.cross_encoder import CrossEncoder, CrossEncoderModel
from clir_jax.models.cross_encoder_files import (
    LoadedCrossEncoder,
    abstract_cross_encoder,
    is_cross_encoder,
    load_cross_encoder,
    save_cross_encoder,
    start_cross_encoder,
)
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.foreign import CONFIG
from clir_jax.models.foreign_parts import TRANSFORMER
from clir_jax.models.requests import EncodeQuery, Relevance, Tokens
from clir_jax.models.tokenizer import ROLES, TextTokenizer, wordpiece
from clir_jax.objectives.contrastive import ListwiseSoftmax

WORDS = ["how", "many", "cat", "##s", "so", "sat", ",", "do"]
PAIRS = [("how many", "so many cats sat"), ("cats", "do cats, cats, cats, cats, cats sat so, so")]
SPEC = CrossEncoder(length=16, query_length=4)
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "initializer_range": 0.4,
}
KINDS = {
    "bert": {"vocab_size": 13, "max_position_embeddings": 16},
    "xlm-roberta": {
        "vocab_size": 13, "max_position_embeddings": 18, "type_vocab_size": 1, "pad_token_id": 1,
        "bos_token_id": 0, "eos_token_id": 2,
    },
}  # fmt: skip


def _tokenizer(kind):
    if kind == "bert":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        roles = dict(zip(ROLES, (special[i] for i in (2, 3, 0, 1, 4)), strict=True))
        vocabulary = {piece: i for i, piece in enumerate([*special, *WORDS])}
        return TextTokenizer(wordpiece(vocabulary, lowercase=True), roles)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = [*special, *(w.removeprefix("##") if "#" in w else f"▁{w}" for w in WORDS)]
    backend = Tokenizer(models.Unigram([(p, -1.0 - i / 9) for i, p in enumerate(pieces)], 3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.add_special_tokens(special)
    backend.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    roles = dict(zip(ROLES, (special[i] for i in (0, 2, 1, 3, 4)), strict=True))
    return TextTokenizer(backend, roles)


@pytest.fixture(scope="module")
def torch_directories(tmp_path_factory):
    """A model of each kind as transformers writes it, its tokenizer, and its logits of PAIRS."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    made = {}
    for kind, sizes in KINDS.items():
        config = transformers.AutoConfig.for_model(kind, **SIZES, **sizes, num_labels=1)
        torch.manual_seed(1)
        model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
        for parameter in model.parameters():  # biases too
            torch.nn.init.normal_(parameter, std=0.7)
        folder = tmp_path_factory.mktemp(kind)
        model.save_pretrained(folder)
        _tokenizer(kind).save(folder, token_types=kind == "bert")
        made[kind] = folder, _logits(folder)
    return made


def _logits(folder):
    """What transformers computes from a directory, by its own tokenizer."""
    import torch
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = transformers.AutoTokenizer.from_pretrained(folder)(
        [query for query, _ in PAIRS], [passage for _, passage in PAIRS],
        padding="max_length", max_length=16, truncation="only_second", return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        return model(**inputs).logits.numpy()


@jax.jit
def _scores(model, request):
    return model(request).values


def _of_pairs(loaded):
    return np.asarray(_scores(loaded.model, PairTokenizer(loaded.tokenizer, SPEC).tokenize(
        Relevance, PAIRS)))  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_torch_both_ways(torch_directories, tmp_path, kind):
    folder, logits = torch_directories[kind]
    assert is_cross_encoder(folder)
    loaded = load_cross_encoder(folder)
    assert loaded.spec == CrossEncoder(length=16, query_length=11)
    np.testing.assert_allclose(_of_pairs(loaded), logits[:, 0], atol=1e-4)
    assert np.ptp(logits) > 0.1
    save_cross_encoder(tmp_path / "saved", dataclasses.replace(loaded, spec=SPEC))
    theirs, ours = (load_file(d / "model.safetensors") for d in (folder, tmp_path / "saved"))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    np.testing.assert_allclose(_logits(tmp_path / "saved"), logits, atol=1e-5)
    again = load_cross_encoder(tmp_path / "saved")
    assert again.spec == SPEC
    assert jax.tree.structure(again.params) == jax.tree.structure(loaded.params)


@pytest.fixture
def sentence_transformers(monkeypatch):
    """The library itself, version 6, without the hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("sentence_transformers", minversion="6")


@pytest.mark.filterwarnings("ignore")  # of other libraries, about each other
@pytest.mark.parametrize("default", [None, "ask"])
def test_what_sentence_transformers_6_says_is_read(
    torch_directories, tmp_path, sentence_transformers, default
):
    folder, _ = torch_directories["bert"]
    theirs = sentence_transformers.CrossEncoder(
        str(folder),
        device="cpu",
        max_length=11,
        prompts={"ask": "do ", "other": "sat "},
        default_prompt_name=default,
    )
    theirs.save_pretrained(str(tmp_path / "saved"))
    loaded = load_cross_encoder(tmp_path / "saved")
    assert loaded.spec == CrossEncoder(11, 6, query_prompt="do " if default else "")
    # Where nothing, or the passage alone, is to be cut, both read the same.
    pairs = [("how many", "so many"), ("cats", "do cats sat so so so so so so so so")]
    tokens = PairTokenizer(loaded.tokenizer, loaded.spec).tokenize(Relevance, pairs)
    expected = theirs.predict(pairs, activation_fn=_as_it_is())
    np.testing.assert_allclose(_scores(loaded.model, tokens), expected, atol=1e-4)


def _as_it_is():
    import torch

    return torch.nn.Identity()


@pytest.mark.parametrize(
    ("file", "values", "sentence"),
    [
        (CONFIG, {"activation_fn": "torch.nn.modules.activation.ReLU"}, "activation_fn is 'torch."),
        (CONFIG, {"default_prompt_name": "ask"}, "default_prompt_name is 'ask', which is not"),
        (CONFIG, {"temperature": 2}, "key 'temperature' is not known here"),
        (TRANSFORMER, {"transformer_task": "fill-mask"}, "transformer_task is 'fill-mask'"),
        (
            "config.json",
            {"sentence_transformers": {"activation_fn": "mine.Scale"}},
            "sentence_transformers.activation_fn is 'mine.Scale', which is not computed here",
        ),
        (
            "modules.json",
            [{"type": f"sentence_transformers.models.{name}", "path": ""} for name in ("A", "B")],
            "the modules of this cross-encoder are A, B, and Transformer alone is computed here",
        ),
    ],
)
def test_what_a_cross_encoder_says_and_is_not_computed_is_refused(
    torch_directories, tmp_path, file, values, sentence
):
    folder, _ = torch_directories["bert"]
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / file
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | values if isinstance(values, dict) else values))
    with pytest.raises(ValueError, match="model") as error:
        load_cross_encoder(tmp_path / "model")
    assert sentence in str(error.value)
    assert str(path) in str(error.value)


def test_a_length_that_is_said_is_read(torch_directories, tmp_path):
    folder, _ = torch_directories["bert"]
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 9}))
    assert load_cross_encoder(tmp_path / "model").spec == CrossEncoder(9, 4)
    (tmp_path / "model" / TRANSFORMER).write_text('{"max_seq_length": 8, "do_lower_case": false}')
    assert load_cross_encoder(tmp_path / "model").spec == CrossEncoder(8, 3)


def test_token_types_reach_the_encoder(torch_directories):
    folder, _ = torch_directories["bert"]
    loaded = load_cross_encoder(folder)
    request = PairTokenizer(loaded.tokenizer, SPEC).tokenize(Relevance, PAIRS)
    tokens = request.tokens
    other = Relevance(Tokens(tokens.ids, tokens.mask, np.zeros_like(tokens.keep)))
    assert np.abs(_of_pairs(loaded) - np.asarray(_scores(loaded.model, other))).min() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_are_cut_as_transformers_cuts_them(torch_directories, kind):
    import transformers

    folder, _ = torch_directories[kind]
    loaded = load_cross_encoder(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)(
        *zip(*PAIRS, strict=True), padding="max_length", max_length=12, truncation="only_second"
    )
    tokens = PairTokenizer(loaded.tokenizer, SPEC).tokenize(Relevance, PAIRS, length=12).tokens
    np.testing.assert_array_equal(tokens.ids, theirs["input_ids"])
    np.testing.assert_array_equal(tokens.mask, np.array(theirs["attention_mask"], bool))
    if kind == "bert":
        np.testing.assert_array_equal(tokens.keep, np.array(theirs["token_type_ids"], bool))
    else:
        assert "token_type_ids" not in theirs
        assert not tokens.keep.any()


def test_two_labels_become_the_log_odds_of_the_second(torch_directories, tmp_path):
    folder, _ = torch_directories["xlm-roberta"]
    weights = load_file(folder / "model.safetensors")
    rng = np.random.default_rng(0)
    weights["classifier.out_proj.weight"] = rng.normal(size=(2, 16)).astype(np.float32)
    weights["classifier.out_proj.bias"] = rng.normal(size=2).astype(np.float32)
    config = json.loads((folder / "config.json").read_text())
    del config["id2label"], config["label2id"]
    (tmp_path / "config.json").write_text(json.dumps(config))  # two labels are the default
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _tokenizer("xlm-roberta").save(tmp_path)
    logits = _logits(tmp_path)
    odds = _of_pairs(load_cross_encoder(tmp_path))
    np.testing.assert_allclose(odds, logits[:, 1] - logits[:, 0], atol=1e-4)
    weights["classifier.out_proj.weight"] = np.ones((3, 16), np.float32)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"has 3 labels, and a score is of one or two"):
        load_cross_encoder(tmp_path)


def test_an_encoder_becomes_one_with_its_pooler(torch_directories):
    folder, _ = torch_directories["bert"]
    weights = load_file(folder / "model.safetensors")
    started = start_cross_encoder_from(folder, weights)
    trained = load_cross_encoder(folder)
    for path in (("encoder",), ("head", "dense")):
        ours, theirs = started.params, trained.params
        for name in path:
            ours, theirs = ours[name], theirs[name]
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    new = np.asarray(started.params["head"]["score"]["kernel"].get_value())
    assert new.shape == (16, 1)
    assert np.abs(new).min() > 0


def start_cross_encoder_from(folder, weights):
    """Start from the same files without their classifier, as a pretrained encoder has them."""
    encoder = folder / "encoder"
    encoder.mkdir()
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    save_file(kept, encoder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertModel"]}
    (encoder / "config.json").write_text(json.dumps(config))
    _tokenizer("bert").save(encoder)
    assert not is_cross_encoder(encoder)
    with pytest.raises(ValueError, match="this is no cross-encoder"):
        load_cross_encoder(encoder)
    return start_cross_encoder(encoder, SPEC)


def test_parameters_go_where_they_belong(torch_directories):
    folder, _ = torch_directories["bert"]
    mesh = make_mesh(2, 2, 2)
    _, target = abstract_cross_encoder(SPEC, load_cross_encoder(folder).encoder_config)
    places = shardings(target, mesh)
    loaded = load_cross_encoder(folder, shardings=places)
    assert loaded.params["head"]["dense"]["kernel"].get_value().sharding == (
        places["head"]["dense"]["kernel"].get_value()
    )


def test_dropout_is_by_row_seed():
    config = EncoderConfig(**SIZES, **KINDS["bert"])
    model = CrossEncoderModel(SPEC, config, rngs=nnx.Rngs(0))
    ids = jnp.full((2, 6), 7, jnp.int32)
    on = jnp.ones((2, 6), bool)
    request = Relevance(Tokens(ids, on, on))

    def values(seeds):
        return np.asarray(model(request, row_seeds=jnp.asarray(seeds, jnp.uint32)).values)

    first, again = values([1, 2]), values([2, 1])
    np.testing.assert_allclose(first, again[::-1], rtol=1e-6)
    assert abs(first[0] - first[1]) > 1e-3


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"length": 5}, "cross-encoder: length is 5; write a whole number of at least 6"),
        ({"query_length": 0}, "cross-encoder: query_length is 0; write a whole number of at least"),
        ({"length": 20, "query_length": 16}, "write a query_length of at most 15"),
    ],
)
def test_bad_values_are_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        CrossEncoder(**values)


def test_what_cannot_be_read_is_refused():
    tokenizer = PairTokenizer(_tokenizer("bert"), SPEC)
    with pytest.raises(TypeError, match="asked for EncodeQuery, and a cross-encoder answers"):
        tokenizer.tokenize(EncodeQuery, PAIRS)
    with pytest.raises(ValueError, match="a passage of this batch is ' '; leave the record out"):
        tokenizer.tokenize(Relevance, [("how", " ")])
    with pytest.raises(ValueError, match=r"length is 7, which has no room .* write at least 8"):
        tokenizer.tokenize(Relevance, PAIRS, length=7)
    config = EncoderConfig(**SIZES, **KINDS["bert"])
    with pytest.raises(ValueError, match="length is 17 and the encoder has positions for 16"):
        CrossEncoderModel(CrossEncoder(17, 4), config, rngs=nnx.Rngs(0))
    assert PairTokenizer(_tokenizer("bert"), SPEC) == tokenizer
    assert PairTokenizer(_tokenizer("bert"), CrossEncoder(16, 5)) != tokenizer


def test_prompts_stand_before_their_texts():
    spec = CrossEncoder(16, 4, query_prompt="how ", passage_prompt="so ")
    ours = PairTokenizer(_tokenizer("bert"), spec).tokenize(Relevance, [("many cats", "cats")])
    plain = PairTokenizer(_tokenizer("bert"), SPEC).tokenize(
        Relevance, [("how many cats", "so cats")]
    )
    np.testing.assert_array_equal(ours.tokens.ids, plain.tokens.ids)


def test_a_task_of_pairs_is_as_wide_as_its_bucket(tmp_path):
    lists = [(["so many cats"], ["sat"]), (["sat", "cats do"], [])] * 4
    lists += [(["cats"], ["so, " * 6]), (["so"], ["cats cats cats cats cats"])]
    lines = [{"query": "how many", "positives": p, "negatives": n} for p, n in lists]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    reader = PairTokenizer(_tokenizer("bert"), CrossEncoder(40, 4))
    batches = task_dataset(
        ListwiseSoftmax().student,
        {},
        {"ranking": RankingJSONL("r.jsonl", "sw").open(str(tmp_path))},
        {"student": reader},
        batch_size=2,
        seed=0,
        passages=2,
        buckets=2,
    )
    shapes = {}
    for step in range(5):
        batch = batches[step]
        tokens, ids = batch["student"]["relevance"].tokens, batch["labels"]["ranking.passage_ids"]
        assert tokens.ids.shape[:2] == (2, 2)
        np.testing.assert_array_equal(tokens.mask.any(axis=-1), ids >= 0)
        np.testing.assert_array_equal(tokens.ids[..., 0], np.where(ids >= 0, 2, 0))
        shapes.setdefault(tokens.ids.shape[2], []).append(int(tokens.mask.sum(axis=-1).max()))
    assert len(shapes) == 2
    assert all(max(used) <= width for width, used in shapes.items())


def test_a_directory_with_something_else_is_not_overwritten(tmp_path):
    config = EncoderConfig(**SIZES, **KINDS["bert"])
    graphdef, params = nnx.split(CrossEncoderModel(SPEC, config, rngs=nnx.Rngs(0)))
    loaded = LoadedCrossEncoder(SPEC, config, graphdef, params, _tokenizer("bert"))
    (tmp_path / "clir_jax.json").write_text('{"retriever": {}}')
    with pytest.raises(FileExistsError, match="something else than a cross-encoder of clir_jax"):
        save_cross_encoder(tmp_path, loaded)
