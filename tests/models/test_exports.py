"""Exports: the same vectors in the libraries that are installed, and nothing that is not said."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from clir_jax import export as commands
from clir_jax.config import Rounds, Run, Stage, Task
from clir_jax.config_files import to_json
from clir_jax.data.rankings import Beir
from clir_jax.export import main
from clir_jax.models.exports import LAYOUTS, export
from clir_jax.models.foreign import stanford_skiplist
from clir_jax.models.formats import load_retriever, save_loaded
from clir_jax.models.retriever import LateInteraction
from clir_jax.models.tokenizer import markers_of
from clir_jax.objectives.contrastive import InfoNCE
from tests.interop import check
from tests.interop.backbones import BACKBONES, PASSAGES, QUERIES, SPECS, tiny
from tests.interop.write import write

KINDS = ("dense", "late interaction")
LATE, DENSE = SPECS["late interaction"], SPECS["dense"]
WRITTEN = ("transformers", "sentence-transformers", "pylate", "colbert")


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Exports of both backbones, our vectors beside them, and what was remarked on each."""
    directory = tmp_path_factory.mktemp("exports")
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        cases = write(directory, BACKBONES, WRITTEN, KINDS)
    return directory, {(c["backbone"], c["kind"], c["layout"]): c for c in cases}


