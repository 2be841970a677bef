"""What the quickstart promises, measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("language", ["sw", "ar"])
def test_the_student_answers_in_its_language(language, tmp_path):
    """As a user runs it: in a process of its own, with one device and optimised programs."""
    command = [sys.executable, "-m", "clir_jax.train", "--run-dir", str(tmp_path / "run")]
    config = f"configs/quickstart.py:language={language}"
    subprocess.run([*command, "--config", config], cwd=ROOT, check=True)

    rows = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    figure = {
        (row["stage"], row["system"], row["dataset"]): row["value"]
        for row in rows
        if row["metric"] == "nDCG@10"
    }
    teacher = figure["teacher", "student", "en"]
    before, after = (figure["distil", s, language] for s in ("student_before", "student"))
    assert teacher > 0.95
    assert after >= 0.9 * teacher
    assert after >= 2.5 * before
    for file in ("report.html", "config.json", "model/model.safetensors", "model/clir_jax.json"):
        assert (tmp_path / "run" / file).stat().st_size > 0
