"""Rows to rollouts: several outputs of a session, several sessions of a prompt, padding, odd keys."""

import numpy as np
import pytest

from spo_verl.errors import SpoStateError
from spo_verl.training.sessions import read_sessions


def test_one_output_per_session():
    sessions = read_sessions(["a_0_0", "b_0_0"], [{}, {}])
    assert sessions.uid_B == ("a", "b")
    assert sessions.session_R.tolist() == [0, 1]
    assert sessions.uid_S == ["a", "b"]


def test_outputs_sessions_and_padding_in_any_order():
    # row:      0        1         2        3        4          5        6
    keys = ["b_1_0", "pad9_0_0", "a_0_2", "a_0_0", "b_0_0", "pad9_1_0", "a_0_1"]
    tags = [{}, {"is_padding": True}, {}, {"is_padding": False}, {}, {"is_padding": True}, {}]
    sessions = read_sessions(keys, tags)
    assert sessions.uid_B == ("b", "a")  # order of first appearance
    # sessions by first row: b/1 (row 0), a/0 (row 2), b/0 (row 4)
    assert sessions.prompt_S.tolist() == [0, 1, 0]
    assert sessions.session_S.tolist() == [1, 0, 0]
    assert sessions.session_R.tolist() == [0, -1, 1, 1, 2, -1, 1]
    assert sessions.first_row_S.tolist() == [0, 3, 4]  # a/0: lowest output index is row 3
    assert sessions.final_row_S.tolist() == [0, 2, 4]  # a/0: highest output index is row 2
    # the stored response is the first output of the lowest session: b -> session 0 (row 4), a -> row 3
    assert sessions.first_row_B().tolist() == [4, 3]


def test_uids_may_contain_underscores():
    sessions = read_sessions(["run_7_x_0_0"], [{}])
    assert sessions.uid_B == ("run_7_x",)


def test_a_batch_of_padding_only_has_no_session():
    sessions = read_sessions(["pad_0_0"], [{"is_padding": True}])
    assert len(sessions) == 0
    assert sessions.session_R.tolist() == [-1]
    assert sessions.first_row_B().dtype == np.int64


@pytest.mark.parametrize("key", ["a", "a_0", "a_x_0", "a_0_y"])
def test_other_key_forms_are_refused(key):
    with pytest.raises(SpoStateError, match=r"<uid>_<session>_<index>"):
        read_sessions([key], [{}])
