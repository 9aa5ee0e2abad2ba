"""Hooks of mkdocs.yml: the pages of the repository, under their own paths, so that links work on both sides."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = ("docs", "patches", "recipes")
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "RELEASING.md", "CHANGELOG.md", "LICENSE")
ALSO = (".png", ".ipynb", ".json", ".yaml", ".patch", ".Dockerfile", ".sbatch", ".sh")
"""Kinds of files, next to pages, that pages link or show."""

_ITEM = re.compile(r"([-*+] |\d+\. )\S")
_OUTSIDE = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^>]*>")
_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):<code>~?(.*?)</code>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the site: a page ``docs/x.md`` of the repository is ``docs/x.html`` there."""
    found = [REPOSITORY / name for name in PAGES]
    for folder in FOLDERS:
        found += sorted(path for path in (REPOSITORY / folder).rglob("*") if path.suffix in (".md", *ALSO))
    kept = [file for file in files if file.src_dir != config.docs_dir]  # of plugins and of the theme
    names = [path.relative_to(REPOSITORY).as_posix() for path in found]
    names = [name for name in names if "/." not in name]
    return Files([*kept, *(File(name, str(REPOSITORY), config.site_dir, config.use_directory_urls) for name in names)])


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lists as the usual hosts read them.

    Python-Markdown wants an empty line before a list, and four spaces before what belongs to an item.
    """
    lines: list[str] = []
    width = 0  # of the marker of the item that a line belongs to; 0 outside lists
    fenced = loose = False  # loose: the item has had an empty line
    for line in markdown.split("\n"):
        indent = len(line) - len(line.lstrip(" "))
        item = None if fenced else _ITEM.match(line)
        if item:
            if (loose or not width) and lines and lines[-1].strip():
                lines.append("")
            width, loose = len(item[1]), False
        elif line.strip() and indent < width:
            width = 0
        fenced ^= line.lstrip().startswith("```")
        loose = loose or not line.strip()
        belongs = width and line.strip() and not item
        lines.append(" " * (4 - width) + line if belongs else line)
    return "\n".join(lines)


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Sphinx's roles in docstrings are shown as the names that they mark."""
    return _ROLE.sub(lambda match: f"<code>{match[1].removeprefix('spo_verl.')}</code>", html)


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Nothing that a page shows is loaded from elsewhere."""
    if found := _OUTSIDE.search(output):
        raise PluginError(f"{page.file.src_uri} loads {found[0]} from elsewhere: put the file into the repository.")
    return output
