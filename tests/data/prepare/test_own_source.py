"""Questions and answers of any origin: the same rows from every form of file, and what is refused."""

import csv
import json
from decimal import Decimal

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spo_verl.agent.math_reward import compute_score
from spo_verl.data.prepare import PromptLimit, RowError, SpoDataError, check_file, named_source, overlap, prepare
from spo_verl.data.prepare.templates import BOXED
from spo_verl.small.model import build_tokenizer
from tests.data.prepare.releases import write_jsonl

ROWS = [
    {"id": "a", "text": "What is 1 + 1?", "gold": "2"},
    {"id": "b", "text": "A half, in two lines:\nwhich?", "gold": "0.50"},
    {"id": "c", "text": 'Quoted, "so": what?', "gold": "[1, 2]"},
    {"id": "d", "text": "Leading zeros?", "gold": "007"},
    {"id": "e", "text": "Ümläute: 1e3?", "gold": "1e3"},
]
PAIRS = [(row["text"], row["gold"]) for row in ROWS]


def write_csv(file, rows, separator=","):
    with file.open("w", newline="", encoding="utf-8") as sink:
        writer = csv.DictWriter(sink, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return file


def write_json(file, rows):
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


def write_parquet(file, rows):
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def folder_of(write, ending):
    def make(folder, rows):
        (folder / "clone").mkdir()
        write(folder / "clone" / f"train{ending}", rows)
        return folder / "clone"

    return make


def saved(folder, rows):
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(folder / "saved")
    return folder / "saved"


FORMS = {
    "csv": lambda folder, rows: write_csv(folder / "in.csv", rows),
    "tsv": lambda folder, rows: write_csv(folder / "in.tsv", rows, "\t"),
    "jsonl": lambda folder, rows: write_jsonl(folder / "in.jsonl", rows),
    "json": lambda folder, rows: write_json(folder / "in.json", rows),
    "parquet": lambda folder, rows: write_parquet(folder / "in.parquet", rows),
    "folder of csv": folder_of(write_csv, ".csv"),
    "folder of jsonl": folder_of(write_jsonl, ".jsonl"),
    "folder of parquet": folder_of(write_parquet, ".parquet"),
    "saved to disk": saved,
}


@pytest.fixture
def own(tmp_path):
    """Prepare a file; returns the report and the written rows."""

    def run(origin, question="text", answer="gold", options=None, **columns):
        source = named_source("mine", question, answer, **columns)
        out = tmp_path / "out.parquet"
        report = prepare(source, out, origin=[str(origin)], force=True, **(options or {}))
        assert report.read == report.written + sum(report.dropped.values())
        return report, pq.read_table(out).to_pylist()

    return run


def truths(rows):
    return [row["reward_model"]["ground_truth"] for row in rows]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_file_gives_the_same_rows(form, own, tmp_path):
    report, rows = own(FORMS[form](tmp_path, ROWS), source_id="id")
    assert [(row["extra_info"]["problem"], row["reward_model"]["ground_truth"]) for row in rows] == PAIRS
    assert [row["prompt"] for row in rows] == [[{"role": "user", "content": f"{text}\n\n{BOXED}"}] for text, _ in PAIRS]
    assert [row["extra_info"]["source_id"] for row in rows] == list("abcde")
    assert {(row["data_source"], row["ability"]) for row in rows} == {("mine", "math")}
    assert (report.source, report.release) == ("mine", "columns text and gold")
    assert check_file(tmp_path / "out.parquet").fine


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), min_size=1).filter(str.strip),
            st.integers(-(10**20), 10**20),
        ),
        min_size=1,
        max_size=8,
        unique_by=lambda pair: " ".join(pair[0].split()),
    )
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_csv_and_json_hold_any_text_and_number(own, tmp_path, pairs):
    rows = [{"text": text, "gold": number} for text, number in pairs]
    for form in ("csv", "jsonl"):
        _, found = own(FORMS[form](tmp_path, rows), options={"template": "none", "conflicts": "keep"})
        assert truths(found) == [str(number) for _, number in pairs]
        assert [row["extra_info"]["problem"] for row in found] == [text.strip() for text, _ in pairs]


