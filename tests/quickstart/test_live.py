"""What is shown while verl runs, in a terminal and elsewhere."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from spo_verl.launching.progress import COLUMNS
from spo_verl.quickstart.live import ROWS, training_progress

LEVELS = {f"val-core/ladder{level}/acc/mean@1": 0.25 for level in range(1, 9)}


def written(path: Path, steps: int) -> None:
    records = [{"step": 0, "data": LEVELS}]
    for step in range(1, steps + 1):
        data = {
            "critic/score/mean": 0.5 + step / 100,
            "timing_s/step": 3.25,
            "spo/value/mean": 0.4,
            "spo/coverage": 1.0,
        }
        records.append({"step": step, "data": data | (LEVELS if step == steps else {})})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def console(*, terminal: bool, width: int = 60) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, height=40, no_color=True)


def output(shown: Console) -> str:
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue()


def test_elsewhere_a_training_is_lines_and_each_of_their_numbers_is_explained_once(tmp_path: Path) -> None:
    said: list[str] = []
    path, shown = tmp_path / "metrics.jsonl", console(terminal=False)
    with training_progress(path, steps=3, done=0, values_first=False, say=said.append, console=shown) as progress:
        progress("Started a local Ray instance")
        assert len(said) == 1  # nothing to explain yet
        written(path, 2)
        progress("step:2")
    text = "\n".join(said)
    for name, what in COLUMNS.items():
        assert text.count(what) == 1
        assert name in text.split(what)[0]
    assert text.index("what a line says") < text.index("step    0/3   held-out accuracy 0.250")
    assert "step    2/3   reward 0.520   value 0.400   seen 1.000   3.2 s   held-out accuracy 0.250" in text
    assert output(shown) == ""


@pytest.mark.parametrize("width", [60, 120])
def test_a_terminal_shows_the_last_steps_what_they_mean_and_how_much_is_done(tmp_path: Path, width: int) -> None:
    said: list[str] = []
    path, shown = tmp_path / "metrics.jsonl", console(terminal=True, width=width)
    with training_progress(path, steps=30, done=0, values_first=False, say=said.append, console=shown) as progress:
        written(path, 12)
        progress("step:12")
        screen = console(terminal=False, width=width)
        screen.print(progress)
    assert said == []
    assert "12 of 30 steps" in output(shown)
    lines = output(screen).splitlines()
    assert max(map(len, lines)) <= width
    rows = [line.split() for line in lines if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows[:ROWS]] == [str(step) for step in range(13 - ROWS, 13)]
    assert rows[ROWS - 1][1:] == ["0.620", "0.400", "1.000", "3.2", "0.250"]
    words = " ".join(output(screen).split())
    for name in COLUMNS:
        assert name.split()[0] in words
    assert "share of the step's responses" in words


def test_an_estimation_is_a_bar_in_a_terminal_and_lines_elsewhere(tmp_path: Path) -> None:
    said: list[str] = []
    text = "Offline values:  25%|##5       | 256/1024 [00:31<01:30,  8.5prompt/s]\r"
    for terminal in (False, True):
        shown = console(terminal=terminal)
        with training_progress(
            tmp_path / "metrics.jsonl", steps=3, done=0, values_first=True, say=said.append, console=shown
        ) as progress:
            progress(text)
        assert ("256 of 1024 prompts" in output(shown)) == terminal
    assert len(said) == 1
    assert said[0].endswith("256 of 1024 prompts")


def test_the_first_part_promises_nothing_and_a_finished_bar_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("spo_verl.quickstart.live.time.monotonic", lambda: now[0])
    shown = console(terminal=True)
    with training_progress(
        tmp_path / "metrics.jsonl", steps=3, done=0, values_first=True, say=lambda line: None, console=shown
    ) as progress:
        texts = []
        for done, at in ((256, 10.0), (512, 30.0), (1024, 70.0)):
            now[0] = at
            progress(f"Offline values: | {done}/1024 [\r")
            part = console(terminal=False, width=80)
            part.print(progress)
            texts.append(output(part))
    # 256 prompts in 20 s: the other 512 in 40 s.
    assert "left" not in texts[0]
    assert "about 40 s left" in texts[1]
    assert texts[2].strip() == ""
