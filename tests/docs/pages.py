"""What stands in a Markdown page: blocks, inline code, links and anchors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "CHANGELOG.md"]
PAGES += [*sorted(DOCS.glob("*.md")), *sorted((REPOSITORY / "patches").glob("*.md"))]
PAGES += sorted((REPOSITORY / "recipes").rglob("README.md"))

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```[ \t]*$", re.MULTILINE | re.DOTALL
)
_FILE = re.compile(r"# file: (\S+)\n")
_NOT_RUN = re.compile(r"# not run: \S")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language ("" where none is named) and its text."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name of the file that the block is, if it is one."""
        found = _FILE.match(self.text)
        return found and found.group(1)

    @property
    def is_run(self) -> bool:
        """Whether the block does not say that it is not run."""
        return _NOT_RUN.match(self.text) is None


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def blocks(text: str, language: str | None = None) -> list[Block]:
    """The fenced blocks of a page, of one language or all."""
    found = [Block(match["info"].strip().partition(" ")[0], match["body"]) for match in _FENCE.finditer(text)]
    return [block for block in found if language in (None, block.language)]


def scripts(text: str) -> list[str]:
    """The shell scripts of a page: its bash blocks, and indented blocks that begin with a command (not with output)."""
    indented = re.findall(r"(?:^|\n\n)((?: {4}[^\n]*(?:\n|$))+)", _FENCE.sub("", text))
    plain = [re.sub(r"^ {4}", "", one, flags=re.MULTILINE) for one in indented]
    begins = re.compile(r"([A-Z_]+=\S+ )*(python3? -m |spo-verl )")
    return [*(block.text for block in blocks(text, "bash")), *(one for one in plain if begins.match(one))]


def prose(text: str) -> str:
    """The page without its fenced and indented blocks."""
    kept = []
    for line in _FENCE.sub("", text).splitlines():
        kept.append("" if re.match(r"( {4}|\t)(?! *([-*+]|\d+\.) )", line) else line)
    return "\n".join(kept)


def inline_code(text: str) -> list[str]:
    """The inline code of a page's prose."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(text))


def links(text: str) -> list[str]:
    """The targets of the links and pictures in a page's prose."""
    return re.findall(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)", re.sub(r"`[^`\n]*`", "`", prose(text)))


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as the usual renderers make them."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", _FENCE.sub("", text), re.MULTILINE):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.add(slug if not seen[slug] else f"{slug}-{seen[slug]}")
        seen[slug] += 1
    return found


def broken_links(page: Path, text: str) -> Iterator[str]:
    """Yield each relative link that leads nowhere, with the reason."""
    for target in links(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists():
            yield f"{target}: there is no {name}"
        elif anchor and anchor not in anchors(text if file == page else file.read_text()):
            yield f"{target}: no such heading"


def table_rows(text: str, *header: str) -> list[list[str]]:
    """The cells of the table with this header."""
    lines = iter(text.splitlines())
    for line in lines:
        if _cells(line) == list(header):
            next(lines)
            rows = []
            for row in lines:
                if not row.startswith("|"):
                    break
                rows.append(_cells(row))
            return rows
    raise AssertionError(f"there is no table with the header {header}")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
