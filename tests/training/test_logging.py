"""What people and TensorBoard see of a stage, and what stays of it after a kill."""

import io
import json

import jax
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from clir_jax.data.reading import Report
from clir_jax.training.logging import StageLog, WorkLog

TITLE = "stage 1/2 teacher"


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def _console(out=None, **options):
    return Console(file=out or io.StringIO(), highlight=False, soft_wrap=True, **options)


def _rows(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def _events(file):
    """The events of a file, read with TensorBoard's own message and the checksums of TFRecord."""
    data, events = file.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        assert int.from_bytes(data[8:12], "little") == masked_crc32c(data[:8])
        body, data = data[12 : 12 + size], data[12 + size :]
        assert int.from_bytes(data[:4], "little") == masked_crc32c(body)
        events.append(Event.FromString(body))
        data = data[4:]
    return events


def test_plain_lines_come_every_ten_seconds_at_most(tmp_path):
    clock, out = Clock(), io.StringIO()
    with StageLog(tmp_path, TITLE, 100, 0, _console(out), clock) as log:
        clock.now += 300  # baselines
        log.begin()
        for step in range(1, 101):
            clock.now += 1.0
            log.scalars(step, {"loss": 1 / step})
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[1] for line in lines] == [
        "1/100",
        *(f"{n}/100" for n in range(11, 100, 10)),
        "100/100",
    ]
    assert lines[1] == f"{TITLE}  11/100  loss 0.09091  0:11  ETA 1:29"
    assert lines[-1] == f"{TITLE}  100/100  loss 0.01  1:40  ETA 0:00"


def test_an_evaluation_is_told_at_once_and_the_last_step_once(tmp_path):
    clock, out = Clock(), io.StringIO()
    with StageLog(tmp_path, TITLE, 4, 0, _console(out), clock) as log:
        log.scalars(2, {"loss": 3.0})
        log.evaluation(2, {"nDCG@10 sw": 0.25, "R@100 sw": 0.5}, "nDCG@10 sw")
        log.scalars(3, {"loss": 2.0})
        log.scalars(4, {"loss": 1.0})
        log.evaluation(4, {"nDCG@10 sw": 0.75, "R@100 sw": 0.5}, "nDCG@10 sw")
    assert [line.rsplit("  ", 2)[0] for line in out.getvalue().splitlines()] == [
        f"{TITLE}  2/4  loss 3",
        f"{TITLE}  2/4  loss 3  nDCG@10 sw 0.250",
        f"{TITLE}  4/4  loss 1  nDCG@10 sw 0.750",
    ]


def test_a_resumed_stage_reckons_the_time_left_from_where_it_went_on(tmp_path):
    clock, out = Clock(), io.StringIO()
    with StageLog(tmp_path, TITLE, 100, 50, _console(out), clock) as log:
        clock.now += 20
        log.scalars(60, {"loss": 1.0})
    assert out.getvalue().endswith("60/100  loss 1  0:20  ETA 1:20\n")


def test_progress_of_an_evaluation_comes_every_ten_seconds_at_most(tmp_path):
    clock, out = Clock(), io.StringIO()
    with StageLog(tmp_path, TITLE, 4, 0, _console(out), clock) as log:
        for done in range(1000, 26_000, 1000):
            clock.now += 1.0
            log.passages("student", done, 25_000)
    assert out.getvalue().splitlines() == [
        f"{TITLE}  student: 10,000/25,000 passages",
        f"{TITLE}  student: 20,000/25,000 passages",
    ]


def test_a_terminal_shows_a_bar(tmp_path):
    out = io.StringIO()
    console = _console(out, force_terminal=True, width=160, legacy_windows=False, color_system=None)
    with StageLog(tmp_path, TITLE, 10, 4, console) as log:
        log.scalars(6, {"loss": 0.5})
        log.passages("student", 128, 1347)
        log._bar.refresh()
        log.say("a line of its own")
        log.passages("student", 1347, 1347)
        log.evaluation(10, {"nDCG@10 sw": 0.5}, "nDCG@10 sw")
    shown = out.getvalue()
    assert "━" in shown
    assert "6/10" in shown
    assert "128/1,347 passages" in shown
    assert "a line of its own" in shown
    last = shown[shown.rindex(TITLE) :]
    assert "10/10" in last
    assert "loss 0.5  nDCG@10 sw 0.500" in last
    assert "passages" not in last


def test_what_was_left_out_is_told_once(tmp_path):
    out = io.StringIO()
    with StageLog(tmp_path, TITLE, 4, 0, _console(out)) as log:
        log.opened("bitext", Report(1000))
        for _ in range(2):
            skipped = {"blank side": 2, "beyond limit": 1500}
            log.opened("bitext", Report(1000, skipped, ["x.tsv:7: the English side is blank"]))
    assert out.getvalue().splitlines() == [
        "bitext: 1,000 records to read; left out: 2 x blank side, 1,500 x beyond limit",
        "  x.tsv:7: the English side is blank",
    ]


