"""A probe that misbehaves: answers once, then does what its argument says."""

import json
import os
import subprocess
import sys
import time

from spo_verl.cli.health.probe import MARK


def main(name: str) -> None:
    print("chatter of a library")
    print(MARK + json.dumps({"question": "torch_device", "value": {"cuda": False}}), flush=True)
    print("spo_verl: loading the plugin failed", file=sys.stderr)
    if name == "hang":
        left = subprocess.Popen(["sleep", "300"])
        print(f"pid {left.pid}", file=sys.stderr, flush=True)
        time.sleep(300)
    if name == "crash":
        print("fatal: no such instruction", file=sys.stderr, flush=True)
        os.abort()


if __name__ == "__main__":
    main(os.environ["SPO_TEST_PROBE"])
