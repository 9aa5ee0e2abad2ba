"""The tables of the page are those of the ledgers, and no case of them had a problem that is not told."""

from __future__ import annotations

from tests.crash import page, plan
from tests.crash.ledger import read_launches, read_processes


def test_the_page_has_the_tables_of_the_ledgers():
    assert page.PAGE.read_text().endswith(page.tables()), "python -m tests.crash.page"


def test_the_ledger_is_of_the_campaign_of_the_seed():
    cases = read_processes(page.PROCESS)
    assert len(cases) == len({(case.run, case.case) for case in cases})
    for case in cases:
        assert case.kind == plan.run(0, case.run)[1][case.case].kind
    assert set(page.MEANING) == set(plan.WEIGHTS)


def test_launches_are_listed_once():
    cases = read_launches(page.REAL)
    assert len(cases) == len({(case.mode, case.seed, case.case) for case in cases})
