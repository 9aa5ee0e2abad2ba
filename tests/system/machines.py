"""Machines within this one: each has a network, processes, a hostname, /tmp and /dev/shm of its own.

Linux namespaces, so that this needs root and nothing else. What the machines share is what lies in one folder (and the
rest of the file system, where the repository and the environment are). They see each other by name, over a pair of
virtual interfaces; the network of this machine is not touched.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from spo_verl.launching.supervise import die_with_parent
from tests.system.harness import REPOSITORY

NETWORK = "10.78.0"
_INSIDE = ("--net", "--mount", "--pid", "--uts", "--ipc")
_BOOT = """
set -e
hostname "$1"
ip link set lo up
ip addr add "$4" dev lo
# Libraries learn their own address from the way to this host, which begins here and leads nowhere.
ip route add 8.8.8.8 dev lo src "$4"
mount --bind "$2/hosts" /etc/hosts
# Nobody answers there, which is known at once.
echo "nameserver 127.0.0.1" > "$2/resolv.conf"
mount --bind "$2/resolv.conf" /etc/resolv.conf
mkdir -p "$2/tmp"
mount -t tmpfs -o size=4g tmp "$2/tmp"
case "$3" in /tmp/*) mkdir -p "$2$3"; mount --bind "$3" "$2$3";; esac
mount --rbind "$2/tmp" /tmp
mount -t tmpfs -o size=4g shm /dev/shm
touch "$3/$1.up"
sleep infinity & wait
"""


class Machine:
    """One of them. It has no processes but those that are started in it, and all of them end with it."""

    def __init__(self, shared: Path, number: int, environment: Mapping[str, str]) -> None:
        """Args:
        shared: the folder that all machines have at the same place; keeps this one's files too.
        number: 1, 2, ...; its name is node1, its address 10.78.0.1.
        environment: variables of its shells on top of PATH and HOME, which is its own.
        """
        self.name, self.address = f"node{number}", f"{NETWORK}.{number}"
        self.home = shared / self.name / "home"
        self.home.mkdir(parents=True)
        names = "".join(f"{NETWORK}.{other} node{other}\n" for other in range(1, 9))
        (shared / self.name / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment = {"PATH": path, "HOME": str(self.home), **environment}
        boot = ["bash", "-c", _BOOT, "boot", self.name, str(shared / self.name), str(shared), self.address]
        self._outer = subprocess.Popen(
            ["unshare", *_INSIDE, "--fork", "--kill-child", "--mount-proc", *boot], preexec_fn=die_with_parent
        )
        give_up = time.monotonic() + 30
        while not (shared / f"{self.name}.up").exists():
            if self._outer.poll() is not None or time.monotonic() > give_up:
                self.kill()
                raise RuntimeError(f"{self.name} did not start: namespaces need root (see the output of unshare above)")
            time.sleep(0.05)
        (shared / f"{self.name}.up").unlink()
        [self._first] = psutil.Process(self._outer.pid).children()

    def connect(self, other: Machine) -> None:
        """Lay a cable from this machine to another one, which has none yet."""
        end, other_end = f"to{other.address[-1]}", "eth0"
        self.run(f"ip link add {end} type veth peer name {other_end} netns {other._first.pid}", pid=False)
        for machine, interface, peer in ((self, end, other), (other, other_end, self)):
            machine.run(
                f"ip addr add {machine.address} peer {peer.address} dev {interface}; ip link set {interface} up"
            )

    def command(self, *words: str, pid: bool = True) -> list[str]:
        """What runs a command in this machine, in the repository's folder."""
        inside = [one for one in _INSIDE if pid or one == "--net"]
        variables = [f"{name}={value}" for name, value in self._environment.items()]
        return [
            "nsenter", "--target", str(self._first.pid), *inside, "env", *variables,
            "env", f"--chdir={REPOSITORY}", *words,
        ]  # fmt: skip

    def run(self, line: str, *, pid: bool = True, seconds: float = 300.0) -> str:
        """Run a line of a shell to its end; its output, and an error that shows it where it fails."""
        done = subprocess.run(
            self.command("bash", "-c", line, pid=pid),
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{self.name}: {line} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def kill(self) -> None:
        """Pull the plug: the kernel ends every process of the machine with its first one, and its network."""
        self._outer.kill()
        self._outer.wait()
