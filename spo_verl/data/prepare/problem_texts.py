"""Problems as texts: instructions of others taken away, the language rule, and when two problems are the same."""

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence

HASH_BYTES = 16

# DAPO's prompts, and those of the AIME 2024 of the same authors, wrap each problem into these two sentences.
_DAPO_BEFORE = re.compile(
    r"\A\s*Solve the following math problem step by step\.[^\n]*?is the answer to the problem\.\s*", re.IGNORECASE
)
_DAPO_AFTER = re.compile(
    r"\s*Remember to put your answer on its own line after [\"“]Answer:[\"”]\.?\s*\Z", re.IGNORECASE
)

# Ideographs, kana, bopomofo, Hangul, and the punctuation and full-width forms that are written between them.
_EAST_ASIAN = re.compile(
    "[\u1100-\u11ff\u3001-\u303f\u3040-\u30ff\u3100-\u318f\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff01-\uff60\U00020000-\U0003ffff]"
)

# Ways of setting the same formula that say nothing about the problem.
_SPACING = re.compile(r"\\(?:left|right|displaystyle|textstyle|quad|qquad|limits|bigg?|Bigg?)(?![A-Za-z])|\\[,;:!> ]")
_FRACTION = re.compile(r"\\[dt]frac(?![A-Za-z])")
_INSIGNIFICANT = re.compile(r"\\[()\[\]]|[\s$.,;:?!'\"`’‘“”{}~]")


def without_instruction(content: str) -> tuple[str, bool]:
    """A prompt of the DAPO releases without their instruction before and after the problem.

    Returns:
        The text between them, stripped, and whether any of the two sentences was there.
    """
    problem = _DAPO_AFTER.sub("", _DAPO_BEFORE.sub("", content, count=1), count=1)
    return problem.strip(), problem != content


def is_english(problem: str) -> bool:
    """Whether a problem holds no East Asian character.

    The releases have no column for the language, and the problems are English or Chinese. Formulas, Greek letters and
    accented names therefore do not count against a problem; one ideograph or full-width comma does.
    """
    return _EAST_ASIAN.search(problem) is None


def problem_hash(problem: str) -> bytes:
    """16 bytes, equal for problems that differ in white space or in the composition of characters only."""
    return _hash(" ".join(unicodedata.normalize("NFC", problem).split()))


def problem_key(before: Sequence[Mapping[str, str]], text: str) -> bytes:
    """What makes two problems the same: the text, white space aside, and the messages before it."""
    said = [f"{message['role']}\0{message['content']}" for message in before]
    return problem_hash("\0".join([*said, text]))


def overlap_hash(problem: str) -> bytes:
    """16 bytes, equal for problems that differ in typesetting only.

    Besides white space, these do not count: case, compatibility forms (NFKC), ``$`` and ``\\( \\)`` around formulas,
    braces, commands for spacing and size, ``\\dfrac`` for ``\\frac``, and the punctuation ``. , ; : ? !`` and quotes.
    Operators and all other symbols do.
    """
    plain = _FRACTION.sub(r"\\frac", _SPACING.sub("", unicodedata.normalize("NFKC", problem)))
    return _hash(_INSIGNIFICANT.sub("", plain).casefold())


def squeezed(text: str) -> str:
    """The text without white space."""
    return "".join(text.split())


def text_hash(text: str) -> bytes:
    """16 bytes of a text as it is."""
    return _hash(text)


def excerpt(text: str, length: int = 80) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 3] + "..."


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest()
