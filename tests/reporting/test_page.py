"""The page holds what the record says, nothing in it can become markup, and it is as large as allowed."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from benchmarks.report_scale import make_run
from spo_verl.record.reading import Record
from spo_verl.record.schema import ENDINGS, FOLDER, PROMPTS, ROLLOUTS
from spo_verl.reporting import samples
from spo_verl.reporting.aggregates import NO_SOURCE
from spo_verl.reporting.page import LEAST, make_page
from spo_verl.reporting.sources import ReportError, Source
from tests.reporting.blocks import BLOCK, blocks, history, read_json
from tests.support.records import made_run

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!-- <script>",
    '"><img src=x onerror=alert(1)>',
    "{{data}} {{script}}",
    "\u2028\u202e\x00\x1b[31m",
    "😀 \ud800"[:2],
    "&lt;b&gt; ]]>",
)


def source_of(made, name="run"):
    return Source(name, made.folder, Record.open(made.folder), made.folder / "rollouts")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run in which every text tries to become markup."""
    run = made_run(tmp_path_factory.mktemp("run"), mode="separate_async", sessions=2, prompts=60, steps=6, batch=20)
    path = run.folder / FOLDER / "prompts.parquet"
    table = pa.parquet.read_table(path)
    texts = [f"{number} {HOSTILE[number % len(HOSTILE)]}" for number in range(table.num_rows)]
    table = table.set_column(table.schema.names.index("text"), PROMPTS.field("text"), pa.array(texts))
    pa.parquet.write_table(table, path)
    for dump in (run.folder / "rollouts").iterdir():
        rows = [json.loads(line) for line in dump.read_text().splitlines()]
        for row in rows:
            row["output"] += HOSTILE[len(row["uid"]) % 3]
        dump.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


@pytest.fixture(scope="module")
def page(made):
    return make_page([source_of(made, "<b>name</b>")], "today")[0]