@pytest.mark.parametrize(
    ("answer", "truth", "right", "wrong"),
    [
        (7, "7", "7", "8"),
        (0.5, "0.5", "\\frac12", "2"),
        (3.0, "3", "3", "30"),
        (["36", 37], '["36", "37"]', "37", "38"),
        (["36"], "36", "36", "6"),
        ("[1, 2]", "[1, 2]", "[1,2]", "1"),  # an interval, and no list of right answers
        ("007", "007", "7", "70"),
        ("$\\frac{1}{2}$", "$\\frac{1}{2}$", "0.5", "0.2"),
    ],
)
@pytest.mark.parametrize("mixed", [True, False], ids=["column of several types", "column of one type"])
def test_answers_are_graded_as_they_were_given(answer, truth, right, wrong, mixed, own, tmp_path):
    rows = [{"text": "x?", "gold": answer}] + [{"text": "y?", "gold": one} for one in (1, "2", ["3"]) if mixed]
    _, found = own(write_jsonl(tmp_path / "in.jsonl", rows), options={"conflicts": "first"})
    assert found[0]["reward_model"]["ground_truth"] == truth
    grades = [
        compute_score("mine", f"\\boxed{{{text}}}", truth, verifier="math_verify")["acc"] for text in (right, wrong)
    ]
    assert grades == [1.0, 0.0]


def test_decimals_and_members_of_structs(own, tmp_path):
    rows = [{"text": "x?", "row": {"gold": Decimal("12.50")}}, {"text": "y?", "row": {"gold": Decimal("1E+3")}}]
    _, found = own(write_parquet(tmp_path / "in.parquet", rows), answer="row.gold")
    assert truths(found) == ["12.5", "1000"]
    # A column whose own name has a dot.
    flat = [{"text": "x?", "row.gold": "5", "row": {"gold": "6"}}]
    assert truths(own(write_jsonl(tmp_path / "in.jsonl", flat), answer="row.gold")[1]) == ["5"]


def test_the_answer_is_taken_out_of_a_solution(own, tmp_path):
    file = write_jsonl(
        tmp_path / "in.jsonl",
        [{"text": "x?", "hashes": "so\n#### 1,000", "boxed": "\\boxed{1} or \\boxed{\\frac{1}{2}}."}],
    )
    assert truths(own(file, answer="hashes", answer_form="hashes")[1]) == ["1,000"]
    assert truths(own(file, answer="boxed", answer_form="boxed")[1]) == ["\\frac{1}{2}"]
    with pytest.raises(RowError, match=r"field hashes: there is no closed \\boxed"):
        own(file, answer="hashes", answer_form="boxed")
    with pytest.raises(RowError, match="field boxed: there is no '####'"):
        own(file, answer="boxed", answer_form="hashes")


CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "And 2 + 2?"},
]


@pytest.mark.parametrize("form", ["jsonl", "parquet", "csv"])
def test_chat_messages_stay_and_the_instruction_goes_to_the_last(form, own, tmp_path):
    rows = [{"text": CHAT, "gold": "4"}, {"text": CHAT[1:], "gold": "4"}, {"text": CHAT[:2], "gold": "2"}]
    if form == "csv":
        rows = [row | {"text": json.dumps(row["text"])} for row in rows]
    report, found = own(FORMS[form](tmp_path, rows), options={"instruction": "Say why."})
    assert [row["prompt"] for row in found] == [
        [*row[:-1], {"role": "user", "content": f"{row[-1]['content']}\n\nSay why."}]
        for row in (CHAT, CHAT[1:], CHAT[:2])
    ]
    assert [row["extra_info"]["problem"] for row in found] == ["And 2 + 2?", "And 2 + 2?", "1 + 1?"]
    assert (report.template, report.details["instruction"]) == ("own", "Say why.")
    assert check_file(tmp_path / "out.parquet").fine


def test_conversations_conflict_only_if_all_of_them_is_the_same(own, tmp_path):
    rows = [
        {"text": CHAT, "gold": "4"},
        {"text": CHAT[1:], "gold": "5"},  # another conversation with the same last message
        {"text": CHAT, "gold": "6"},
        {"text": CHAT[1:], "gold": "5"},
    ]
    report, found = own(write_jsonl(tmp_path / "in.jsonl", rows), options={"system": None})
    assert (report.dropped, truths(found)) == ({"conflict": 2, "duplicate": 1}, ["5"])


