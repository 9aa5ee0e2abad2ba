r"""An answer as tokens: what layout says nothing about is gone, and nothing that was apart is joined.

White space of every kind is a mark between two tokens (`Token.space`), so ``1 2`` stays two numbers. Only what is
written as a thousands separator joins digits: ``1,234``, ``1{,}234``, ``1,\!234``, ``1\,234`` and a thin space.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from spo_verl.agent.grading.units import SCALES

MAX_EXPRESSION = 500
"""Characters up to which an answer is read; a longer one is right only if it is written exactly alike."""

MAX_DEPTH = 40


class Unreadable(ValueError):
    """The text is no expression that this package reads."""


class Unbalanced(Unreadable):
    """Braces that do not match."""


class Token(NamedTuple):
    r"""One token.

    Attributes:
        kind: ``number`` (digits, perhaps with a point), ``power`` (``6.02e23``), ``letter``, ``word`` (letters that
            are no product of variables), ``command`` (``\frac``), ``sign`` (any other character), ``row`` (``\\``).
        text: as it is written; an ordinary word in small letters.
        space: what precedes it: "", "thin" or "wide".
    """

    kind: str
    text: str
    space: str = ""


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


_INVISIBLE = dict.fromkeys([0x200B, 0x200C, 0x200D, 0x200E, 0x200F, 0x2060, 0x2061, 0x2062, 0x2063, 0xFEFF, 0xAD])
_ALIKE: dict[str, str] = {
    **dict.fromkeys("−–—﹣－‐‑", "-"),
    **dict.fromkeys("×✕⨯", r"\times "),
    **dict.fromkeys("·⋅∙•", r"\cdot "),
    **dict.fromkeys("÷", r"\div "),
    **dict.fromkeys("⁄∕", "/"),
    **dict.fromkeys("´ʹ′’", "'"),
    **dict.fromkeys("\u2009\u202f\u200a\u2006", r"\,"),
    "⟨": "<",
    "⟩": ">",
    "∣": "|",
    "，": ", ",
    "、": ", ",
    "…": r"\ldots ",
    "√": r"\sqrt ",
    "∛": r"\sqrt[3] ",
    "∜": r"\sqrt[4] ",
    "π": r"\pi ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "⩽": r"\le ",
    "≥": r"\ge ",
    "⩾": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "≅": r"\approx ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "Ø": r"\emptyset ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "°": r"^\circ ",
    "º": r"^\circ ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "∠": r"\angle ",
}
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "0123456789+-ni", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))

_TEXT = r"text|textbf|textit|textrm|textsf|textnormal|mbox|mathrm|mathbf|mathit|mathsf|operatorname"
_MATH_FONTS = {"mathrm", "mathbf", "mathit", "mathsf", "operatorname"}
_LAYOUT = words(
    "left right middle displaystyle textstyle scriptstyle limits nolimits big Big bigg Bigg bigl bigr Bigl Bigr biggl "
    "biggr Biggl Biggr mathstrut strut null relax boldsymbol mathopen mathclose rm bf"
)
_WIDE = {"quad", "qquad", "enspace", "enskip", "space", "nobreakspace", "medspace", "thickspace", "hfill", "newline"}
_LONG_SPACE = re.compile(
    r"\\(?:[hv]space\*?|[hv]?phantom|mspace)\s*\{[^{}]*\}|\\(?:hskip|kern|mkern|mskip)\s*-?[\d.]*\s*[a-z]{2}"
)
_SAME = {
    "dfrac": "frac",
    "tfrac": "frac",
    "cfrac": "frac",
    "nicefrac": "frac",
    "dbinom": "binom",
    "tbinom": "binom",
    "leq": "le",
    "leqslant": "le",
    "geq": "ge",
    "geqslant": "ge",
    "neq": "ne",
    "lt": "<",
    "gt": ">",
    "varnothing": "emptyset",
    "ast": "cdot",
    "thickapprox": "approx",
    "approxeq": "approx",
    "simeq": "approx",
    "lvert": "|",
    "rvert": "|",
    "vert": "|",
    "lbrace": "\\{",
    "rbrace": "\\}",
    "lbrack": "[",
    "rbrack": "]",
    "colon": ":",
    "degree": "degree",
    "dots": "ldots",
    "cdots": "ldots",
    "mathdollar": "\\$",
    "textdollar": "\\$",
    "euro": "€",
    "pounds": "£",
    "arcsin": "arcsin",
    "bar": "overline",
    "imath": "i",
}
_PLAIN = {"sqrt", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "arcsin", "arccos", "arctan", "pi"}
_INFIX = {"\\over": "\\frac", "\\choose": "\\binom"}
_PLAIN_INFINITY = {"inf", "infty", "infinity", "Infinity", "oo"}
_SHORT_WORDS = words(
    "or and of to is no not if by up at cm km mm kg mg ml ft lb lbs yd oz hr hrs min sec mi am pm th st nd rd kw us in "
    "it on an as be so"
)
_PRODUCTS = re.compile(r"[xyz]+|abc|abcd|bcd|acd|abd|mnp|pqr|abx|[xyzt]{3}|rst|uvw")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")
_EXPONENT = re.compile(r"[eE][+-]?[0-9]{1,6}(?![0-9A-Za-z.^_{])")
_LETTERS = re.compile(r"[A-Za-z]+")
_GREEK = re.compile(r"GREEK (SMALL|CAPITAL) LETTER ([A-Z]+)")
_MEGA = {"Mm", "Mg", "Ml"}
"""What a capital at the beginning changes."""

_ANY_CASE = SCALES.keys() | words(
    "yes no true false none all both neither never always even odd positive negative undefined infinite impossible "
    "real solution solutions percent am pm and or not of"
)
"""Words that are the same in capitals. Other capitals are names and units: DEF is not def, MW is not mW."""
_MERIDIEM = re.compile(r"\b([ap])\.?\s*m\b\.?", re.IGNORECASE)

_PLAIN_MERIDIEM = re.compile(r"(?<=[0-9] )([ap])\.\s?m\.", re.IGNORECASE)


def plain(text: str) -> str:
    """The text with the characters of other alphabets and fonts written as LaTeX or ASCII."""
    found = []
    for character in text.translate(_INVISIBLE):
        if character < "\x7f":
            found.append(character)
        elif character in _ALIKE:
            found.append(_ALIKE[character])
        elif character in _SUPERSCRIPTS or character in _SUBSCRIPTS:
            mark, table = ("^", _SUPERSCRIPTS) if character in _SUPERSCRIPTS else ("_", _SUBSCRIPTS)
            joined = found and found[-1].startswith(mark + "{") and found[-1].endswith("}")
            found[-1:] = (
                [f"{found[-1][:-1]}{table[character]}}}"] if joined else [*found[-1:], f"{mark}{{{table[character]}}}"]
            )
        elif (name := unicodedata.normalize("NFKC", character)) and "\u2044" in name and not name.endswith("\u2044"):
            over, _, under = name.partition("\u2044")
            found.append(rf" \frac{{{over}}}{{{under}}} ")
        elif greek := _GREEK.fullmatch(unicodedata.name(character, "")):
            found.append("\\" + (greek[2].lower() if greek[1] == "SMALL" else greek[2].capitalize()) + " ")
        elif unicodedata.category(character) == "Nd":
            found.append(str(unicodedata.decimal(character)))
        elif unicodedata.category(character) == "Zs":
            found.append(" ")
        elif 0xFF01 <= ord(character) <= 0xFF5E or 0x1D400 <= ord(character) <= 0x1D7FF:
            found.append(unicodedata.normalize("NFKC", character))
        else:
            found.append(character)
    return "".join(found)


def tokens(text: str) -> list[Token]:
    """The tokens of an answer, thousands separators resolved and arguments in braces.

    Raises:
        Unreadable: braces that do not match, or nesting deeper than 40.
    """
    found = _joined(_scan(plain(text), text_mode=False))
    _check_braces(found)
    return _braced(_infixed(_trimmed(found)))


def written(found: list[Token]) -> str:
    """The tokens as text: no space except where two numbers or words would grow together."""
    pieces: list[str] = []
    before = Token("sign", "")
    for token in found:
        clash = {"number", "power", "word"}
        apart = token.space and before.kind in clash and token.kind in {*clash, "letter"}
        bound = before.kind == "command" and before.text[-1:].isalpha() and token.kind in {"letter", "word"}
        pieces += [" "] if apart or bound else []
        pieces.append(token.text)
        before = token
    return "".join(pieces)


def _scan(text: str, *, text_mode: bool) -> list[Token]:
    text = (_MERIDIEM if text_mode else _PLAIN_MERIDIEM).sub(r"\1m", text)
    found: list[Token] = []
    position, space = 0, ""

    def add(kind: str, value: str) -> None:
        nonlocal space
        found.append(Token(kind, value, space))
        space = ""

    while position < len(text):
        character = text[position]
        if character.isspace() or character == "~":
            space, position = "wide", position + 1
        elif text.startswith("{,}", position):
            add("sign", "{,}")
            position += 3
        elif character == "\\":
            position, space = _command(text, position, found, space, text_mode=text_mode)
        elif match := _NUMBER.match(text, position):
            position = match.end()
            exponent = _EXPONENT.match(text, position) if not text_mode else None
            add("power" if exponent else "number", match[0] + (exponent[0] if exponent else ""))
            position = exponent.end() if exponent else position
        elif match := _LETTERS.match(text, position):
            run, position = match[0], match.end()
            after_number = bool(found) and found[-1].kind == "number"
            for kind, value in _letters(run, text_mode=text_mode, after_number=after_number):
                add(kind, value)
        elif character == "$":
            position += 1
        else:
            add("sign", character)
            position += 1
    return found


def _letters(run: str, *, text_mode: bool, after_number: bool) -> list[tuple[str, str]]:
    if text_mode:
        return [("word", _word(run))]
    if run in _PLAIN:
        return [("command", "\\" + run)]
    if run in _PLAIN_INFINITY:
        return [("command", r"\infty")]
    if run.lower() in _SHORT_WORDS and len(run) > 1 and (after_number or run.lower() in {"or", "and"}):
        return [("word", _word(run))]
    if len(run) < 3 or _PRODUCTS.fullmatch(run):
        return [("letter", letter) for letter in run]
    return [("word", _word(run))]


def _word(run: str) -> str:
    """A word in small letters, unless a capital says something."""
    ordinary = run[1:].islower() and run not in _MEGA
    return run.lower() if ordinary or run.lower() in _ANY_CASE else run


def _command(text: str, position: int, found: list[Token], space: str, *, text_mode: bool) -> tuple[int, str]:
    """Read what begins with a backslash; where the next token begins, and the space before the next token."""
    if match := _LONG_SPACE.match(text, position):
        return match.end(), "wide"
    match = re.compile(r"\\([a-zA-Z]+)\*?").match(text, position)
    if match is None:
        character = text[position + 1 : position + 2]
        after = position + 2
        if character in ",!":
            return after, space or "thin"
        if character in ";:> \n\t" or not character:
            return after, "wide"
        if character in "()[]" and not text_mode:
            return after, space
        found.append(Token("row" if character == "\\" else "sign", "\\" + character, space))
        return after, ""
    name, after = match[1], match.end()
    while after < len(text) and text[after].isspace():  # TeX skips it after a command
        after += 1
    if name in _WIDE:
        return after, "wide"
    if name == "thinspace" or name == "negthinspace":
        return after, space or "thin"
    if name in _LAYOUT:
        if name in {"left", "right"} and text.startswith(".", after):
            after += 1
        return after, space
    if re.fullmatch(_TEXT, name) and (inner := _group(text, after)) is not None:
        content, after = inner
        read = _scan(content, text_mode=True)
        if name in _MATH_FONTS and len(content.strip()) == 1 and content.strip().isalpha():
            unit = bool(found) and found[-1].kind in {"number", "power"} and content.strip() in "mgshLNJWVKAC"
            read = [Token("word" if unit else "letter", content.strip())]
        if name in _MATH_FONTS and content.strip() in _PLAIN:
            read = [Token("command", "\\" + content.strip())]
        if read:
            read[0] = read[0]._replace(
                space=read[0].space
                or space
                or ("wide" if name not in _MATH_FONTS and found and found[-1].kind == "word" else "")
            )
        found.extend(read)
        return after, "wide" if content[-1:].isspace() else ""
    name = _SAME.get(name, name)
    if name == "degree":
        found += [Token("sign", "^", space), Token("command", "\\circ")]
    else:
        kind = "letter" if name == "i" else "command" if name.isalpha() else "sign"
        found.append(Token(kind, name if kind != "command" else "\\" + name, space))
    return after, ""


def _group(text: str, position: int) -> tuple[str, int] | None:
    """The content of the braces that open at a position, and where they end."""
    while position < len(text) and text[position].isspace():
        position += 1
    if not text.startswith("{", position):
        return None
    depth = 0
    for end in range(position, len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if depth == 0:
            return text[position + 1 : end], end + 1
    return None


_OPENING, _CLOSING = {"(": ")", "[": "]", "\\{": "\\}"}, {")", "]", "\\}"}


def _joined(found: list[Token]) -> list[Token]:
    r"""Digits with thousands separators as one number.

    A bare comma separates thousands where no bracket is open (in ``(1,234)`` it separates coordinates), thin spaces and
    ``{,}`` do everywhere. All groups must have three digits and the same separator.
    """
    result: list[Token] = []
    stack: list[str] = []
    position = 0
    while position < len(found):
        token = found[position]
        if token.text in {*_OPENING, "{"} and token.kind == "sign":
            stack.append(token.text)
        elif token.text in {*_CLOSING, "}"} and stack:
            stack.pop()
        listing = bool(stack) and stack[-1] != "{"
        end = _thousands(found, position, listing=listing)
        if end > position + 1:
            digits = "".join(one.text for one in found[position:end] if one.kind == "number")
            result.append(Token("number", digits, token.space))
            position = end
            continue
        result.append(token)
        position += 1
    return result


def _thousands(found: list[Token], start: int, *, listing: bool) -> int:
    """Where a number with thousands separators ends that starts here; ``start`` without such a number."""
    if found[start].kind != "number" or not re.fullmatch(r"[1-9][0-9]{0,2}", found[start].text):
        return start
    if start and found[start - 1].kind in {"number", "power"}:
        return start
    first = _separator(found, start + 1, listing=listing)
    if first is None:
        return start
    end = start + 1
    while (one := _separator(found, end, listing=listing)) is not None and one[0] == first[0]:
        group = found[end + one[1]].text
        if not re.fullmatch(r"[0-9]{3}(?:\.[0-9]*)?", group):
            return start
        end += one[1] + 1
        if "." in group:
            break
    # Something like 1,234,5 or "1,234 567" is a list or nothing at all.
    return start if _separator(found, end, listing=listing) is not None else end


def _separator(found: list[Token], position: int, *, listing: bool) -> tuple[str, int] | None:
    """The separator at a position that a number follows: its text and how many tokens it takes."""
    if position >= len(found):
        return None
    token = found[position]
    if token.kind == "number":
        return ("thin", 0) if token.space == "thin" else None
    if token.text not in ({"{,}"} if listing else {",", "{,}"}) or token.space or position + 1 >= len(found):
        return None
    after = found[position + 1]
    if after.kind != "number" or after.space == "wide" or (after.space == "thin" and token.text != ","):
        return None
    return token.text, 1


def _trimmed(found: list[Token]) -> list[Token]:
    """Without one full stop, comma or semicolon at the end, and without braces around the whole."""
    before = found[-2].text if len(found) > 1 else ""
    if found and (found[-1].text in {",", ";"} or (found[-1].text == "." and not before.endswith("."))):
        found = found[:-1]
    while found and found[-1].kind == "row":
        found = found[:-1]
    while len(found) > 1 and found[0].text == "{" and _closing(found, 0) == len(found) - 1:
        found = found[1:-1]
    return found


def _check_braces(found: list[Token]) -> None:
    depth = 0
    for token in found:
        depth += (token.text in {"{", "(", "[", "\\{"}) - (token.text in {"}", ")", "]", "\\}"})
        if depth > MAX_DEPTH:
            raise Unreadable("too deep")
    braces = 0
    for token in found:
        braces += (token.text == "{") - (token.text == "}")
        if braces < 0:
            raise Unbalanced("a brace is closed that is not open")
    if braces:
        raise Unbalanced("a brace is not closed")


def _closing(found: list[Token], start: int) -> int:
    """The position of the bracket that closes the one at ``start``; -1 without one."""
    opening = found[start].text
    closing = {"{": "}", **_OPENING}[opening]
    depth = 0
    for position in range(start, len(found)):
        depth += (found[position].text == opening) - (found[position].text == closing)
        if depth == 0:
            return position
    return -1


def _infixed(found: list[Token]) -> list[Token]:
    r"""``{a \over b}`` as ``{\frac{a}{b}}``, ``{n \choose k}`` as ``{\binom{n}{k}}``: they divide all of a group."""
    middle = next((position for position, token in enumerate(found) if token.text in _INFIX), None)
    if middle is None:
        return found
    before, after = found[:middle], found[middle + 1 :]
    start, end = len(before) - _group_length(before[::-1], "}", "{"), _group_length(after, "{", "}")
    opening, closing = Token("sign", "{"), Token("sign", "}")
    command = Token("command", _INFIX[found[middle].text])
    new = [command, opening, *before[start:], closing, opening, *after[:end], closing]
    return _infixed([*before[:start], *new, *after[end:]])


def _group_length(found: list[Token], opening: str, closing: str) -> int:
    """How many tokens there are before the bracket that closes a group around them; all without one."""
    depth = 0
    for position, token in enumerate(found):
        depth += (token.text == opening) - (token.text == closing)
        if depth < 0:
            return position
    return len(found)


def _braced(found: list[Token]) -> list[Token]:
    r"""Arguments of ``\frac``, ``\sqrt``, ``\binom``, ``^`` and ``_`` in braces, as in ``\frac12`` and ``x^10``."""
    result: list[Token] = []
    rest = list(reversed(found))
    pending = 0  # arguments that still have to come
    while rest:
        token = rest.pop()
        if pending and token.text != "{":
            pending -= 1
            if token.kind == "number" and pending and len(token.text) == 2 and token.text.isdigit():
                rest.append(Token("number", token.text[1]))
                token = token._replace(text=token.text[0])
            elif token.kind == "number" and len(token.text) > 1 and result and result[-1].text not in {"^", "_"}:
                raise Unreadable("several digits where TeX takes one")
            elif token.kind == "sign" and token.text in "+-" and rest and result and result[-1].text == "^":
                after = rest.pop()
                if after.kind not in {"number", "letter"}:
                    raise Unreadable("a sign without a number")
                result += [Token("sign", "{"), token, after, Token("sign", "}")]
                continue
            elif token.kind not in {"number", "letter"} and token.text not in {
                "\\pi",
                "\\circ",
                "\\infty",
                "\\frac",
                "\\theta",
                "\\alpha",
                "\\prime",
                "'",
            }:
                if token.text in {"(", "["} and result and result[-1].text == "^":
                    result.append(token)
                    continue
                if token.text == "(" and result and result[-1].text == "\\sqrt":
                    result.append(token)
                    continue
                raise Unreadable("an argument is missing")
            elif token.text == "\\frac":
                raise Unreadable("a fraction without braces")
            result += [Token("sign", "{"), token._replace(space=""), Token("sign", "}")]
            continue
        result.append(token)
        if pending:  # an opening brace: copy the group
            pending -= 1
            depth = 1
            group: list[Token] = []
            while rest and depth:
                one = rest.pop()
                depth += (one.text == "{") - (one.text == "}")
                group.append(one)
            inner = group[:-1]
            while len(inner) > 1 and inner[0].text == "{" and _closing(inner, 0) == len(inner) - 1:
                inner = inner[1:-1]
            result += [*_braced(inner), Token("sign", "}")]
        elif token.kind == "command" and token.text in {"\\frac", "\\binom"}:
            pending = 2
        elif token.text in {"\\sqrt", "^", "_", "\\overline", "\\dot", "\\mathbb"}:
            pending = 1
            if token.text == "\\sqrt" and rest and rest[-1].text == "[":
                while rest:
                    result.append(rest.pop())
                    if result[-1].text == "]":
                        break
        if pending and not rest:
            raise Unreadable("an argument is missing")
    return result
