"""Rows for a rehearsal, and what is said without them."""

import pytest

from spo_verl.errors import SpoConfigError
from spo_verl.rehearsal.rows import take_rows
from tests.recipes.helpers import sums, write


def test_the_first_different_prompts_of_all_files(tmp_path):
    one = write(sums(3) + sums(3), tmp_path / "one.parquet")
    other = write(sums(6), tmp_path / "other.parquet")
    rows = take_rows([one, other], train=4, held_out=2)
    assert rows.train == sums(6)[:4]
    assert rows.held_out == sums(6)[4:]
    assert len(rows.prompts()) == 6


def test_an_absent_file_is_answered_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(SpoConfigError, match=r"nothing\.parquet is not there.*spo-verl data prepare.*--data FILE"):
        take_rows([tmp_path / "nothing.parquet"], train=1, held_out=1)


def test_too_few_prompts_are_counted(tmp_path):
    with pytest.raises(SpoConfigError, match="needs 9 different prompts; 5 are in"):
        take_rows([write(sums(5), tmp_path / "few.parquet")], train=8, held_out=1)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.parquet").write_text("rows")
    with pytest.raises(SpoConfigError, match="cannot be read as Parquet"):
        take_rows([tmp_path / "text.parquet"], train=1, held_out=1)
    bare = write([{"prompt": "x"}], tmp_path / "bare.parquet")
    with pytest.raises(SpoConfigError, match="has no column data_source, reward_model"):
        take_rows([bare], train=1, held_out=1)


@pytest.mark.parametrize("name", ["images", "videos", "audios"])
def test_rows_with_media_are_refused(tmp_path, name):
    rows = [{**row, name: [{"path": "a"}]} for row in sums(4)]
    with pytest.raises(SpoConfigError, match=f"row 0: it has {name}.*reads text only"):
        take_rows([write(rows, tmp_path / "rows.parquet")], train=2, held_out=1)
    empty = [{**row, name: None} for row in sums(4)]
    assert len(take_rows([write(empty, tmp_path / "none.parquet")], train=2, held_out=1).train) == 2
