r"""Words after numbers: which are units, which are numbers themselves, and which may be left out.

A unit of this table says what is counted and leaves the number alone, so an answer may have one that the ground truth
does not have, and the other way round. Two different units never agree. Any other word may change what is said ("or
more", "AM", "is wrong"), so it must be in the ground truth too.
"""

from __future__ import annotations

import re
from fractions import Fraction

PERCENT = "%"

SCALES = {
    "hundred": Fraction(100),
    "thousand": Fraction(1000),
    "million": Fraction(10**6),
    "billion": Fraction(10**9),
    "trillion": Fraction(10**12),
    "dozen": Fraction(12),
}
"""Words that multiply."""

_NAMES = {
    "m": "meter meters metre metres m",
    "cm": "centimeter centimeters centimetre centimetres cm",
    "mm": "millimeter millimeters millimetre millimetres mm",
    "km": "kilometer kilometers kilometre kilometres km",
    "in": "inch inches in",
    "ft": "foot feet ft",
    "yd": "yard yards yd",
    "mi": "mile miles mi",
    "kg": "kilogram kilograms kg",
    "g": "gram grams g",
    "mg": "milligram milligrams mg",
    "lb": "pound pounds lb lbs",
    "oz": "ounce ounces oz",
    "ton": "ton tons",
    "s": "second seconds sec secs s",
    "ms": "millisecond milliseconds ms",
    "min": "minute minutes min mins",
    "h": "hour hours hr hrs h",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "year years yr yrs",
    "degree": "degree degrees deg",
    "radian": "radian radians rad",
    "unit": "unit units",
    "l": "liter liters litre litres",
    "ml": "milliliter milliliters millilitre millilitres ml mL",
    "gallon": "gallon gallons",
    "cup": "cup cups",
    "mph": "mph",
    "dollar": "dollar dollars usd \\$",
    "cent": "cent cents ¢",
    "euro": "euro euros eur €",
    "£": "£ gbp",
    "yen": "yen ¥",
    "rupee": "rupee rupees ₹",
    "joule": "joule joules",
    "newton": "newton newtons",
    "watt": "watt watts",
    "volt": "volt volts",
    "hertz": "hertz hz",
    "kelvin": "kelvin kelvins",
    "celsius": "celsius",
    "fahrenheit": "fahrenheit",
    "person": "person people persons",
    "student": "student students",
    "child": "child children",
    "man": "man men",
    "woman": "woman women",
    "boy": "boy boys",
    "girl": "girl girls",
    "way": "way ways",
    "solution": "solution solutions",
    "point": "point points",
    "apple": "apple apples",
    "orange": "orange oranges",
    "egg": "egg eggs",
    "book": "book books",
    "page": "page pages",
    "ticket": "ticket tickets",
    "coin": "coin coins",
    "marble": "marble marbles",
    "ball": "ball balls",
    "cookie": "cookie cookies",
    "card": "card cards",
    "tree": "tree trees",
    "car": "car cars",
    "game": "game games",
    "step": "step steps",
    "side": "side sides",
    "triangle": "triangle triangles",
    "integer": "integer integers",
    "number": "number numbers",
    "value": "value values",
    "pair": "pair pairs",
    "digit": "digit digits",
    "time": "time times",
}
_UNIT_OF = {word: unit for unit, words in _NAMES.items() for word in words.split()}
_NOT_INERT = {"pair", "digit", "time"}
_CAPITALS = re.compile(r"(?!M.$)[A-Z]{2,}")
"""Units in capitals that are the same in small letters: KG, but not ML."""
INERT = frozenset(_NAMES) - _NOT_INERT


def unit_of(words: list[str]) -> str:
    """The words after a number in one form: ``square centimeters`` and ``cm ^ { 2 }`` are ``cm^2``."""
    if words == ["\\%"] or words == ["%"] or words in (["percent"], ["per", "cent"]):
        return PERCENT
    found: list[str] = []
    power = ""
    for word in words:
        if word in {"square", "sq", "cubic", "cu"}:
            power = "^2" if word.startswith("sq") else "^3"
        elif word == "per":
            found.append("/")
        elif word in {"{", "}", "."}:
            continue
        else:
            found.append(_UNIT_OF.get(word.lower() if _CAPITALS.fullmatch(word) else word, word) + power)
            power = ""
    text = " ".join(found) + power
    return text.replace(" ^ 2", "^2").replace(" ^ 3", "^3").replace(" / ", "/")


def is_inert(unit: str) -> bool:
    """Whether one of two answers alone may have a unit: it is known, and leaves the number as it is."""
    return all(part.removesuffix("^2").removesuffix("^3") in INERT for part in unit.split("/"))
