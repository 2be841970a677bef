"""Models that read a question and a passage together decide what is no negative, against a loop."""

import dataclasses
import functools
import itertools
import json

import jax
import numpy as np
import pytest
from flax import nnx

from clir_jax.config import FromStage, Mine, Run
from clir_jax.data.pairs import PairTokenizer, QuestionTokenizer
from clir_jax.data.reading import DataError
from clir_jax.models.cross_encoder import CrossEncoder, CrossEncoderModel
from clir_jax.models.cross_encoder_files import LoadedCrossEncoder
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.requests import Likelihood, Relevance
from clir_jax.models.vocabulary import train_wordpiece
from clir_jax.training import mining, negatives
from clir_jax.training.mining import mine
from clir_jax.training.supported import refuse_unsupported
from tests.models import test_generator_files as generators
from tests.training.test_cross_encoder_stage import JUDGE
from tests.training.workshop import CORPUS, RANKINGS, Killed, Workshop, bytes_of, kill_at

PASSAGES = [" ".join(letters) for n in (2, 3, 4) for letters in itertools.product("ab", repeat=n)]
# Two records ask the same question, and each knows a passage of its own.
ASKED = [("a", "b a", (0, 9)), ("b b", "a", (5,)), ("a b a", "b", (20,)), ("a", "b a", (13,))]


