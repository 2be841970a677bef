"""Pictures: read back pixel by pixel, or through the figure that was about to be saved."""

import io
import itertools
import struct
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from clir_jax.evaluation import pictures
from clir_jax.evaluation.pictures import Plan, drawable, loss_plot, plan_html, plan_picture

ROWS = [
    {"stage": "01-a", "step": 0, "loss": 3.0, "rate": 0.1},
    {"stage": "01-a", "step": 10, "loss": 2.0, "rate": 0.1},
    {"stage": "01-a", "step": 10, "nDCG@10 en": 0.5, "nDCG@10 sw": 0.25, "RR@10 en": 0.4},
    {"stage": "01-a", "step": 10, "loss": 1.5},
    {"stage": "02-b", "step": 5, "loss": float("nan"), "note": "text"},
    {"stage": "02-b", "step": 6, "loss": 1.0},
]


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn, kept as they are saved."""
    kept = []
    save = pictures._save

    def keep(figure, path):
        kept.append(figure)
        save(figure, path)

    monkeypatch.setattr(pictures, "_save", keep)
    return kept


def _lines(axis):
    return {line.get_label(): line.get_xydata().tolist() for line in axis.get_lines()}


def _png_size(data):
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_one_panel_a_stage_with_loss_and_evaluation(tmp_path, figures):
    loss_plot(ROWS, tmp_path / "loss.png")
    assert min(_png_size((tmp_path / "loss.png").read_bytes())) > 300
    first, second, other = figures[0].axes
    assert (first.get_title("left"), second.get_title("left")) == ("01-a", "02-b")
    assert (first.get_xlabel(), first.get_ylabel(), other.get_ylabel()) == (
        "step",
        "loss",
        "nDCG@10",
    )
    # The later row of step 10 counts; the second metric and other numbers are not drawn.
    assert _lines(first) == {"loss": [[0, 3.0], [10, 1.5]]}
    assert _lines(other) == {"nDCG@10 en": [[10, 0.5]], "nDCG@10 sw": [[10, 0.25]]}
    assert str(_lines(second)["loss"]) == "[[5.0, nan], [6.0, 1.0]]"
    named = [text.get_text() for text in first.get_legend().get_texts()]
    assert named == ["loss", "nDCG@10 en", "nDCG@10 sw"]


def test_the_metrics_asked_for_are_drawn(figures):
    loss_plot(ROWS, io.BytesIO(), metrics=["RR@10 en", "nDCG@10 en"])
    assert set(_lines(figures[0].axes[2])) == {"RR@10 en", "nDCG@10 en"}


def test_long_series_are_smoothed_and_keep_their_mean(figures):
    noise = np.random.default_rng(0).normal(size=600)
    rows = [{"stage": "s", "step": i, "loss": 5.0 + x} for i, x in enumerate(noise.tolist())]
    loss_plot(rows, io.BytesIO())
    raw, smooth = (np.asarray(line.get_ydata()) for line in figures[0].axes[0].get_lines())
    np.testing.assert_allclose(raw, 5.0 + noise)
    window = raw[290:311].mean()
    assert smooth[300] == pytest.approx(window)
    assert smooth[0] == pytest.approx(raw[:11].mean())
    assert smooth.std() < raw.std() / 3


def test_panels_do_not_overlap(figures):
    rows = [
        {"stage": f"{s:02d}-stage", "step": t, "loss": 1.0 / (t + 1), "nDCG@10": 0.1 * t}
        for s in range(5)
        for t in range(8)
    ]
    rows += [{"stage": "00-stage", "step": 3, f"nDCG@10 {n}": 0.5} for n in range(12)]
    loss_plot(rows, io.BytesIO())
    figure = figures[0]
    boxes = [a.get_tightbbox() for a in figure.axes if a.get_xlabel()]
    assert len(boxes) == 5
    for i, one in enumerate(boxes):
        assert one.x0 >= 0
        assert one.y0 >= 0
        assert one.x1 <= figure.bbox.x1
        assert one.y1 <= figure.bbox.y1
        assert not any(one.overlaps(other) for other in boxes[i + 1 :])


def test_nothing_to_draw_is_an_error(tmp_path):
    for rows in ([], [{"stage": "a", "step": 1}]):
        with pytest.raises(ValueError, match="no row holds a loss or a metric"):
            loss_plot(rows, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (40, 12)])
def test_a_plan_is_drawn_with_its_tokens(shape, figures):
    weights = np.random.default_rng(0).random(shape).astype(np.float32)
    x, y = [f"▁x{i}" for i in range(shape[0])], [f"$y_{i}" for i in range(shape[1])]
    stream = io.BytesIO()
    plan_picture(weights, x, y, stream, "cost $5_a")
    axis, bar = figures[0].axes
    np.testing.assert_array_equal(axis.images[0].get_array(), weights.astype(np.float64))
    assert axis.images[0].get_clim() == (0.0, weights.max())
    assert [t.get_text() for t in axis.get_yticklabels()] == x
    assert [t.get_text() for t in axis.get_xticklabels()] == y
    assert bar.get_ylabel() == "weight"
    width, height = _png_size(stream.getvalue())
    assert 100 < width < 4000
    assert 100 < height < 4000


def test_labels_of_a_plan_do_not_overlap(figures):
    x, y = [f"word{i}" for i in range(60)], [f"other{i}" for i in range(45)]
    plan_picture(np.ones((60, 45)), x, y, io.BytesIO())
    for labels in (figures[0].axes[0].get_xticklabels(), figures[0].axes[0].get_yticklabels()):
        boxes = [label.get_window_extent() for label in labels]
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
        assert all(b.x0 >= 0 and b.y0 >= 0 for b in boxes)


def test_no_weight_at_all_is_drawn():
    plan_picture(np.zeros((2, 2)), ["a", "b"], ["c", "d"], io.BytesIO())
    assert plan_html(np.zeros((1, 1)), ["a"], ["b"]).count("0.000)") == 1


@pytest.mark.parametrize("text", ["أين", "שלום", "学校", "हिन्दी", "ไทย", "தமிழ்", "🙂"])
def test_scripts_a_picture_cannot_show_are_refused(text):
    assert not drawable(text)
    with pytest.raises(ValueError, match="use plan_html"):
        plan_picture(np.ones((1, 1)), [text], ["a"], io.BytesIO())


@pytest.mark.parametrize(
    "text", ["", "▁Straße", "##ção", "школа", "σχολείο", "Trường", "ọ̀rọ̀", "<s>"]
)
def test_scripts_a_picture_can_show(text):
    assert drawable(text)


def test_shapes_that_differ_are_refused():
    for draw in (lambda p, x, y: plan_picture(p, x, y, io.BytesIO()), plan_html, Plan):
        with pytest.raises(ValueError, match=r"\(2, 1\) for 1 and 2 tokens"):
            draw(np.ones((2, 1)), ["a"], ["b", "c"])
        with pytest.raises(ValueError, match="one row for each"):
            draw(np.ones((0, 1)), [], ["b"])


class _Table(HTMLParser):
    def __init__(self):
        super().__init__()
        self.heads, self.cells, self.text = [], [], False

    def handle_starttag(self, tag, attrs):
        if tag == "td" and "title" in dict(attrs):
            self.cells.append(dict(attrs))
        self.text = tag == "th"
        if self.text:
            assert dict(attrs)["dir"] == "auto"
            self.heads.append("")

    def handle_endtag(self, tag):
        self.text = False

    def handle_data(self, data):
        if self.text:
            self.heads[-1] += data


def test_the_html_table_holds_tokens_and_weights():
    weights = np.array([[0.5, 0.0], [0.25, 0.1]])
    table = _Table()
    table.feed(plan_html(weights, ["<s>", "&"], ["مدرسة", "学校"]))
    assert table.heads == ["مدرسة", "学校", "<s>", "&"]
    assert [float(cell["title"]) for cell in table.cells] == weights.flatten().tolist()
    shades = [float(c["style"].split(")")[0].rsplit(",", 1)[1]) for c in table.cells]
    assert shades == [1.0, 0.0, 0.5, 0.2]


def test_no_global_state_and_no_display():
    code = (
        "import io, sys, matplotlib\n"
        "before = matplotlib.rcParams.copy()\n"
        "from clir_jax.evaluation.pictures import loss_plot\n"
        "loss_plot([{'stage': 'a', 'step': 1, 'loss': 1.0}], io.BytesIO())\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert matplotlib.rcParams.copy() == before\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env={"MPLBACKEND": ""})