def test_a_system_prompt_goes_first(own, tmp_path):
    file = write_jsonl(tmp_path / "in.jsonl", [{"text": f"{n // 2}?", "gold": str(n // 2)} for n in range(6)])
    report, found = own(file, options={"system": " Think. ", "template": "none"})
    assert [[message["content"] for message in row["prompt"]] for row in found] == [
        ["Think.", f"{n}?"] for n in range(3)
    ]
    assert (report.dropped, report.details["system"]) == ({"duplicate": 3}, "Think.")
    # The copy without conflicting problems knows them behind the system prompt too.
    more = [{"text": f"{n // 2}?", "gold": str(n % 3)} for n in range(5)]
    assert truths(own(write_jsonl(tmp_path / "in.jsonl", more), options={"system": "Think."})[1]) == ["1"]
    both = write_jsonl(tmp_path / "both.jsonl", [{"text": CHAT, "gold": "4"}])
    with pytest.raises(RowError, match="row 0, field text: it has a system message of its own: leave --system away"):
        own(both, options={"system": "Think."})


def test_other_abilities_have_free_answers_for_a_reward_function(own, tmp_path):
    rows = [
        {"text": "Name a colour.", "gold": "None of them {"},
        {"text": "Write.", "gold": ["assert f(1) == 2", "$x$"]},
    ]
    file = write_jsonl(tmp_path / "in.jsonl", rows)
    report, found = own(file, ability="code")
    assert truths(found) == ["None of them {", '["assert f(1) == 2", "$x$"]']
    assert [row["prompt"][0]["content"] for row in found] == [
        "Name a colour.",
        "Write.",
    ]  # no instruction for mathematics
    assert (report.template, report.answers_only_text) == ("none", 0)
    assert check_file(tmp_path / "out.parquet").fine
    with pytest.raises(RowError, match="no boxed answer can equal it"):
        own(file)


def test_answers_that_are_compared_as_text_are_counted(own, tmp_path):
    rows = [
        {"text": f"{n}?", "gold": gold} for n, gold in enumerate(["1/2", "7", "x" * 600, "\\unknown{3}^^", "y" * 600])
    ]
    rows += [{"text": "4?", "gold": "z" * 600}]  # drops row 4 too
    report, _ = own(write_jsonl(tmp_path / "in.jsonl", rows))
    assert report.answers_only_text == 2
    assert "            answers that are right only if written alike: 2" in report.lines()
    assert check_file(tmp_path / "out.parquet").only_text == 2


class TestLengths:
    @pytest.fixture(scope="class")
    def model(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("model")
        build_tokenizer().save_pretrained(folder)
        return str(folder)

    def test_too_long_prompts_are_dropped_and_found(self, model, own, tmp_path):
        tokenizer = build_tokenizer()
        rows = [{"text": "1 + " * n + "1", "gold": str(n + 1)} for n in (1, 20, 60)] + [{"text": "1 + 1", "gold": "2"}]
        file = write_jsonl(tmp_path / "in.jsonl", rows)
        _, found = own(file, options={"template": "none"})
        lengths = [
            len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"])
            for row in found
        ]
        limit = PromptLimit(model, lengths[1])
        report = check_file(tmp_path / "out.parquet", limit)
        assert report.problems == [f"row 2, field prompt: {lengths[2]} tokens, and at most {lengths[1]} are allowed."]
        report, found = own(file, options={"template": "none", "prompt_limit": limit})
        assert (report.dropped, truths(found)) == ({"too_long": 1, "duplicate": 1}, ["2", "21"])
        assert "dropped     1 with too long a prompt" in report.lines()

    def test_a_tokenizer_that_cannot_be_used_is_named(self, tmp_path):
        with pytest.raises(SpoDataError, match=r"the tokenizer of .*nowhere cannot be loaded"):
            PromptLimit(str(tmp_path / "nowhere"), 10)
        tokenizer = build_tokenizer()
        tokenizer.chat_template = None
        tokenizer.save_pretrained(tmp_path / "bare")
        with pytest.raises(SpoDataError, match="has no chat template"):
            PromptLimit(str(tmp_path / "bare"), 10)
        tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
        tokenizer.save_pretrained(tmp_path / "strict")
        limit = PromptLimit(str(tmp_path / "strict"), 10)
        with pytest.raises(SpoDataError, match=r"roles system, user \(System role not supported\): change"):
            limit.excess([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}])


def test_overlap_finds_own_rows(own, tmp_path):
    own(write_jsonl(tmp_path / "in.jsonl", ROWS), options={"system": "Think."})
    prepare(
        named_source("held", "q", "a"),
        tmp_path / "held.parquet",
        origin=[str(write_csv(tmp_path / "in.csv", [{"q": "what is $1+1$", "a": "2"}, {"q": "New?", "a": "1"}]))],
    )
    report = overlap(tmp_path / "out.parquet", [tmp_path / "held.parquet"])
    assert [(one.problems, len(one.shared)) for one in report.files] == [(2, 1)]


def test_a_published_name_keeps_its_rules(tmp_path):
    file = write_jsonl(tmp_path / "in.jsonl", [{"frage": "1?", "antwort": "so #### 1,000"}])
    report = prepare(named_source("gsm8k", "frage", "antwort"), tmp_path / "out.parquet", origin=[str(file)])
    assert truths(pq.read_table(tmp_path / "out.parquet").to_pylist()) == ["1000"]
    assert report.source == "gsm8k"


THERE = "the columns are id, text, gold, meta.level, meta.by.name"


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"question": "Text", "answer": "gold"}, rf"there is no column 'Text' \(--question\); {THERE}"),
        ({"question": "text", "answer": "meta.gold"}, rf"there is no column 'meta.gold' \(--answer\); {THERE}"),
        ({"question": "text", "answer": None}, rf"which column is it\? Name it with --answer; {THERE}"),
        ({"question": None, "answer": "gold"}, rf"which column is it\? Name it with --question; {THERE}"),
        (
            {"question": "text", "answer": "meta"},
            rf"the column 'meta' \(--answer\) has members: name one of them; {THERE}",
        ),
        ({"question": "text", "answer": "gold", "source_id": "no"}, rf"no column 'no' \(--id\); {THERE}"),
    ],
)
def test_columns_that_are_not_there_are_refused_with_those_that_are(columns, complaint, tmp_path):
    rows = [{"id": 1, "text": "x?", "gold": "1", "meta": {"level": 1, "by": {"name": "n"}}}]
    file = write_jsonl(tmp_path / "in.jsonl", rows)
    with pytest.raises(SpoDataError, match=complaint):
        prepare(named_source("mine", **columns), tmp_path / "out.parquet", origin=[str(file)])
    assert not (tmp_path / "out.parquet").exists()
    with pytest.raises(SpoDataError, match=rf"no source 'mine' .*--question and --answer; {THERE}"):
        prepare("mine", tmp_path / "out.parquet", origin=[str(file)])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("mine", "a", "a"), "are both 'a': name two columns"),
        ((" ", "a", "b"), "the name is empty"),
    ],
)
def test_names_that_cannot_be_meant(arguments, complaint):
    with pytest.raises(SpoDataError, match=complaint):
        named_source(*arguments)