def cross_encoder(words=("a", "b")):
    """A cross-encoder with random weights."""
    tokenizer = train_wordpiece(words, 60)
    spec = CrossEncoder(length=16, query_length=8)
    config = EncoderConfig(
        vocab_size=tokenizer.size,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    graphdef, params = nnx.split(CrossEncoderModel(spec, config, rngs=nnx.Rngs(0)))
    return LoadedCrossEncoder(spec, config, graphdef, params, tokenizer)


def generator():
    """A generator with random weights."""
    spec = dataclasses.replace(generators.SPEC, source_length=24, languages=("sw", "en"))
    return dataclasses.replace(generators._generator(), spec=spec)


@functools.partial(jax.jit, static_argnums=0)
def _asked(graphdef, params, request):
    return nnx.merge(graphdef, params)(request)


def pair_scores(model, question, language, passages):
    """A model's scores of a question's passages: it is asked about each alone."""
    asked = functools.partial(_asked, model.graphdef)
    for passage in passages:
        if isinstance(model, LoadedCrossEncoder):
            tokenizer = PairTokenizer(model.tokenizer, model.spec)
            request = tokenizer.tokenize(Relevance, [(question, passage)])
            yield float(asked(model.params, request).values[0])
        else:
            tokenizer = QuestionTokenizer(model.tokenizer, model.spec)
            request = tokenizer.tokenize(Likelihood, [(question, passage, language)])
            told = jax.device_get(asked(model.params, request))
            yield float(told.log_probs[0][told.mask[0]].mean())


def write(folder):
    """The rankings and the corpus."""
    rows = [
        {"query": query, "queries": {"en": english}, "positives": [PASSAGES[n] for n in own]}
        for query, english, own in ASKED
    ]
    (folder / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "corpus.txt").write_text("".join(text + "\n" for text in PASSAGES))


def mined(folder):
    lines = (folder / "artifacts" / "mined" / "records.jsonl").read_text().splitlines()
    return [json.loads(line)["negatives"] for line in lines]


def work_of(**options):
    """Everything that BM25 finds is a negative, unless it is known or the judge leaves it out."""
    depth = len(PASSAGES)
    options = {"judge": "a model", "negatives": depth, "depth": depth} | options
    return Mine("mined", "bm25", RANKINGS, CORPUS, **options)


@pytest.mark.parametrize(
    ("make", "language", "most"), [(cross_encoder, "sw", 0.95), (generator, "en", 0.98)]
)
def test_it_leaves_out_what_a_loop_leaves_out(tmp_path, make, language, most, monkeypatch):
    monkeypatch.setattr(mining, "_READ_BLOCK", 3)
    monkeypatch.setattr(negatives, "_HEARD", 2)
    write(tmp_path)
    model, work = (
        make(),
        work_of(judge_language=language if language == "en" else "", judge_max_relative=most),
    )
    shop = Workshop(tmp_path, (work,), model)
    mine(work, shop.place("mined"))
    kept = left_out = 0
    for (query, english, own), found in zip(ASKED, mined(tmp_path), strict=True):
        question = query if language == "sw" else english
        scores = np.asarray(list(pair_scores(model, question, language, PASSAGES)))
        if make is generator:
            assert scores.max() < 0
        known = {n for asked, _, other in ASKED if asked == query for n in other}
        searched = [n for n, text in enumerate(PASSAGES) if set(text.split()) & set(query.split())]
        searched = [n for n in searched if n not in known]
        share = np.exp(scores) / np.exp(scores[list(own)]).min()
        assert np.abs(share - most).min() > 1e-4
        allowed = [n for n in searched if share[n] <= most]
        assert sorted(found) == sorted(PASSAGES[n] for n in allowed)
        kept, left_out = kept + len(allowed), left_out + len(searched) - len(allowed)
    assert min(kept, left_out) > 3
    counts = json.loads((tmp_path / "artifacts/mined/about.json").read_text())["facts"]["passages"]
    assert counts["left out by the judge"] == left_out
    # The search of a block is half of it, and then the judge hears two records at a time.
    assert shop.progressed[-1] == (4, 4)
    assert [done for done, _ in shop.progressed] == [0, 0, 0, 1, 1, 2, 3, 3, 3, 4]


def test_a_kill_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(mining, "_READ_BLOCK", 3)
    monkeypatch.setattr(negatives, "_HEARD", 2)
    write(tmp_path)
    work = work_of()
    shop = Workshop(tmp_path, (work,), cross_encoder())
    place = shop.place("mined")
    mine(work, place)
    whole = bytes_of(place.directory)
    for call in (5, 6, 9):  # the judge of the first block, twice, and of the second
        (place.directory / "about.json").unlink()
        with pytest.raises(Killed):
            mine(work, shop.place("mined", kill_at(call)))
        shop.progressed.clear()
        mine(work, place)
        assert bytes_of(place.directory) == whole
        assert len(shop.progressed) == (10 if call < 7 else 4)
    (tmp_path / "model" / "weights").write_text("others")
    mine(work, place)
    again = "artifact mined is built again: its judge changed; lines removed: 4"
    assert again in shop.said


def test_cut_passages_are_counted_whenever_it_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(mining, "_READ_BLOCK", 1)
    write(tmp_path)
    spec = dataclasses.replace(generators.SPEC, source_length=5, prompt="a {passage}")
    model = dataclasses.replace(generators._generator(), spec=spec)
    work = work_of(judge_language="en", judge_max_relative=9.0)  # it was trained for Swahili
    shop = Workshop(tmp_path, (work,), model)
    place = shop.place("mined")
    mine(work, place)
    whole, calls = bytes_of(place.directory), len(shop.progressed)
    # The positives, and what BM25 finds and nobody knows; of those, the passages of more words
    # than the prompt has room for beside its own and the end token.
    read = cut = 0
    for query, _, own in ASKED:
        known = {n for asked, _, other in ASKED if asked == query for n in other}
        searched = {n for n, text in enumerate(PASSAGES) if set(text.split()) & set(query.split())}
        heard = [*own, *(searched - known)]
        read += len(heard)
        cut += sum(len(PASSAGES[n].split()) > 3 for n in heard)
    assert json.loads(whole["about.json"])["facts"]["judged"] == {"read": read, "cut": cut}
    sentences = [
        "artifact mined: the generator was trained for sw, not for en (English); do not rely on "
        "what it writes or scores there",
        f"artifact mined: {cut} of {read} passages read are cut to fit the prompt",
    ]
    assert [line for line in shop.said if "found" not in line and "fewer" not in line] == sentences
    for call in range(1, calls + 1):
        (place.directory / "about.json").unlink()
        with pytest.raises(Killed):
            mine(work, shop.place("mined", kill_at(call)))
        shop.said.clear()
        mine(work, place)
        assert bytes_of(place.directory) == whole
        assert sentences[1] in shop.said


def test_the_zero_of_a_cross_encoders_scores_means_nothing(tmp_path):
    model, found = cross_encoder(), []
    for shift in (0.0, -8.0, 8.0):
        moved = jax.tree_util.tree_map_with_path(
            lambda path, x, shift=shift: x + np.float32(shift) * _is_last(path), model.params
        )
        folder = tmp_path / str(shift)
        folder.mkdir()
        write(folder)
        shop = Workshop(folder, (work_of(),), dataclasses.replace(model, params=moved))
        mine(work_of(), shop.place("mined"))
        found.append(mined(folder))
    assert found[0] == found[1] == found[2]


def _is_last(path):
    """Whether a parameter is what is added to every score."""
    return np.float32(
        "score" in jax.tree_util.keystr(path) and "bias" in jax.tree_util.keystr(path)
    )


def test_a_judge_that_is_broken(tmp_path):
    write(tmp_path)
    model = cross_encoder()
    nothing = jax.tree.map(lambda x: x * np.float32(np.nan), model.params)
    shop = Workshop(tmp_path, (work_of(),), dataclasses.replace(model, params=nothing))
    with pytest.raises(DataError) as error:
        mine(work_of(), shop.place("mined"))
    assert str(error.value) == (
        "work mined: the model 'a model' answers with numbers that are not finite; look for where "
        "its training went wrong, or name another"
    )


def test_it_may_be_of_an_earlier_stage():
    refuse_unsupported(Run("r", (JUDGE, work_of(judge=FromStage("judge")))), 1)
