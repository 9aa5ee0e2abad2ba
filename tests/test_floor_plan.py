"""The package keeps to the floor plan in CONTRIBUTING.md, and what finds violations finds each kind of them."""

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.docs.pages import REPOSITORY
from tests.floor_plan import Import, circles, plan_rows, read_package, read_plan, room_of, violations

CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text()
LIBRARIES = {"verl": "verl", "vllm": "vLLM", "ray": "Ray", "transfer_queue": "TransferQueue", "torch": "torch"}


@pytest.fixture(scope="module")
def package():
    return read_package(REPOSITORY / "spo_verl")


@pytest.fixture(scope="module")
def plan():
    return read_plan(CONTRIBUTING)


def test_the_package_keeps_to_the_plan(package, plan):
    assert violations(package, plan) == []


def test_the_plan_says_which_large_libraries_a_floor_imports(package, plan):
    imported = [set() for _ in plan]
    for one in package.outer:
        if name := LIBRARIES.get(one.imported.partition(".")[0]):
            room = room_of(one.importer, plan)
            imported[next(number for number, floor in enumerate(plan) if room in floor)].add(name)
    said = [set(filter(None, cell.split(", "))) for *_, cell in plan_rows(CONTRIBUTING)]
    assert dict(zip(map(tuple, plan), said, strict=True)) == dict(zip(map(tuple, plan), imported, strict=True))


def beyond(arrows):
    """Who is reached from whom by one arrow or several."""
    reached = set(arrows)
    while longer := {(a, d) for a, b in reached for c, d in reached if b == c} - reached:
        reached |= longer
    return reached


def test_the_drawn_plan_is_that_of_the_imports(package):
    drawing = (REPOSITORY / "docs" / "architecture.md").read_text().split("```mermaid\n")[1].split("```")[0]
    drawn = re.findall(r"(\w+) --> (\w+)", drawing)
    rooms = {room for arrow in drawn for room in arrow}
    folders = {name.split("/")[1] for name in package.files if name.count("/") > 1} - {"conf"}
    assert rooms == folders
    arrows = {(one.importer.split("/")[1], one.imported.split("/")[1]) for one in package.inner}
    imports = {
        (importer, imported)
        for importer, imported in arrows
        if importer != imported and {importer, imported} <= folders
    }
    assert beyond(drawn) == beyond(imports)


@pytest.mark.parametrize(
    ("importer", "imported", "found"),
    [
        ("spo_verl/core/evidence.py", "spo_verl/cli/app.py", "which is on a higher floor"),
        ("spo_verl/errors.py", "spo_verl/conf/__init__.py", "rooms import each other"),
        ("spo_verl/core/_checks.py", "spo_verl/core/evidence.py", "files import each other"),
    ],
)
def test_one_more_import_is_found(package, plan, importer, imported, found):
    back = Import(imported, 1, importer)  # the two files may not import each other yet
    wrong = (*package.inner, back, Import(importer, 1, imported))
    assert any(found in one for one in violations(dataclasses.replace(package, inner=wrong), plan))


def test_one_more_file_without_a_room_is_found(package, plan):
    wrong = dataclasses.replace(package, files=(*package.files, "spo_verl/new.py", "spo_verl/new/__init__.py"))
    assert violations(wrong, plan) == [
        "spo_verl/new.py belongs to no room",
        "spo_verl/new/__init__.py belongs to no room",
    ]


HOUSE = {
    "__init__.py": "VERSION = 1",
    "cellar.py": "import os\nfrom house import VERSION",
    "garage.py": "from . import cellar",
    "hall/__init__.py": "from house.hall.door import Door",
    "hall/door.py": "from house.cellar import os\nclass Door: ...",
    "hall/stairs.py": "from house.hall import Door",
    "hall/loft/__init__.py": "",
    "hall/loft/box.py": "from ...garage import cellar\nfrom ..door import Door",
}
"""A made-up package that keeps to its plan."""
HOUSE_PLAN = [["house/__init__.py"], ["house/cellar.py", "house/garage.py"], ["house/hall/"], ["house/hall/loft/"]]


@pytest.fixture
def wrong_in_the_house(tmp_path):
    """Give files that differ from those of the house, get what is wrong with it."""

    def build(files, plan=HOUSE_PLAN):
        for name, text in {**HOUSE, **files}.items():
            path = tmp_path / "house" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return violations(read_package(tmp_path / "house"), plan)

    return build


