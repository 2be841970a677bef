"""Prompts and questions as transformers' T5 tokenizer cuts them, and what happens to long ones."""

import numpy as np
import pytest

from clir_jax.data.prompts import PromptTokenizer, language_name
from clir_jax.models.generator import Generator
from clir_jax.models.generator_tokenizer import GeneratorTokenizer, load_generator_tokenizer

LETTERS = [f"▁{letter}" for letter in "abcdef"]
WORDS = ["▁Ask", "▁in", "▁Swahili", "▁Somali", ":", "▁the", "▁first", "▁words", "▁of", "▁it"]
WORDS += [*LETTERS, "?", "▁Now", ".", "f"]
SPEC = Generator(source_length=14, target_length=5, prompt="Ask in {language}: {passage} ? Now.")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """transformers' tokenizer of a small vocabulary, and where it is saved."""
    transformers = pytest.importorskip("transformers")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(word, -3.0) for word in WORDS]
    tokenizer = transformers.T5Tokenizer(vocab=pieces, extra_ids=2)
    directory = tmp_path_factory.mktemp("t5")
    tokenizer.save_pretrained(directory)
    return tokenizer, directory


@pytest.fixture(scope="module")
def prompts(theirs):
    return PromptTokenizer(load_generator_tokenizer(theirs[1]), SPEC)


def _pieces(prompts, tokens, row):
    return [prompts.tokenizer.backend.id_to_token(i) for i in tokens.ids[row][tokens.mask[row]]]


def test_whole_prompts_and_questions_are_transformers(theirs, prompts):
    tokens, cut = prompts.sources(["the first words", " of it. "], ["sw", "so"])
    expected = theirs[0](
        ["Ask in Swahili: the first words ? Now.", "Ask in Somali:  of it.  ? Now."],
        padding="max_length",
        max_length=14,
    )
    np.testing.assert_array_equal(tokens.ids, expected["input_ids"])
    np.testing.assert_array_equal(tokens.mask, expected["attention_mask"])
    np.testing.assert_array_equal(tokens.keep, tokens.mask)
    np.testing.assert_array_equal(cut, [0, 0])
    target = prompts.targets(["a b c?", "d"])
    expected = theirs[0](["a b c?", "d"], padding="max_length", truncation=True, max_length=5)
    np.testing.assert_array_equal(target.ids, expected["input_ids"])
    np.testing.assert_array_equal(target.mask, expected["attention_mask"])
    assert prompts.tokenizer.decode(target.ids, target.mask) == ["a b c?", "d"]


def test_long_prompts_lose_the_end_of_the_passage_and_nothing_else(prompts):
    head, tail = ["▁Ask", "▁in", "▁Swahili", ":"], ["▁", "?", "▁Now", ".", "</s>"]
    tokens, cut = prompts.sources(["a b c d e", "a b c d e f.", "a b"], ["sw"] * 3)
    assert _pieces(prompts, tokens, 0) == [*head, *LETTERS[:5], *tail]
    assert _pieces(prompts, tokens, 1) == [*head, *LETTERS[:5], *tail]
    np.testing.assert_array_equal(cut, [0, 2, 0])
    short, cut = prompts.sources(["a b c d e"], ["sw"], length=10)
    assert _pieces(prompts, short, 0) == [*head, "▁a", *tail]
    np.testing.assert_array_equal(cut, [4])
    with pytest.raises(ValueError, match=r"9 tokens have no room .* which takes 9; raise source_"):
        prompts.sources(["a b c d e"], ["sw"], length=9)


def test_long_questions_are_cut_before_the_end_token(prompts):
    tokens = prompts.targets(["a b c d e f"])
    assert _pieces(prompts, tokens, 0) == ["▁a", "▁b", "▁c", "▁d", "</s>"]


def test_empty_texts_and_unknown_languages_are_refused(prompts):
    for call, message in (
        (lambda: prompts.sources([" "], ["sw"]), "passage 0 of this batch is ' '; leave"),
        (lambda: prompts.targets(["a", ""]), "question 1 of this batch is ''; leave"),
        (lambda: prompts.sources(["a"], ["xq"]), "language 'xq' has no English name; write"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_languages_out_of_training_are_named(theirs, prompts):
    tokenizer = load_generator_tokenizer(theirs[1])
    spec = Generator(prompt="Ask in {language}: {passage}", languages=("sw", "so"))
    told = PromptTokenizer(tokenizer, spec).of_languages(["sw", "ha", "so", "ha", "en"])
    assert told.startswith("the generator was trained for sw, so, not for ha (Hausa), en (English)")
    assert PromptTokenizer(tokenizer, spec).of_languages(["sw", "so"]) == ""
    assert prompts.of_languages(["ha"]) == ""  # of which nobody knows what it was trained for


def test_names_are_those_of_the_languages():
    names = {"sw": "Swahili", "ha": "Hausa", "pt-BR": "Brazilian Portuguese", "so-SO": "Somali"}
    assert {code: language_name(code) for code in names} == names


def test_saved_tokenizers_cut_the_same(theirs, prompts, tmp_path):
    from transformers import AutoTokenizer

    prompts.tokenizer.save(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "Ask in Swahili: the first words of it?"
    assert again(text)["input_ids"] == theirs[0](text)["input_ids"]
    assert (again.eos_token, again.pad_token, again.unk_token) == ("</s>", "<pad>", "<unk>")
    loaded = load_generator_tokenizer(tmp_path)
    assert loaded.backend.to_str() == prompts.tokenizer.backend.to_str()
    assert (loaded.id("eos"), loaded.id("pad"), loaded.size) == (1, 0, len(WORDS) + 6)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has neither tokenizer.json nor spiece.model; save"):
        load_generator_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="'<end>' is named as the eos token and is not in the"):
        GeneratorTokenizer(loaded.backend, {"eos": "<end>"})


def test_sentencepiece_files_are_converted_by_transformers(theirs, tmp_path, monkeypatch):
    import transformers

    (tmp_path / "spiece.model").write_bytes(b"")
    given = iter([theirs[0], ValueError("no sentencepiece")])

    def convert(path):
        found = next(given)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", convert)
    assert load_generator_tokenizer(tmp_path).size == len(WORDS) + 6
    with pytest.raises(ImportError, match=r"needs the package sentencepiece .*pip install sent"):
        load_generator_tokenizer(tmp_path)
