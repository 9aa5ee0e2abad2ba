"""What a page holds, read as its script reads it."""

import base64
import gzip
import json
import re

import numpy as np

BLOCK = re.compile(r'<script type="text/plain" id="([a-z0-9-]+)">([A-Za-z0-9+/=]*)</script>')


def blocks(page: str) -> dict[str, bytes]:
    """Every block of data by its id."""
    return {name: gzip.decompress(base64.b64decode(text)) for name, text in BLOCK.findall(page)}


def read_json(found: dict[str, bytes], name: str):
    return json.loads(found[name])


def history(found: dict[str, bytes], run: int, place: int):
    """The rollouts of a prompt as the page shows them; None where the page has no history of it."""
    book = read_json(found, "book")
    draws = read_json(found, f"run-{run}")["prompts"]["draws"]
    piece = place // book["piece"]
    if f"history-{run}-{piece}" not in found:
        return None
    first = piece * book["piece"]
    table = np.frombuffer(found[f"history-{run}-{piece}"], "<i4").reshape(len(book["history"]), -1)
    start = sum(draws[first:place])
    rows = table[:, start : start + draws[place]].T.tolist()
    names = [name for name, _ in book["history"]]
    scales = [scale for _, scale in book["history"]]
    return [
        {name: None if number == book["missing"] else number / scale
         for name, scale, number in zip(names, scales, row, strict=True)}
        for row in rows
    ]  # fmt: skip
