"""The site of mkdocs.yml: every page of docs/ is in its navigation, and what its hooks do. ./test.sh builds it."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from types import SimpleNamespace

import pytest
from markdown import markdown
from mkdocs.config import load_config
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import get_files

from tests.docs.pages import DOCS, REPOSITORY

PAGE = SimpleNamespace(file=SimpleNamespace(src_uri="docs/some.md"))


@pytest.fixture(scope="module")
def config():
    return load_config(str(REPOSITORY / "mkdocs.yml"))


@pytest.fixture(scope="module")
def hooks():
    spec = spec_from_file_location("site_hooks", DOCS / "site_hooks.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages_in(entry) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    entries = entry.values() if isinstance(entry, dict) else entry
    return [page for one in entries for page in pages_in(one)]


def test_the_navigation_has_every_page_once(config):
    listed = pages_in(config["nav"])
    assert len(listed) == len(set(listed))
    assert {f"docs/{page.name}" for page in DOCS.glob("*.md")} <= set(listed)
    assert {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "recipes").rglob("README.md")} <= {
        *listed
    }


def test_nothing_of_the_theme_comes_from_elsewhere(config):
    assert config["theme"]["font"] is False
    assert "material/search" in config["plugins"]
    assert "material/offline" not in config["plugins"]  # its pages load a script from elsewhere


def test_the_pages_keep_their_paths_and_the_theme_its_files(hooks, config):
    files = get_files(config)
    files.add_files_from_theme(config.theme.get_env(), config)
    style = next(file.src_uri for file in files if file.src_uri.endswith(".css"))
    found = {file.src_uri for file in hooks.on_files(files, config)}
    assert {style, "README.md", "docs/faq.md", "patches/README.md", "docs/figures/quickstart.png"} <= found
    assert "faq.md" not in found


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("Words:\n- one\n  more\n- two\n\nEnd", "<p>Words:</p><ul><li>one more</li><li>two</li></ul><p>End</p>"),
        ("1. one\n\n       code\n\n   more", "<ol><li><p>one</p><pre><code>code</code></pre><p>more</p></li></ol>"),
        ("1. a\n\n   b\n2. c\n", "<ol><li><p>a</p><p>b</p></li><li><p>c</p></li></ol>"),
        ("- one\n  - inner\n- two", "<ul><li>one<ul><li>inner</li></ul></li><li>two</li></ul>"),
        ("A line\n\n    code\n    - of it", "<p>A line</p><pre><code>code- of it</code></pre>"),
        ("```\nkept:\n- as it is\n```", None),
    ],
)
def test_lists_are_those_of_the_usual_hosts(hooks, text, html):
    found = hooks.on_page_markdown(text, page=PAGE, config=None, files=None)
    if html is None:
        assert found == text
    else:
        assert re.sub(r"\s*\n\s*", "", markdown(found.replace("one\n    more", "one more"))) == html


def test_roles_of_sphinx_become_names(hooks):
    html = "<p>see :class:<code>~spo_verl.tracker.Tracker</code> and :meth:<code>create</code></p>"
    assert hooks.on_page_content(html, page=PAGE, config=None, files=None) == (
        "<p>see <code>tracker.Tracker</code> and <code>create</code></p>"
    )


@pytest.mark.parametrize(
    "tag",
    [
        '<script src="https://host/a.js">',
        '<link rel="stylesheet" href="//host/a.css">',
        '<img alt="" src="http://host/a.png">',
    ],
)
def test_a_page_may_not_load_from_elsewhere(hooks, tag):
    with pytest.raises(PluginError, match=r"docs/some\.md loads .*host"):
        hooks.on_post_page(f"<p>{tag}</p>", page=PAGE, config=None)
    page = '<p><a href="https://host">link</a><img src="a.png"></p>'
    assert hooks.on_post_page(page, page=PAGE, config=None) == page