def test_rows_after_the_checkpoint_and_half_lines_are_cut(tmp_path):
    with StageLog(tmp_path, TITLE, 10, 0, _console()) as log:
        for step in (2, 4, 6):
            log.scalars(step, {"loss": float(step)})
    kept = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:2]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    with StageLog(tmp_path, TITLE, 10, 4, _console()) as log:
        # Before the first new row the file is whole already: a second kill loses nothing.
        assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(kept)
        log.scalars(6, {"loss": 66.0})
    assert [row["loss"] for row in _rows(tmp_path)] == [2.0, 4.0, 66.0]
    assert not list(tmp_path.glob("*.part"))


def test_a_kill_while_the_rows_are_cut_loses_none(tmp_path, monkeypatch):
    with StageLog(tmp_path, TITLE, 10, 0, _console()) as log:
        log.scalars(2, {"loss": 1.0})
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def killed(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("clir_jax.files.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        StageLog(tmp_path, TITLE, 10, 2, _console())
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_tensorboard_reads_the_events(tmp_path):
    with StageLog(tmp_path, TITLE, 300, 0, _console()) as log:
        log.scalars(2, {"loss": 1.25, "InfoNCE/accuracy": 0.5})
        log.evaluation(200, {"nDCG@10 sw": 0.75, "mål": -1.0}, "nDCG@10 sw")
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert "tfevents" in file.name
    first, *rest = _events(file)
    assert first.file_version == "brain.Event:2"
    told = [(e.step, v.tag, v.simple_value) for e in rest for v in e.summary.value]
    assert told == [
        (2, "loss", 1.25),
        (2, "InfoNCE/accuracy", 0.5),
        (200, "nDCG_10_sw", 0.75),
        (200, "mål", -1.0),
    ]
    assert all(event.wall_time > 1.7e9 for event in (first, *rest))


def test_tensorboard_forgets_what_a_resumed_stage_does_again(tmp_path):
    for start in (0, 4):
        with StageLog(tmp_path, TITLE, 10, start, _console()) as log:
            log.scalars(start + 2, {"loss": 1.0})
    first, second = sorted((tmp_path / "tensorboard").iterdir())
    assert not any(e.HasField("session_log") for e in _events(first))
    (session,) = [e for e in _events(second) if e.HasField("session_log")]
    assert session.session_log.status == SessionLog.START
    assert session.step == 5  # TensorBoard drops this step and later ones; step 4 was kept


def test_a_row_is_on_disk_when_it_is_logged(tmp_path):
    with StageLog(tmp_path, TITLE, 10, 0, _console()) as log:
        log.scalars(2, {"loss": 1.0})
        assert _rows(tmp_path) == [{"step": 2, "loss": 1.0}]


def test_only_the_first_process_writes_and_prints(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    out = io.StringIO()
    with StageLog(tmp_path / "stage", TITLE, 10, 0, _console(out)) as log:
        log.begin()
        log.scalars(2, {"loss": 1.0})
        log.evaluation(2, {"nDCG@10 sw": 0.5}, "nDCG@10 sw")
        log.passages("student", 1, 2)
        log.opened("bitext", Report(1, {"blank": 1}))
        log.say("x")
    assert out.getvalue() == ""
    assert not (tmp_path / "stage").exists()


def test_an_error_is_not_followed_by_a_line(tmp_path):
    out = io.StringIO()
    log = StageLog(tmp_path, TITLE, 10, 0, _console(out), Clock())
    log.scalars(1, {"loss": 1.0})
    log.scalars(2, {"loss": 2.0})
    with pytest.raises(KeyError), log:
        raise KeyError
    assert len(out.getvalue().splitlines()) == 1


def test_a_work_tells_now_and_then_how_far_it_is_and_how_long_it_takes():
    now, console = [0.0], _console()
    with WorkLog("stage 1/2 mined", console, clock=lambda: now[0]) as log:
        for seconds, done in ((1, 100), (15, 100), (20, 160), (55, 200), (60, 220), (70, 250)):
            now[0] = float(seconds)
            log.progress(done, 1000)
        log.say("done")
    # It began with 100 done: 100 more took 55 seconds, so the other 800 take 440; then 150 took 70.
    assert console.file.getvalue().splitlines() == [
        "stage 1/2 mined  100/1,000  0:15",
        "stage 1/2 mined  200/1,000  0:55  ETA 7:20",
        "stage 1/2 mined  250/1,000  1:10  ETA 5:50",
        "stage 1/2 mined  done",
    ]


def test_a_work_shows_a_bar_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with WorkLog("stage 1/2 mined", console) as log:
        log.progress(250, 1000)
        log.progress(1000, 1000)
    told = console.file.getvalue()
    assert "stage 1/2 mined" in told
    assert "1000/1000" in told
    assert "ETA" in told
