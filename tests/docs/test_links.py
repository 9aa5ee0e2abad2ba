"""Links between pages, and the index of docs/."""

from __future__ import annotations

import pytest

from tests.docs.pages import DOCS, PAGES, REPOSITORY, broken_links, links, name_of


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    assert list(broken_links(page, page.read_text())) == []


def test_the_index_lists_every_page_once():
    listed = [target for target in links((DOCS / "README.md").read_text()) if not target.startswith("..")]
    assert sorted(listed) == sorted(page.name for page in DOCS.glob("*.md") if page.name != "README.md")


def test_the_readme_leads_to_every_how_to():
    targets = set(links((REPOSITORY / "README.md").read_text()))
    assert {f"docs/{page.name}" for page in DOCS.glob("howto-*.md")} <= targets
