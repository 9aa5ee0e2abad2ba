"""Reading verl's validation dumps."""

import json
import uuid

import numpy as np
import pytest

from spo_verl.config import RewardConfig
from spo_verl.data import dataset_keys
from spo_verl.data.values import from_validation_dump
from spo_verl.errors import SpoRewardError, SpoValuesError
from tests.data.rows import by_slot, row, table


def chatml(question, system=None):
    """The rendered prompt as verl decodes it: special tokens are left out."""
    return (f"system\n{system}\n" if system else "") + f"user\n{question}\nassistant\n"


def line(rendered, truth, score, *, step=0, **more):
    return {"input": rendered, "output": "...", "gts": truth, "score": score, "step": step} | more


@pytest.fixture
def dump(tmp_path):
    def write(*lines, name="0.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines))
        return path

    return write


DATASET = table(row("What is 1 + 1?", "2"), row("What is 2 + 2?", "4"), row("What is 4 - 2?", "2"))


def test_the_file_that_verl_writes_is_read(tmp_path):
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    # As verl 0.9.1 calls it: uids are those of the prompts here, not of the session.
    inputs = [chatml("What is 1 + 1?"), chatml("What is 1 + 1?"), chatml("What is 4 - 2?")]
    extra = {"acc": [True, np.False_, np.True_], "reward": [1.0, -1.0, 1.0], "uid": ["a_0_0", "a_1_0", "b_0_0"]}
    scores = [1.0, -1.0, np.float32(1.0)]
    PPOTrainer._write_generations(inputs, ["..."] * 3, ["2"] * 3, scores, extra, str(tmp_path), 0)
    expected = [(1.0, 2), None, (1.0, 1)]
    for reward in (RewardConfig(key="acc"), RewardConfig(low=-1, high=1), RewardConfig(key="reward", low=-1, high=1)):
        values, report = from_validation_dump(tmp_path / "0.jsonl", DATASET, reward=reward)
        assert by_slot(values, dataset_keys(DATASET)) == expected
        assert report.unmatched_row_U.tolist() == [1]
    assert values.source[0]["steps"] == ["0"]


def test_question_and_ground_truth_must_both_fit(dump):
    path = dump(
        line(chatml("What is 1 + 1?"), "2", 1),
        line(chatml("What is 1 + 1?"), "3", 1),
        line(chatml("What is 9 + 9?"), "2", 1),
    )
    values, report = from_validation_dump(path, DATASET)
    assert by_slot(values, dataset_keys(DATASET)) == [(1.0, 1), None, None]
    assert report.unmatched_entries == (chatml("What is 1 + 1?"), chatml("What is 9 + 9?"))
    assert "2 rendered prompts of no prompt" in str(report)


@pytest.mark.parametrize(
    "rendered",
    [
        "system\n\nBe brief.user\n\nWhat is 1 + 1?assistant\n\n",  # headers glued to contents
        "What is 1+1?",  # blanks before punctuation removed in decoding
        "Be brief. \t[INST]  What is\n1 + 1? [/INST]",
    ],
)
def test_templates_and_white_space_do_not_matter(dump, rendered):
    values, _ = from_validation_dump(dump(line(rendered, "2", 1)), DATASET)
    assert by_slot(values, dataset_keys(DATASET))[0] == (1.0, 1)


def test_composed_and_decomposed_characters_are_one(dump):
    dataset = table(row("Wie weit ist es nach Ko\u0308ln?", "3"))
    values, _ = from_validation_dump(dump(line(chatml("Wie weit ist es nach K\u00f6ln?"), "3", 1)), dataset)
    assert by_slot(values, dataset_keys(dataset)) == [(1.0, 1)]


def test_the_longest_of_several_contained_questions_is_meant(dump):
    dataset = table(row("1 + 1", "2"), row("What is 1 + 1?", "2"), row("Tell me: What is 1 + 1? Quick!", "2"))
    path = dump(line(chatml("What is 1 + 1?"), "2", 1), line(chatml("1 + 1"), "2", 0))
    values, report = from_validation_dump(path, dataset)
    assert by_slot(values, dataset_keys(dataset)) == [(0.0, 1), (1.0, 1), None]
    assert report.shared_entries == ()


def test_two_different_questions_of_one_length_in_one_input_are_not_guessed_at(dump):
    dataset = table(row("ab", "2"), row("cd", "2"), row("e", "2"))
    values, report = from_validation_dump(dump(line("ab cd", "2", 1), line("e", "2", 1)), dataset)
    assert by_slot(values, dataset_keys(dataset)) == [None, None, (1.0, 1)]
    assert report.unmatched_entries == ("ab cd",)


def test_all_messages_take_part_but_the_models_own(dump):
    def talk(last):
        turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "<think>hm</think> Hello"), ("user", last)]
        return [{"role": role, "content": content} for role, content in turns]

    dataset = table(row(talk("What is 1 + 1?"), "2"), row("What is 1 + 1?", "2"))
    whole = "system\nBe brief.\nuser\nHi\nassistant\nHello\nuser\nWhat is 1 + 1?\nassistant\n"
    values, _ = from_validation_dump(dump(line(whole, "2", 1), line(chatml("What is 1 + 1?"), "2", 0)), dataset)
    assert by_slot(values, dataset_keys(dataset)) == [(1.0, 1), (0.0, 1)]


def test_messages_in_another_order_do_not_fit(dump):
    def asked(*questions):
        return [{"role": "user", "content": question} for question in questions]

    dataset = table(row(asked("first", "second"), "2"), row(asked("second", "first"), "2"))
    values, _ = from_validation_dump(dump(line("user\nsecond\nuser\nfirst\nassistant\n", "2", 1)), dataset)
    assert by_slot(values, dataset_keys(dataset)) == [None, (1.0, 1)]