def test_a_house_that_keeps_to_its_plan(wrong_in_the_house):
    assert wrong_in_the_house({}) == []


@pytest.mark.parametrize(
    "statement",
    [
        "import house.hall.door",
        "import os, house.hall.door as door",
        "from house.hall import door",
        "from house.hall.door import Door",
        "from .hall.door import Door",
        "from .hall import door",
        "def later():\n    from house.hall.door import Door",
        "class Cellar:\n    import house.hall.door",
        "if TYPE_CHECKING:\n    from house.hall.door import Door",
        "try:\n    from house.hall.door import Door\nexcept ImportError:\n    pass",
    ],
)
def test_an_import_that_runs_upwards(wrong_in_the_house, statement):
    found = wrong_in_the_house({"cellar.py": statement, "hall/door.py": ""})
    line = statement.count("\n", 0, statement.index("house.hall" if "house.hall" in statement else ".hall")) + 1
    assert found == [f"house/cellar.py:{line} imports house/hall/door.py, which is on a higher floor"]


def test_an_import_of_a_package_by_a_lower_floor(wrong_in_the_house):
    found = wrong_in_the_house({"garage.py": "from house.hall import Door"})
    assert found == ["house/garage.py:1 imports house/hall/__init__.py, which is on a higher floor"]


def test_a_room_within_a_room_has_a_floor_of_its_own(wrong_in_the_house):
    found = wrong_in_the_house({"hall/stairs.py": "from .loft import box", "hall/loft/box.py": ""})
    assert found == ["house/hall/stairs.py:1 imports house/hall/loft/box.py, which is on a higher floor"]


def test_a_circle_of_rooms_on_one_floor(wrong_in_the_house):
    found = wrong_in_the_house({"cellar.py": "from house import garage"})
    circle = "house/cellar.py, house/garage.py"
    assert found == [f"rooms import each other: {circle}", f"files import each other: {circle}"]


def test_a_circle_of_rooms_that_is_none_of_files(wrong_in_the_house):
    plan = [["house/"], ["house/hall/", "house/hall/loft/"]]
    found = wrong_in_the_house({"hall/stairs.py": "from .loft import box"}, plan)
    assert found == ["rooms import each other: house/hall/, house/hall/loft/"]


def test_a_circle_of_three_files_in_one_room(wrong_in_the_house):
    found = wrong_in_the_house(
        {
            "hall/door.py": "from . import stairs",
            "hall/stairs.py": "import house.hall.lamp",
            "hall/lamp.py": "from .door import x",
        }
    )
    assert found == ["files import each other: house/hall/door.py, house/hall/lamp.py, house/hall/stairs.py"]


def test_files_without_a_room_and_rooms_without_a_file(wrong_in_the_house):
    assert wrong_in_the_house({"shed.py": "", "cellar_of_wine.py": ""}) == [
        "house/cellar_of_wine.py belongs to no room",
        "house/shed.py belongs to no room",
    ]
    plan = [*HOUSE_PLAN, ["house/shed.py", "house/cellar_of_wine.py", "house/tower/"], ["house/hall/"]]
    assert wrong_in_the_house({}, plan)[:2] == [
        "the room house/tower/ holds no file",
        "the room house/hall/ is in the plan twice",
    ]


def test_an_import_of_what_is_not_there(wrong_in_the_house):
    with pytest.raises(ValueError, match=r"house/cellar\.py:1 imports house\.attic, which is not there"):
        wrong_in_the_house({"cellar.py": "import house.attic"})


@given(st.sets(st.tuples(st.sampled_from("abcdefg"), st.sampled_from("abcdefg")), max_size=14))
def test_circles_are_the_names_that_reach_each_other(arrows):
    reached = {name: {end for start, end in arrows if start == name} for name in "abcdefg"}
    for _ in "abcdefg":
        reached = {name: ends.union(*(reached[end] for end in ends)) for name, ends in reached.items()}
    groups = {tuple(sorted({one, *(other for other in reached[one] if one in reached[other])})) for one in "abcdefg"}
    assert circles(arrows) == sorted(list(group) for group in groups if len(group) > 1)
