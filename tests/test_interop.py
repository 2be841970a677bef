"""The checks of other libraries say no where something differs, or there is nothing to compare."""

import json

import numpy as np
import pytest

from tests.interop import check

TEXTS = {"queries": ["a", "b"], "passages": ["c", "d", "e"]}
CASE = {"name": "it", "layout": "onnx", "backbone": "bert", "kind": "dense", "remarks": []}
SIDES = ("queries", "passages")


@pytest.fixture
def vectors():
    rng = np.random.default_rng(0)
    return {side: rng.normal(size=(len(TEXTS[side]), 1, 4)) for side in SIDES}


def _compare(directory, ours, theirs):
    masks = {f"{side}_mask": np.ones(ours[side].shape[:2], bool) for side in SIDES}
    np.savez(directory / "it.npz", **ours, **masks)
    answers = [lambda texts, side=side: list(theirs[side]) for side in SIDES]
    return check.compare(directory, CASE, TEXTS, lambda place, kind: answers)


def test_the_same_vectors_are_the_same(tmp_path, vectors):
    row, same = _compare(tmp_path, vectors, {side: 2 * vectors[side] for side in SIDES})
    assert same
    assert row == "onnx | bert | dense | 1.000000 | 1.000000 | 3 of 3 | same"


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
@pytest.mark.parametrize("whose", ["theirs", "ours", "both"])
def test_a_vector_that_is_none_is_not_the_same(tmp_path, vectors, side, value, whose):
    spoilt = {**vectors, side: vectors[side].copy()}
    spoilt[side][1] = value
    ours, theirs = (spoilt if whose in (who, "both") else vectors for who in ("ours", "theirs"))
    with np.errstate(invalid="ignore"):
        _, same = _compare(tmp_path, ours, theirs)
    assert not same


def test_scores_that_are_no_numbers_are_in_no_order():
    scores = np.array([[3.0, 2.0, 1.0]])
    assert check._same_order(scores, scores)
    assert not check._same_order(scores[:, ::-1], scores)
    for place in range(3):
        spoilt = scores.copy()
        spoilt[0, place] = np.nan
        assert not check._same_order(spoilt, scores)
        assert not check._same_order(scores, spoilt)


def test_a_library_that_compared_nothing_fails(tmp_path, vectors, monkeypatch, capsys):
    _compare(tmp_path, vectors, vectors)
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    (tmp_path / "cases.json").write_text(json.dumps([CASE]))
    answers = [lambda texts, side=side: list(vectors[side]) for side in SIDES]
    read = {"numpy": (lambda place, kind: answers, ["onnx"])}
    monkeypatch.setattr(check, "LIBRARIES", {**read, "pytest": (read["numpy"][0], ["colbert"])})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert check.main(tmp_path, "numpy") == 0
    assert capsys.readouterr().out.endswith("| 3 of 3 | same |\n")
    assert check.main(tmp_path, "numpy", "pytest") == 1
    assert capsys.readouterr().err == (
        f"error: no case in {tmp_path / 'cases.json'} is for pytest, so nothing was compared\n"
    )
    assert check.main(tmp_path) == 1


@pytest.mark.parametrize(
    ("gaps", "same", "status"),
    [
        ([1e-6, 1e-4], [True, True], 0),
        ([1e-6, 2e-4], [True, True], 1),
        ([1e-6, np.nan], [True, True], 1),
        ([1e-6, 1e-6], [True, False], 1),
        ([1e-6, 1e-6], [], 1),
    ],
)
def test_another_t5_fails(monkeypatch, capsys, gaps, same, status):
    pytest.importorskip("torch")
    from tests.interop import t5_parity

    monkeypatch.setattr(t5_parity, "_differences", lambda kind, directory: [4.0, *gaps])
    monkeypatch.setattr(t5_parity, "_their_generator", lambda directory: None)
    monkeypatch.setattr(t5_parity, "_same_texts", lambda model, decoding: np.array(same, bool))
    assert t5_parity.main() == status