def test_options_that_do_not_go_together(tmp_path):
    with pytest.raises(SpoDataError, match="need the columns: name them with --question and --answer"):
        named_source("gsm8k", None, None, ability="code")
    with pytest.raises(SpoDataError, match="has its own rules for answers"):
        named_source("gsm8k", "q", "a", answer_form="boxed")
    source, out = named_source("mine", "q", "a"), tmp_path / "out.parquet"
    with pytest.raises(SpoDataError, match="where is mine"):
        prepare(source, out)
    with pytest.raises(SpoDataError, match="are both given"):
        prepare(source, out, origin=["x"], template="tool", instruction="Do.")
    for option in ({"instruction": " "}, {"system": ""}):
        with pytest.raises(SpoDataError, match="is empty"):
            prepare(source, out, origin=["x"], **option)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({"text": None}, "field text: it is empty, and a problem is a text or a list of chat messages"),
        ({"text": " "}, "field text: it is ' ', and a problem is a text"),
        ({"text": []}, "field text: it is empty"),
        ({"text": 5}, "field text: it is 5, and a problem is a text"),
        ({"text": ["a"]}, r"field text\[0\]: it is 'a', and a message has a role and a content"),
        ({"text": [{"from": "human", "value": "x"}]}, r"field text\[0\]: .*and a message has a role and a content"),
        ({"text": [{"role": "human", "content": "x"}]}, r"field text\[0\].role: 'human' instead of system, user"),
        ({"text": CHAT[:3]}, r"field text\[2\].role: 'assistant', and the last message is the user's"),
        ({"text": [{"role": "user", "content": [{"text": "x"}]}]}, r"field text\[0\].content: .*a content is a text"),
        ({"text": "half \ud800"}, "field text: it has half of a surrogate pair"),
        ({"gold": None}, "field gold: it is empty"),
        ({"gold": ""}, "field gold: it is empty"),
        ({"gold": []}, "field gold: a list without elements"),
        ({"gold": [None]}, "field gold: it is empty"),
        ({"gold": [["1"]]}, "field gold: a list is no answer"),
        ({"gold": {"a": 1}}, "field gold: a dict is no answer"),
        ({"gold": True}, "field gold: a bool is no answer"),
        ({"gold": "NaN"}, "field gold: 'NaN' is what a missing or broken number becomes"),
        ({"gold": "\\frac{1}{2"}, "field gold: .*no boxed answer can equal it"),
    ],
)
def test_rows_that_are_no_question_and_answer_are_named(value, complaint, own, tmp_path):
    rows = [{"text": "x?", "gold": "1"}, {"text": "y?", "gold": "2"} | value, {"text": [CHAT[1]], "gold": ["1", 2]}]
    file = write_jsonl(tmp_path / "in.jsonl", rows)
    with pytest.raises(RowError, match=rf"in\.jsonl: row 1, {complaint}.*--drop-invalid"):
        own(file)
    report, _ = own(file, options={"drop_invalid": True})
    assert (report.dropped, report.written) == ({"invalid": 1}, 2)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"q,a\n", "holds no row below its header"),
        (b"q,q\n1,2\n", "has the column q twice"),
        (b"q;a\n1;2\n", r"has one column, 'q;a': .csv files are separated by commas .* not by ';'"),
        (b"q,a\n1,2,3\n", "line 2: 3 fields, and the header has 2"),
        (b"q,a\nx,1\n\ny\n", "line 4: 1 fields, and the header has 2"),
        (b'q,a\n"x,1\n', "line 2: not readable CSV"),
        (b"q,a\n\xff,1\n", "not UTF-8"),
        (b"\x1f\x8b\x08", "compressed with gzip"),
    ],
)
def test_csv_files_that_cannot_be_read(content, complaint, tmp_path):
    (tmp_path / "in.csv").write_bytes(content)
    with pytest.raises(SpoDataError, match=complaint):
        prepare(named_source("mine", "q", "a"), tmp_path / "out.parquet", origin=[str(tmp_path / "in.csv")])
    assert not (tmp_path / "out.parquet").exists()