def test_media_marks_are_not_looked_for(dump):
    dataset = table(row("<image>\nHow many cats in <image>?", "2", images=["a.png", "b.png"]))
    values, _ = from_validation_dump(dump(line(chatml("\nHow many cats in ?"), "2", 1)), dataset)
    assert by_slot(values, dataset_keys(dataset)) == [(1.0, 1)]


def test_prompts_that_differ_in_media_only_share_their_trials(dump):
    dataset = table(*(row("<image>How many?", "2", images=[name]) for name in ("a.png", "b.png")))
    values, report = from_validation_dump(dump(line(chatml("How many?"), "2", 1)), dataset)
    assert by_slot(values, dataset_keys(dataset)) == [(1.0, 1), (1.0, 1)]
    assert report.shared_entries == (chatml("How many?"),)


def test_ground_truths_of_any_kind_are_compared_by_content(dump):
    dataset = table(row("a", ["1", "2"]), row("a", ["1"]))
    values, _ = from_validation_dump(dump(line("a", ["1", "2"], 1)), dataset)
    assert by_slot(values, dataset_keys(dataset)) == [(1.0, 1), None]
    without = table(row("a") | {"reward_model": None}, row("b") | {"reward_model": None})
    values, _ = from_validation_dump(dump(line("b", None, 1)), without)
    assert by_slot(values, dataset_keys(without)) == [None, (1.0, 1)]


def test_a_session_of_several_outputs_is_one_trial(dump):
    question, u = chatml("What is 1 + 1?"), str(uuid.uuid5(uuid.NAMESPACE_OID, "u"))
    first = dump(line(question, "2", 1, uid=f"{u}_0_0"), line(question, "2", 1, uid=f"{u}_0_1"), line(question, "2", 0))
    second = dump(line(question, "2", 0, uid=f"{u}_1_0"), line(question, "2", 0), name="more.jsonl")
    values, report = from_validation_dump([first, second], DATASET)
    # Sessions 0 and 1, and two lines that name none.
    assert by_slot(values, dataset_keys(DATASET))[0] == (1.0, 4)
    assert "1 lines repeat a session" in str(report)
    assert "5 lines read: 4 trials, 1 set aside" in str(report)
    assert values.source[0]["files"] == ["0.jsonl", "more.jsonl"]


@pytest.mark.parametrize(
    "uids",
    [
        [f"aime_2024_{n}" for n in range(6)],
        ["a_0_0"] * 6,
        list(range(6)),
        [None] * 6,
        [f"{uuid.UUID(int=7)}_0"] * 6,
        [f"{uuid.UUID(int=7)}_0_0_0"] * 6,
        [f"{uuid.UUID(int=7).hex}_0_0"] * 6,
        [{"uid": 1}] * 6,
    ],
    ids=str,
)
def test_a_uid_that_is_not_verls_drops_no_line(dump, uids):
    question = chatml("What is 1 + 1?")
    values, report = from_validation_dump(
        dump(*(line(question, "2", number % 2, uid=uid) for number, uid in enumerate(uids))), DATASET
    )
    assert by_slot(values, dataset_keys(DATASET))[0] == (3.0, 6)
    assert "6 lines read: 6 trials, 0 set aside" in str(report)


def test_verls_uid_outside_of_a_whole_dump_line_drops_no_line(dump):
    """The form of the row counts, not a column alone."""
    whole = line(chatml("What is 1 + 1?"), "2", 1, uid=f"{uuid.UUID(int=7)}_0_0")
    for absent in ("output", "step"):
        lines = [{name: value for name, value in whole.items() if name != absent}] * 3
        values, _ = from_validation_dump(dump(*lines), DATASET)
        assert by_slot(values, dataset_keys(DATASET))[0] == (3.0, 3)


def test_dumps_of_several_steps_are_refused_unless_allowed(dump):
    question = chatml("What is 1 + 1?")
    files = [dump(line(question, "2", 1)), dump(line(question, "2", 0, step=10), name="10.jsonl")]
    with pytest.raises(SpoValuesError, match=r"2 training steps \(0: 1 trials, 10: 1 trials\)"):
        from_validation_dump(files, DATASET)
    values, report = from_validation_dump(files, DATASET, mixed_steps=True)
    assert by_slot(values, dataset_keys(DATASET))[0] == (1.0, 2)
    assert "several training steps were added up" in str(report)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ('{"input": "a", "gts"', SpoValuesError, "line 2: not readable JSON"),
        ('{"text": "a"}', SpoValuesError, "line 2: no text under 'input'"),
        ('{"input": "a", "gts": "1"}', SpoRewardError, "line 2 has no 'score'"),
        ('{"input": "a", "gts": "1", "score": 2}', SpoRewardError, "line 2 has 'score' = 2, outside"),
        ('{"input": "a", "gts": "1", "score": NaN}', SpoRewardError, "line 2 has 'score' = nan, outside"),
    ],
)
def test_bad_lines_are_named(dump, content, error, message):
    path = dump(line(chatml("What is 1 + 1?"), "2", 1))
    path.write_text(path.read_text() + content + "\n")
    with pytest.raises(error, match=rf"0\.jsonl, {message}"):
        from_validation_dump(path, DATASET)


def test_empty_missing_and_foreign_dumps_are_refused(dump, tmp_path):
    with pytest.raises(SpoValuesError, match="there is no line"):
        from_validation_dump(dump(), DATASET)
    with pytest.raises(SpoValuesError, match="is a folder"):
        from_validation_dump(tmp_path, DATASET)
    with pytest.raises(SpoValuesError, match="nothing matched"):
        from_validation_dump(dump(line("other", "2", 1)), DATASET)