class Elements(HTMLParser):
    """Every element with its attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_texts_of_others_never_become_markup(page):
    elements = Elements(page).found
    assert sum(tag == "script" for tag, _ in elements) == len(BLOCK.findall(page)) + 1  # the page's own
    assert not [tag for tag, _ in elements if tag in ("img", "b", "iframe", "link", "base")]
    assert "alert(1)" not in page
    assert "&lt;b&gt;name&lt;/b&gt;" in page
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on") or name == "style"]


def test_nothing_is_fetched_and_the_policy_allows_the_pages_own_code_alone(page):
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert not re.findall(r"\b(?:src|href)=", page)
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert parts["default-src"] == "'none'"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert parts[rule] == f"'sha256-{digest}'"


def test_every_prompt_has_its_whole_history(made, page):
    found = blocks(page)
    prompts = read_json(found, "run-0")["prompts"]
    texts = {row["key"]: row["text"] for row in Record.open(made.folder).prompts().to_pylist()}
    assert sorted(prompts["key"]) == sorted(texts)
    for place, key in enumerate(prompts["key"]):
        assert prompts["text"][place] == texts[key]
        rows = sorted((row for row in made.rows if row["key"] == key), key=lambda row: row["step"])
        shown = history(found, 0, place)
        assert prompts["draws"][place] == len(shown) == len(rows)
        for one, row in zip(shown, rows, strict=True):
            assert ENDINGS[int(one["ending"])] == row["ending"]
            for name, scale in samples.HISTORY:
                wanted = None if row[name] is None or row[name] != row[name] else row[name]
                if name != "ending":
                    assert one[name] == (None if wanted is None else pytest.approx(wanted, abs=0.5001 / scale)), name
        if rows:
            assert prompts["value"][place] == pytest.approx(rows[-1]["value"], rel=1e-4)
            rewards = [row["reward"] for row in rows if row["reward"] is not None]
            assert prompts["reward"][place] == (
                pytest.approx(sum(rewards) / len(rewards), rel=1e-4) if rewards else None
            )
            assert prompts["drift"][place] == pytest.approx(rows[-1]["value"] - 0.5, rel=1e-4, abs=1e-6)


def test_samples_have_their_texts_and_numbers(made, page):
    found = blocks(page)
    shown = read_json(found, "samples-0")
    prompts = read_json(found, "run-0")["prompts"]
    dumped = {}
    for file in (made.folder / "rollouts").iterdir():
        for line in file.read_text().splitlines():
            row = json.loads(line)
            dumped[row["uid"]] = row["output"]
    by_session = {(row["uid"], row["session"]): row for row in made.rows}
    assert len(shown["uid"]) == len(made.rows)
    assert shown["step"] == sorted(shown["step"], reverse=True)
    for place, session in enumerate(zip(shown["uid"], shown["session"], strict=True)):
        row = by_session.pop(session)
        assert prompts["key"][shown["prompt"][place]] == row["key"]
        for name in ("reward", "value", "advantage", "tokens"):
            found_number = None if row[name] is None or math.isnan(row[name]) else pytest.approx(row[name], rel=1e-4)
            assert shown[name][place] == found_number
        in_history = history(found, 0, shown["prompt"][place])[shown["place"][place]]
        assert (in_history["step"], in_history["tokens"]) == (row["step"], row["tokens"])
        assert shown["output"][place] == dumped.get(f"{session[0]}_{session[1]}_0")
    assert not by_session
    assert sum(one is not None for one in shown["output"]) == len(dumped)


def test_a_page_keeps_to_its_limit_and_says_what_it_left_out(tmp_path):
    make_run(tmp_path / "run", steps=40, rollouts=1000, prompts=1700, responses=False)
    source = Source("run", tmp_path / "run", Record.open(tmp_path / "run"))
    whole, [everything] = make_page([source], "today")
    part, [less] = make_page([source], "today", LEAST)
    assert len(part) <= LEAST < len(whole)
    assert (everything.histories, everything.prompts_shown, everything.samples) == (1700, 1700, samples.MOST_SAMPLES)
    assert less.histories < less.prompts_shown < 1700 == less.prompts
    found = blocks(part)
    notes = read_json(found, "book")["runs"][0]["notes"]["prompts"]
    assert f"{1700 - less.prompts_shown:,} prompts more are in the record" in notes
    assert f"{less.histories:,} with the history" in notes
    last = history(found, 0, less.histories - 1)
    assert last is not None
    assert history(found, 0, less.histories) is None
    steps = read_json(found, "samples-0")["step"]
    assert {steps.count(step) for step in set(steps)} <= {len(steps) // 40, len(steps) // 40 + 1}  # evenly over steps
    with pytest.raises(ReportError, match="has no room for its charts"):
        make_page([source], "today", LEAST - 1)
    with pytest.raises(ReportError, match=r"raise --limit, or give fewer runs"):
        make_page([source] * 30, "today", LEAST)


def test_the_most_surprising_rollouts_and_random_ones_are_sampled(tmp_path):
    run = made_run(tmp_path / "run", prompts=200, steps=5, batch=100, dumps=False)
    record = Record.open(run.folder)
    arranged = samples.arrange(record.rollouts(samples.COLUMNS), record.prompts(), 10**7)
    chosen = samples.choose(arranged, 100)
    table = record.rollouts(samples.COLUMNS).take(chosen)
    assert len(set(chosen.tolist())) == 100
    for step in range(1, 6):
        shown = table.filter(pc.equal(table["step"], step))["advantage"].to_pylist()
        all_of_step = sorted((abs(row["advantage"] or 0) for row in run.rows if row["step"] == step), reverse=True)
        assert len(shown) == 20
        found = sorted((abs(one or 0) for one in shown), reverse=True)
        assert found[:10] == all_of_step[:10]
        assert found != all_of_step[:20]


def test_prompts_that_matter_come_first(tmp_path):
    run = made_run(tmp_path / "run", prompts=500, steps=10, batch=40, dumps=False)
    record = Record.open(run.folder)
    arranged = samples.arrange(record.rollouts(samples.COLUMNS), record.prompts(), 10**7)
    drift = [abs(one) for one in arranged.prompts["drift"]]
    assert min(drift[: samples.FIRST]) >= max(drift[samples.FIRST :])
    early = 3 * samples.FIRST
    assert max(arranged.count_P[early:]) <= sorted(arranged.count_P, reverse=True)[samples.FIRST - 1]
    assert arranged.prompts["key"][early:] == sorted(arranged.prompts["key"][early:])


def test_change_is_since_the_start_of_the_run_or_the_first_rollout():
    names = {field.name: field.type for field in ROLLOUTS}
    plain = {"uid": "u", "session": 0, "data_source": "s", "ending": "trained", "version_dispatch": 0, "n_eff": 1.0}
    keys = ["a" * 32, "b" * 32, "c" * 32]
    rows = [{**plain, "key": keys[place], "step": step, "value": value, "reward": reward}
            for place, step, value, reward in ((0, 1, 0.5, 1.0), (1, 2, 0.3, None), (0, 3, 0.6, 0.0), (1, 4, 0.9, None))
            ]  # fmt: skip
    table = pa.table({name: pa.array([row.get(name) for row in rows]).cast(names[name]) for name in samples.COLUMNS})
    of_start = [{"key": keys[0], "row": 7, "value": 0.2, "n_eff": 1.0, "text": "one"},
                {"key": keys[2], "row": 8, "value": 0.4, "n_eff": 1.0, "text": None}]  # fmt: skip
    found = samples.arrange(table, pa.Table.from_pylist(of_start, PROMPTS), 10**6).prompts
    shown = {key: {name: found[name][place] for name in found if name != "text_length"}
             for place, key in enumerate(found["key"])}  # fmt: skip
    assert {key: one["drift"] for key, one in shown.items()} == pytest.approx(
        dict(zip(keys, (0.4, 0.6, 0.0), strict=True))
    )
    assert [shown[key]["draws"] for key in keys] == [2, 2, 0]
    assert [shown[key]["value"] for key in keys] == [0.6, 0.9, 0.4]
    assert [shown[key]["row"] for key in keys] == [7, None, 8]
    assert shown[keys[0]]["reward"] == 0.5
    assert math.isnan(shown[keys[1]]["reward"])
    assert [shown[key]["source"] for key in keys] == [NO_SOURCE] * 3


def test_long_texts_keep_beginning_and_end():
    text = "a" * 600 + "b" * 600
    short = samples.shortened(text, 300)
    assert short.startswith("a" * 200 + "\n[... 900 characters left out ...]\n")
    assert short.endswith("\n" + "b" * 100)
    assert samples.shortened(text, 1200) == text
    texts, length = samples._texts([text, None, "c" * 100], 2000)
    assert (length, texts) == (500, [samples.shortened(text, 500), None, "c" * 100])


def test_runs_next_to_each_other_keep_apart(made, tmp_path):
    other = made_run(tmp_path / "other", prompts=60, steps=3, batch=10, dumps=False)
    text, embedded = make_page(
        [source_of(made, "one"), Source("two", other.folder, Record.open(other.folder))], "today"
    )
    found = blocks(text)
    assert [one.steps for one in embedded] == [6, 3]
    assert embedded[1].responses == 0
    assert "dumped no responses" in read_json(found, "book")["runs"][1]["notes"]["samples"]
    assert read_json(found, "run-1")["curves"]["rollouts"] == len(other.rows)