def test_csv_with_a_byte_order_mark_and_windows_lines(own, tmp_path):
    (tmp_path / "in.csv").write_bytes(b"\xef\xbb\xbftext,gold\r\nx?,1\r\n\r\ny?,2\r\n")
    assert truths(own(tmp_path / "in.csv")[1]) == ["1", "2"]


def test_splits_and_configurations_are_named_where_there_are_several(own, tmp_path):
    folder = tmp_path / "clone"
    folder.mkdir()
    configs = ""
    for config in ("easy", "hard"):
        write_csv(folder / f"{config}.csv", [{"text": f"{config}?", "gold": "1"}])
        configs += f"- config_name: {config}\n  data_files:\n  - split: dev\n    path: {config}.csv\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    with pytest.raises(SpoDataError, match="has the configurations easy, hard: name one of them with --config"):
        own(folder)
    with pytest.raises(SpoDataError, match="name one of them with --config instead of none"):
        own(folder, options={"config": "none"})
    report, found = own(folder, options={"config": "hard"})
    assert (found[0]["extra_info"]["problem"], report.split) == ("hard?", "dev")
    splits = datasets.DatasetDict({one: datasets.Dataset.from_list(ROWS) for one in ("a", "b")})
    splits.save_to_disk(tmp_path / "saved")
    with pytest.raises(SpoDataError, match="has the splits a, b: name one of them with --split"):
        own(tmp_path / "saved")
    assert own(tmp_path / "saved", options={"split": "b"})[0].split == "b"


def test_a_hub_id_is_streamed_with_its_configuration_and_split(own, monkeypatch):
    asked = []

    def load_dataset(path, name=None, **options):
        asked.append((path, name, options))
        return datasets.Dataset.from_list(ROWS).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    report, rows = own("someone/questions", options={"config": "main", "split": "validation"})
    assert asked == [("someone/questions", "main", {"streaming": True, "split": "validation"})]
    assert (truths(rows), report.split, report.origin) == (
        [row["gold"] for row in ROWS],
        "validation",
        "someone/questions",
    )
