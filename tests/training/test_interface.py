"""docs/compatibility.md says which files know verl's trainer and which do not; here their imports are looked at."""

import re

from tests.docs.pages import REPOSITORY
from tests.floor_plan import read_package

LOOP = ("verl", "transfer_queue")


def test_the_interface_imports_neither_verl_nor_transfer_queue():
    """Directly or through another file, at its top or inside a function."""
    package = read_package(REPOSITORY / "spo_verl")
    page = (REPOSITORY / "docs" / "compatibility.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| neither |"))
    training = row.partition("`spo_verl/training/`:")[2]
    named = {f"spo_verl/training/{name}.py" for name in re.findall(r"`(\w+)`", training)}
    rooms = re.findall(r"`(spo_verl/\w+/)`", row.partition("`spo_verl/training/`")[0])
    assert rooms == ["spo_verl/core/", "spo_verl/tracker/", "spo_verl/data/"]
    assert named <= set(package.files)
    for start in {*named, *(file for file in package.files if file.startswith(tuple(rooms)))}:
        reached = {start}
        while more := {one.imported for one in package.inner if one.importer in reached} - reached:
            reached |= more
        outer = [one for one in package.outer if one.importer in reached]
        bad = [f"{one.importer}:{one.line} {one.imported}" for one in outer if one.imported.split(".")[0] in LOOP]
        assert bad == [], f"{start} reaches {bad}"


def test_the_other_files_of_the_room_are_named_where_they_know_the_trainer():
    package = read_package(REPOSITORY / "spo_verl")
    page = (REPOSITORY / "docs" / "compatibility.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| V1 and TransferQueue |"))
    named = {f"spo_verl/training/{name}.py" for name in re.findall(r"`(\w+)`", row)}
    knows = {
        one.importer
        for one in package.outer
        if one.imported.split(".")[0] in LOOP and one.importer.startswith("spo_verl/training/")
    }
    assert knows - {"spo_verl/training/seams.py"} == named
