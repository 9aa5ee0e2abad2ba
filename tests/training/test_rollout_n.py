"""The number of rollouts by a prompt's value."""

import numpy as np
import pytest

from spo_verl.config import parse
from spo_verl.errors import SpoConfigError
from spo_verl.training.rollout_n import choose, load_chooser

EXAMPLE = "spo_verl.training.rollout_n:more_where_uncertain"


def test_the_example_asks_for_more_where_the_value_is_uncertain():
    n_B = choose(load_chooser(EXAMPLE), np.array([0.1, 0.2, 0.5, 0.8, 0.95]), np.ones(5))
    assert n_B.tolist() == [1, 4, 4, 4, 1]
    assert n_B.dtype == np.int64


@pytest.mark.parametrize(
    "name", ["nowhere:f", "spo_verl.training.rollout_n:nothing", "spo_verl.training.rollout_n", "os:sep", ":"]
)
def test_what_cannot_be_loaded_is_said_with_an_example(name):
    with pytest.raises(SpoConfigError, match=r"cannot be loaded .*module:function"):
        load_chooser(name)


@pytest.mark.parametrize("answer", [[1, 2], [1.0, 1.0, 1.0], [0, 1, 1], 4])
def test_a_wrong_answer_is_refused(answer):
    with pytest.raises(SpoConfigError, match="one whole number from 1 on per prompt"):
        choose(lambda value_B, n_eff_B: np.asarray(answer), np.full(3, 0.5), np.ones(3))


def test_it_needs_bspo():
    spo, problems = parse({"rollout_n": EXAMPLE})
    assert spo is not None
    assert [problem for problem in problems if "spo.bspo=True" in problem]
    assert parse({"rollout_n": EXAMPLE, "bspo": True})[1] == []
