"""A Ray actor that does nothing; in a file of its own, since its process imports what is in it."""

import os
import time


class Idle:
    def pid(self) -> int:
        return os.getpid()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
