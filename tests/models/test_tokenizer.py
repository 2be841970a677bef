"""Tokenizer files: loading in every form, special tokens by role, markers, punctuation, saving."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from clir_jax.models.retriever import Dense, LateInteraction
from clir_jax.models.tokenizer import (
    ROLES,
    TextTokenizer,
    add_markers,
    load_tokenizer,
    marker_id,
    punctuation_ids,
    wordpiece,
)
from clir_jax.models.vocabulary import trim

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "sat", "c", "##a"]
PIECES += [",", "##,", "।", "，", "፡፡", "...", "a.", "[unused0]", "`", "⁺", "Ж", "+"]
BERT = dict(zip(ROLES, ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"), strict=True))
SPECIAL = dict(zip(ROLES, ("<s>", "</s>", "<pad>", "<unk>", "<mask>"), strict=True))


def unigram(extra=()):
    """An XLM-R-like tokenizer: <s> 0, <pad> 1, </s> 2, <unk> 3, and <mask> behind all pieces."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [("▁", -2.0), ("▁the", -1.0), ("▁cat", -1.5), ("s", -2.0), (",", -1.0), ("▁(", -4.0)]
    backend = Tokenizer(models.Unigram([*pieces, *extra], unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    backend.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL.values()])
    return TextTokenizer(backend, SPECIAL)


def bert(pieces=PIECES, **options):
    return TextTokenizer(wordpiece({p: i for i, p in enumerate(pieces)}, **options), BERT)


@pytest.fixture
def vocabulary_file(tmp_path):
    path = tmp_path / "pieces.txt"
    path.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return path


def test_a_bare_vocabulary_is_a_bert_tokenizer(vocabulary_file):
    tokenizer = load_tokenizer(vocabulary_file)
    assert tokenizer.kind == "WordPiece"
    assert tokenizer.size == len(PIECES)
    assert list(tokenizer.vocabulary()) == PIECES
    assert [tokenizer.id(role) for role in ROLES] == [2, 3, 0, 1, 4]
    assert tokenizer.special_ids == (2, 3, 0, 1, 4)
    ids = tokenizer.encode(["the cats sat ,"])[0]
    assert tokenizer.pieces(ids) == ["the", "cat", "##s", "sat", ","]


def test_capitals_in_the_pieces_decide_on_lower_case(vocabulary_file, tmp_path):
    assert load_tokenizer(vocabulary_file).encode(["The"]) == [[1]]  # Ж is there: cased, so unknown
    assert load_tokenizer(vocabulary_file, lowercase=True).encode(["The"]) == [[5]]
    lower = tmp_path / "lower.txt"
    lower.write_text("\n".join(p for p in PIECES if p != "Ж"), encoding="utf-8")
    assert load_tokenizer(lower).encode(["The"]) == [[5]]


@pytest.mark.parametrize("lower", [True, False])
def test_a_vocab_txt_directory_equals_transformers(vocabulary_file, tmp_path, lower):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_bytes(vocabulary_file.read_bytes())
    config = {"do_lower_case": lower, "tokenizer_class": "BertTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = load_tokenizer(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    texts = ["The cats, sat", "the, [MASK] caas।", "Жс cat...", "中the\u200bcat"]
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    assert ours.encode(texts) == expected
    assert any(1 in row for row in expected)
    assert [ours.id(r) for r in ROLES] == [
        theirs.convert_tokens_to_ids(ours.special[r]) for r in ROLES
    ]


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram"])
def test_saved_and_loaded_again_it_is_the_same_here_and_in_transformers(tmp_path, kind):
    tokenizer = bert(lowercase=True) if kind == "WordPiece" else unigram()
    tokenizer, markers = add_markers(tokenizer, LateInteraction())
    assert markers == (tokenizer.size - 2, tokenizer.size - 1)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    texts = ["the cats,", "the [Q] cat", "zzz"]
    assert again.vocabulary() == tokenizer.vocabulary()
    assert again.special == tokenizer.special
    assert again.encode(texts) == tokenizer.encode(texts)
    assert tuple(marker_id(again, m) for m in ("[Q] ", "[D] ")) == markers
    assert add_markers(again, LateInteraction())[1] == markers  # added once, not twice
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert theirs(texts, add_special_tokens=False)["input_ids"] == tokenizer.encode(texts)
    assert tuple(theirs.convert_tokens_to_ids(["[Q] ", "[D] "])) == markers
    assert theirs.mask_token_id == tokenizer.id("mask")
    assert theirs("the")["input_ids"][0] == tokenizer.id("cls")


def test_special_tokens_are_read_from_the_files(tmp_path):
    renamed = {"[PAD]": "@pad", "[MASK]": "@mask"}
    pieces = {p: i for i, p in enumerate(PIECES + list(renamed.values()))}
    wordpiece(pieces).save(str(tmp_path / "tokenizer.json"))
    config = {"pad_token": {"content": "@pad"}, "mask_token": "[MASK]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"mask_token": "@mask"}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.id("pad") == pieces["@pad"]
    assert tokenizer.id("mask") == pieces["@mask"]
    assert tokenizer.id("cls") == pieces["[CLS]"]


@pytest.mark.parametrize(
    ("said", "positions", "reads", "written"),
    [
        ({}, None, 0, None),
        ({}, 512, 180, 512),
        ({"model_max_length": 256}, None, 0, 256),
        ({"model_max_length": 256}, 512, 180, 256),
        ({"model_max_length": 256}, 512, 300, 300),  # it is made to read more now
        ({"model_max_length": 1024}, 512, 180, 512),
        ({"model_max_length": 1000000000000000019884624838656}, 512, 0, 512),  # not known
    ],
)
def test_the_longest_text_is_said_to_others(tmp_path, said, positions, reads, written):
    wordpiece({p: i for i, p in enumerate(PIECES)}).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    for tokenizer in (load_tokenizer(tmp_path), load_tokenizer(tmp_path).copy()):
        tokenizer.save(tmp_path, positions=positions, reads=reads)
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        assert config.get("model_max_length") == written
    assert load_tokenizer(tmp_path).kept == ({"model_max_length": written} if written else {})


def test_tokens_of_other_roles_are_kept(tmp_path):
    transformers = pytest.importorskip("transformers")
    unigram().save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    # As transformers has XLM-R's own files: its frame, by two names.
    assert (theirs.bos_token, theirs.eos_token) == ("<s>", "</s>")
    assert theirs("the")["input_ids"] == [0, 5, 2]
    pieces = [*PIECES[:5], "a", "##a", "b", "##b", "ab", "ba"]
    bert(pieces).save(tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(str(tmp_path)).bos_token is None
    path = tmp_path / "tokenizer_config.json"
    said = {"bos_token": {"content": "ab"}, "eos_token": "<nowhere>"}
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    tokenizer = load_tokenizer(tmp_path)
    for text, bos in (("ab", "ab"), ("ba", None)):
        few, _ = trim(tokenizer, [text])
        few.save(tmp_path)
        theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
        assert len(theirs) == few.size == len(pieces) - 1
        assert (theirs.bos_token, theirs.eos_token) == (bos, None)


def test_truncation_and_padding_in_the_file_are_switched_off(tmp_path):
    backend = wordpiece({p: i for i, p in enumerate(PIECES)})
    backend.enable_truncation(4)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode(["the cat sat the cat"]) == [[5, 6, 8, 5, 6]]


def test_markers_never_become_unknown_and_do_not_change_the_given_tokenizer():
    for tokenizer in (unigram(), bert()):
        size = tokenizer.size
        grown, (query, passage) = add_markers(tokenizer, LateInteraction())
        assert tokenizer.size == size
        assert grown.size == size + 2
        assert len({query, passage, *grown.special_ids}) == 7
        assert grown.pieces([query, passage]) == ["[Q]", "[D]"]
        with pytest.raises(ValueError, match="add_markers"):
            marker_id(tokenizer, "[Q] ")


def test_markers_in_the_vocabulary_are_used_and_absent_ones_are_not_added():
    tokenizer = bert()
    spec = LateInteraction(query_marker="[unused0]", passage_marker="")
    grown, markers = add_markers(tokenizer, spec)
    assert markers == (PIECES.index("[unused0]"),)
    assert grown.size == tokenizer.size
    assert add_markers(tokenizer, Dense()) == (tokenizer, ())


def test_punctuation_is_found_in_every_script_and_nothing_else():
    tokenizer = bert()
    tokenizer, _ = add_markers(tokenizer, LateInteraction(passage_marker="!!"))
    found = tokenizer.pieces(punctuation_ids(tokenizer))
    assert found == [",", "##,", "।", "，", "፡፡", "...", "`", "+"]
    extra = [("▁،", -3.0), ("؟", -3.0), ("」。", -3.0), ("▁a.", -3.0), ("##", -3.0)]
    assert unigram(extra).pieces(punctuation_ids(unigram(extra))) == [
        ",", "▁(", "▁،", "؟", "」。", "##",
    ]  # fmt: skip


def test_all_ascii_punctuation_of_a_vocabulary_is_in_the_list():
    import string

    pieces = [*PIECES[:5], *string.punctuation]
    tokenizer = bert(pieces)
    assert punctuation_ids(tokenizer) == tuple(range(5, 37))


def test_errors_say_what_to_write(tmp_path, vocabulary_file):
    with pytest.raises(FileNotFoundError, match="there is no"):
        load_tokenizer(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"neither tokenizer\.json nor vocab\.txt"):
        load_tokenizer(empty)
    no_mask = tmp_path / "no_mask.txt"
    no_mask.write_text("\n".join(p for p in PIECES if p != "[MASK]"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"no_mask\.txt: the mask token \[MASK\] is not among"):
        load_tokenizer(no_mask)
    (empty / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="not a tokenizer"):
        load_tokenizer(empty)
    wordpiece({p: i for i, p in enumerate(PIECES)}).save(str(empty / "tokenizer.json"))
    (empty / "tokenizer_config.json").write_text('{"mask_token": "@@"}')
    with pytest.raises(ValueError, match="'@@' is named as the mask token"):
        load_tokenizer(empty)
    (empty / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match="this is not JSON"):
        load_tokenizer(empty)
    for length in (0, "512", True):
        (empty / "tokenizer_config.json").write_text(json.dumps({"model_max_length": length}))
        with pytest.raises(ValueError, match=rf"empty: .*max_length is {length!r}; write the tok"):
            load_tokenizer(empty)
    with pytest.raises(ValueError, match="id 99 is not in this vocabulary"):
        load_tokenizer(vocabulary_file).pieces([5, 99])
    backend = wordpiece({p: i for i, p in enumerate(PIECES)})
    backend.post_processor = TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 3)])
    with pytest.raises(ValueError, match="frames a text"):
        TextTokenizer(backend, BERT)
