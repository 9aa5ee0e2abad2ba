"""Files of runs and recipes that are wrong in every way end in one message and exit status 2, never in a traceback.

Beside :mod:`tests.cli.test_hostile_files`, which damages what users bring: here is what the project itself wrote
before, and what a recipe names.
"""

import copy
import json
import os
import random

import pytest
import yaml

from spo_verl.errors import SpoConfigError, SpoStateError
from spo_verl.files import read_yaml
from spo_verl.launching.launch import read_metrics
from spo_verl.quickstart.runs import RESULT, RunFolder, _name
from spo_verl.rehearsal.rehearse import _importable, _loop_classes
from spo_verl.small.launches import Settings
from spo_verl.small.prepare import REPORT, STATE, _state, read_report
from tests.cli.hostile_files import HOSTILE, _bytes, _instead
from tests.cli.test_hostile_files import refused
from tests.quickstart.results import result

NAMES = ["\0", "x" * 5000, "\udcff", "/dev/null/x", "/proc/x"]


def places(node, before=()):
    """The path of every value in nested lists and dictionaries."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in list(pairs):
        yield (*before, name)
        yield from places(value, (*before, name))


def with_value(content, place, value):
    changed = copy.deepcopy(content)
    inner = changed
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    return changed


def damaged(file, rng):
    """A file of JSON with another value somewhere, or other bytes, or something else in its place."""
    way = rng.choice([_bytes, _instead, None, None, None, None])
    if way is not None:
        return way(file, rng)
    content = json.loads(file.read_text())
    place, value = rng.choice(list(places(content))), rng.choice(HOSTILE)
    file.write_text(json.dumps(with_value(content, place, value)))
    return f"{place} = {value!r:.60}"


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("compare", [False, True])
def test_results_of_runs(seed, compare, tmp_path, monkeypatch):
    monkeypatch.setattr("spo_verl.quickstart.run._Call.run", lambda call: result())  # a result that is gone
    folder = tmp_path / _name(Settings())
    folder.mkdir()
    (folder / RESULT).write_text(json.dumps(result()))
    (folder / "summary.png").write_bytes(b"drawn before") if seed % 5 else None
    told = damaged(folder / RESULT, random.Random(seed))
    done = refused(["quickstart", "--folder", str(tmp_path), *(["--compare"] if compare else [])], told)
    if done.exit_code == 2:
        assert RESULT in done.stderr, told
        assert len(done.stderr.splitlines()) == 1


def test_each_number_of_a_result_that_is_a_text_is_told(tmp_path):
    """What a comparison prints and draws: no place of it is left to the net for defects."""
    folder = tmp_path / "run"
    folder.mkdir()
    for place in (("held_out", "change"), ("train", "standard_error"), ("curve", 2, "train"), ("spent", "total"),
                  ("settings", "seed"), ("variant",), ("seconds",), ("settings",)):  # fmt: skip
        (folder / RESULT).write_text(json.dumps(with_value(result(), place, ["x"])))
        done = refused(["quickstart", "--compare", "--folder", str(tmp_path)], place)
        assert done.exit_code == 2
        assert f"{folder / RESULT} is not as it was written" in done.stderr, place


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "verb",
    [
        ["quickstart", "--folder", "@"],
        ["quickstart", "--compare", "@"],
        ["values", "estimate", "m", "@", "-o", "+", "--dry-run"],
        ["values", "estimate", "m", "d.parquet", "-o", "@", "--dry-run"],
    ],
)
def test_names_that_no_file_can_have(verb, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spo_verl.quickstart.run._Call.run", lambda call: None)
    done = refused([part.replace("@", name).replace("+", str(tmp_path / "o.parquet")) for part in verb], name[:20])
    if verb[1] == "--folder" and name != "\udcff":
        assert done.exit_code == 2


def test_logs_and_notes_of_launches_name_file_and_line(tmp_path):
    run, attempt = RunFolder(tmp_path), tmp_path / "attempts" / "training-1"
    attempt.mkdir(parents=True)
    log = attempt / "metrics.jsonl"
    good = b'{"step": 1, "data": {"critic/score/mean": 0.5}}\n'
    log.write_bytes(good + b'{"step": 2, "da')
    assert run.trained_step == 1  # the last line is still being written
    for line in (b"\xff\n", b"[1]\n", b"{}\n", b'{"step": "1", "data": {}}\n', b'{"step": 1, "data": [1]}\n',
                 b"[" * 1000 + b"]" * 1000 + b"\n", b'{"step": ' + b"9" * 5000 + b', "data": {}}\n'):  # fmt: skip
        log.write_bytes(good + line + good)
        with pytest.raises(SpoStateError, match=r"metrics\.jsonl, line 2"):
            read_metrics(log)
    for text in ("", "[]", "{}", '{"seconds": "x", "peak_bytes": 1}', '{"seconds": 1, "peak_bytes": null}', "{"):
        (attempt / "attempt.json").write_text(text)
        with pytest.raises(SpoStateError, match=r"attempt\.json"):
            run.used("training")
    run.checkpoints.mkdir()
    marker = run.checkpoints / "latest_checkpointed_iteration.txt"
    for raw in (b"", b"two", b"\xff", b"9" * 5000, b"1.5"):
        marker.write_bytes(raw)
        with pytest.raises(SpoStateError, match=r"latest_checkpointed_iteration\.txt"):
            _ = run.finished_step
    marker.write_text("20")
    assert run.finished_step == 20


def test_kept_models(tmp_path):
    for text in ("", "[]", "{}", '{"report": 1}', '{"report": {}}', '{"report": {"accuracy_by_level": null}}'):
        (tmp_path / REPORT).write_text(text)
        with pytest.raises(SpoStateError, match=REPORT):
            read_report(tmp_path)
    for raw in (b"", b"x" * 100, b"PK\x03\x04" + b"\0" * 100, b"\x80\x04.", b"\x80\x02]q\x00."):
        (tmp_path / STATE).write_bytes(raw)
        with pytest.raises(SpoStateError, match="the warm start begins again"):
            _state(tmp_path / STATE)


YAMLS = {
    "not UTF-8": b"- name: \xff\n",
    "utf-16": "- name: x\n".encode("utf-16"),
    "cut": "- name: €".encode()[:-1],
    "deep": b"- " + b"[" * 1000 + b"]" * 1000,
    "nested": "\n".join(" " * level + "a:" for level in range(400)).encode(),
    "twice": b"- a: 1\n  a: 2\n",
    "tab": b"- a:\n\t b: 1\n",
    "tag": b"- !!python/object/apply:os.system ['true']\n",
    "anchor": b"- &x [1, *x]\n",
    "unknown anchor": b"- *x\n",
    "open": b"- [1, 2\n",
    "control": b"- a: \x07\n",
    "two documents": b"- a: 1\n---\n- b: 2\n",
    "key": b"- ? [a, b]\n  : 1\n",
    "reference": b"- a: ${\n",
    "empty": b"",
    "text": b"agent\n",
    "number": b"7\n",
    "mapping": b"name: x\n",
    "numbers": b"- 1\n",
    "no target": b"- name: x\n",
    "null target": b"- _target_:\n",
    "digits": b"- _target_: " + b"9" * 5000,
    "no module": b"- _target_: Class\n",
}


@pytest.mark.parametrize("kind", YAMLS)
def test_files_of_agent_loops(kind, tmp_path):
    file = tmp_path / "agents.yaml"
    file.write_bytes(YAMLS[kind])
    with pytest.raises(SpoConfigError, match=r"agents\.yaml"):
        _loop_classes(file)


def test_what_lies_in_the_place_of_a_yaml_file(tmp_path):
    for number in range(40):
        file = tmp_path / f"{number}.yaml"
        file.write_text("- a: 1\n")
        _instead(file, random.Random(number))
        with pytest.raises(SpoConfigError, match=str(file)):
            read_yaml(file, SpoConfigError)
        file.rmdir() if file.is_dir() else os.path.lexists(file) and file.unlink()
    (tmp_path / "good.yaml").write_text(yaml.safe_dump([{"_target_": "a.b"}]))
    assert read_yaml(tmp_path / "good.yaml", SpoConfigError) == [{"_target_": "a.b"}]


@pytest.mark.parametrize("name", ["", ".x", "a..b", "a b", "\0", "x" * 5000, "os.path.x", "numpy.", "\udcff", "7"])
def test_modules_that_no_package_can_have(name):
    assert not _importable(name)