@pytest.fixture
def libraries(monkeypatch):
    """The other libraries, without a network and without a word."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("torch")
    found = pytest.importorskip("transformers")
    found.logging.set_verbosity_error()
    found.logging.disable_progress_bar()


@pytest.mark.filterwarnings("ignore")  # of other libraries, about each other
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(
    ("library", "kind", "layout"),
    [
        ("transformers", "dense", "transformers"),
        ("transformers", "late interaction", "transformers"),
        ("sentence-transformers", "dense", "sentence-transformers"),
        ("sentence-transformers", "late interaction", "pylate"),
        ("sentence-transformers", "late interaction", "colbert"),
    ],
)
def test_the_same_vectors_and_rankings(exports, libraries, backbone, library, kind, layout):
    directory, cases = exports
    texts = {"queries": QUERIES, "passages": PASSAGES}
    load, _ = check.LIBRARIES[library]
    row, same = check.compare(directory, cases[backbone, kind, layout], texts, load)
    assert same, row


def _read(path):
    return json.loads(path.read_text())


def _place(exports, backbone, kind, layout):
    directory, cases = exports
    return directory / f"{cases[backbone, kind, layout]['name']}-{layout}"


def test_the_directory_of_sentence_transformers(exports):
    path = _place(exports, "bert", "dense", "sentence-transformers")
    assert _read(path / "modules.json") == [
        {"idx": i, "name": str(i), "path": place, "type": f"sentence_transformers.models.{name}"}
        for i, (place, name) in enumerate(
            [
                ("", "Transformer"),
                ("1_Pooling", "Pooling"),
                ("2_Dense", "Dense"),
                ("3_Normalize", "Normalize"),
            ]
        )
    ]
    pooling = _read(path / "1_Pooling" / "config.json")
    assert [key for key, value in pooling.items() if value is True] == [
        "pooling_mode_mean_tokens",
        "include_prompt",
    ]
    assert pooling["word_embedding_dimension"] == 16
    assert _read(path / "2_Dense" / "config.json") == {
        "in_features": 16,
        "out_features": 12,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    assert _read(path / "sentence_bert_config.json")["max_seq_length"] == 40
    about = _read(path / "config_sentence_transformers.json")
    assert about["prompts"] == {"query": "query: ", "document": "passage: "}
    assert about["similarity_fn_name"] == "cosine"


def test_the_directory_of_pylate(exports):
    path = _place(exports, "xlm-roberta", "late interaction", "pylate")
    types = [module["type"] for module in _read(path / "modules.json")]
    assert types == ["sentence_transformers.models.Transformer", "pylate.models.Dense.Dense"]
    about = _read(path / "config_sentence_transformers.json")
    words = about.pop("skiplist_words")
    assert about == {
        "__version__": about["__version__"],
        "model_type": "ColBERT",
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "MaxSim",
        "query_prefix": "[Q] ",
        "document_prefix": "[D] ",
        "query_length": 16,
        "document_length": 40,
        "attend_to_expansion_tokens": False,
        "do_query_expansion": True,
    }
    # Words that the vocabulary lacks would all be the unknown token, and so would the markers.
    backend = Tokenizer.from_file(str(path / "tokenizer.json"))
    ids = [backend.token_to_id(word) for word in words]
    assert ids == list(tiny("xlm-roberta", LATE).skiplist)
    assert len({*ids, backend.token_to_id("[Q] "), backend.token_to_id("[D] "), 3}) == len(ids) + 3
    rows = load_file(path / "model.safetensors")["embeddings.word_embeddings.weight"].shape[0]
    assert rows == _read(path / "config.json")["vocab_size"] == backend.get_vocab_size()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_directory_of_colbert(exports, backbone):
    path = _place(exports, backbone, "late interaction", "colbert")
    model = tiny(backbone, LATE)
    tensors = load_file(path / "model.safetensors")
    prefix = "bert." if backbone == "bert" else "roberta."
    assert {name for name in tensors if not name.startswith(prefix)} == {"linear.weight"}
    assert tensors["linear.weight"].shape == (12, 16)
    assert _read(path / "config.json")["architectures"] == ["HF_ColBERT"]
    about = _read(path / "artifact.metadata")
    assert about["mask_punctuation"] is True
    # Any name here is looked up on the hub, and another model taken where it is not found.
    assert about["model_name"] is None
    # Neither marker is the unknown token, as XLM-R has none of that name, and both have the vectors
    # of the markers that were trained.
    backend = Tokenizer.from_file(str(path / "tokenizer.json"))
    ids = [backend.token_to_id(about[key]) for key in ("query_token_id", "doc_token_id")]
    assert len({*ids, None, model.tokenizer.id("unk")}) == 4
    word = model.params["encoder"]["embeddings"]["word"]["embedding"].get_value()
    ours = [model.tokenizer.backend.token_to_id(marker) for marker in markers_of(LATE)]
    table = tensors[f"{prefix}embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(table[ids], np.asarray(word)[ours])


def test_other_punctuation_is_said(exports):
    _, cases = exports
    (remark,) = cases["xlm-roberta", "late interaction", "colbert"]["remarks"]
    assert "it keeps 42 (! \" # $ % & ' ( ...) and leaves out 1 (▁), so" in remark
    assert cases["xlm-roberta", "late interaction", "pylate"]["remarks"] == []
    # Of BERT's ASCII symbols the two lists are the same.
    tokenizer = tiny("bert", LATE).tokenizer
    symbols = {i for i in tiny("bert", LATE).skiplist if tokenizer.pieces([i])[0].isascii()}
    assert set(stanford_skiplist(tokenizer)) == symbols


@pytest.mark.parametrize(
    ("spec", "layout", "sentence"),
    [
        (
            DENSE,
            "pylate",
            "it answers with one vector a text, and pylate is for one vector a token",
        ),
        (DENSE, "colbert", "colbert is for one vector a token; write --to sentence-transformers"),
        (LATE, "sentence-transformers", "it answers with one vector a token"),
        ({"content_only": True}, "pylate", "it has content_only=True"),
        ({"content_only": True}, "colbert", "write --to transformers"),
        ({"query_marker": ""}, "colbert", "it has no marker for every kind of text"),
        ({"expansion": False}, "colbert", "always fills queries up with mask tokens"),
        ({"skip_punctuation": False}, "colbert", "always leaves punctuation out of passages"),
    ],
)
def test_what_a_layout_cannot_say_is_refused(tmp_path, spec, layout, sentence):
    spec = dataclasses.replace(LATE, **spec) if isinstance(spec, dict) else spec
    model = tiny("bert", LATE if isinstance(spec, LateInteraction) else DENSE)
    model = dataclasses.replace(model, spec=spec)
    with pytest.raises(ValueError, match=r"^mine: it ") as error:
        export(model, layout, tmp_path / "out", "mine")
    assert sentence in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_two_lengths_are_said_where_the_library_has_one(tmp_path):
    spec = dataclasses.replace(DENSE, query_length=16)
    model = dataclasses.replace(tiny("bert", DENSE), spec=spec)
    (remark,) = export(model, "sentence-transformers", tmp_path / "out", "mine")
    assert remark.startswith("sentence-transformers cuts all texts to 40 tokens")
    assert f"* {remark}." in (tmp_path / "out" / "README.md").read_text()


def test_without_a_projection_the_head_changes_nothing(tmp_path):
    spec = dataclasses.replace(LATE, dimension=None, expansion=False)
    export(tiny("bert", spec), "pylate", tmp_path / "out", "mine")
    head = load_file(tmp_path / "out" / "1_Dense" / "model.safetensors")["linear.weight"]
    np.testing.assert_array_equal(head, np.eye(16))


def test_the_command_writes_both_towers_and_a_card(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    query, passage = tiny("bert", LATE), tiny("bert", LATE, seed=1)
    save_loaded("run/model", dataclasses.replace(query, passage=passage))
    asked = Beir("c.jsonl", "q.tsv", "r.trec", "sw")
    tasks = (Task(InfoNCE(), {"ranking": asked}),)
    stage = Stage("distil", LATE, "google-bert/bert-base-cased", tasks, 500)
    run = Run("r", (Rounds("again", 2, (stage,)),))
    rows = [
        {"stage": place, "system": system, "dataset": "d", "language": "so", "metric": "nDCG@10"}
        | {"value": value}
        for place, system, value in [
            ("distil.1", "student", 0.1),
            ("distil.2", "bm25", 0.25),
            ("distil.2", "student", 0.5),
        ]
    ]
    (tmp_path / "run" / "config.json").write_text(to_json(run))
    (tmp_path / "run" / "summary.json").write_text(json.dumps(rows))
    assert main(["--model", "run", "--to", "pylate", "--output", "out", "--name", "sw-lake"]) == 0
    assert capsys.readouterr().out == "out: README.md says how to load it\n"
    for tower, model in {"query": query, "passage": passage}.items():
        found = load_retriever(tmp_path / "out" / tower)
        assert found.spec == LATE
        for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(model.params), strict=True):
            np.testing.assert_array_equal(a, b)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith('---\nlanguage: ["sw"]\nlibrary_name: "PyLate"\n')
    for line in (
        'base_model: "google-bert/bert-base-cased"',
        "# sw-lake",
        'query_model = models.ColBERT("query")',
        'passage_model = models.ColBERT("passage")',
        '| marker of queries | `"[Q] "` |',
        "With clir_jax. It began as `google-bert/bert-base-cased`.",
        "1. **distil** (2 rounds, each in turn with others): LateInteraction, 500 steps, beginning "
        "with `google-bert/bert-base-cased`.",
        "    * InfoNCE, 32 records a step: ranking of `Beir(c.jsonl, q.tsv, r.trec, sw)`",
        "| dataset | language | metric | bm25 | student |",
        "| d | so | nDCG@10 | 0.250 | 0.500 |",
    ):
        assert line in card.splitlines()
    assert "0.100" not in card
    (tmp_path / "run" / "summary.json").write_text(json.dumps(rows[:1]))
    for model, told in (
        ("run/model", "Nothing was measured after `distil.2`, the stage that this model is from."),
        ("out/query", None),
    ):
        assert main(["--model", model, "--to", "transformers", "--output", model[:3] + "2"]) == 0
        lines = (tmp_path / (model[:3] + "2") / "README.md").read_text().splitlines()
        assert told in lines if told else "## Measured" not in lines
        assert ("## Training" in lines) == (told is not None)
        # A directory is called model in every run.
        assert ("# run" if told else "# query") in lines


def test_mistakes_are_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_loaded("dense", tiny("bert", DENSE))
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "thesis.txt").write_text("years of work")
    for arguments, sentence in (
        (["--model", "dense", "--to", "pylate", "--output", "out"], "error: dense: it answers "),
        (["--model", "dense", "--to", "transformers", "--output", "kept"], "is not overwritten; "),
        (["--model", "kept", "--to", "transformers", "--output", "out"], "is no retriever saved "),
    ):
        assert main(arguments) == 2
        told = capsys.readouterr().err
        assert sentence in told
        assert told.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["--model", "dense", "--to", "faiss", "--output", "out"])
    assert "invalid choice: 'faiss'" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["dense", "kept"]


def test_the_command_knows_every_layout():
    assert tuple(LAYOUTS) == commands.LAYOUTS


@pytest.mark.filterwarnings("ignore")  # of other libraries, about each other
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("layout", ["transformers", "sentence-transformers"])
def test_long_texts_are_cut_to_the_positions_there_are(exports, libraries, backbone, layout):
    from transformers import pipeline

    reader = pipeline("feature-extraction", str(_place(exports, backbone, "dense", layout)))
    (found,) = np.array(reader("rain " * 200, truncation=True))
    assert found.shape == (40, 16)
    assert reader.tokenizer.model_max_length == 40
    frame = ("<s>", "</s>") if backbone == "xlm-roberta" else (None, None)
    assert (reader.tokenizer.bos_token, reader.tokenizer.eos_token) == frame
