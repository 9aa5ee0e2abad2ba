"""What importing the tracker costs."""

import subprocess
import sys


def test_the_plain_tracker_needs_neither_ray_nor_torch_nor_verl():
    code = (
        "import sys, spo_verl.tracker; "
        "print([name for name in ('ray', 'torch', 'verl', 'pandas') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert answer.stdout.strip() == "[]"
