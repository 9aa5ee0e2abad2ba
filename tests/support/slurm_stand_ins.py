"""What a Slurm job calls, each by its name: srun, scontrol, hostname, ray, sleep, and the interpreter of a recipe.

Every call is a line of JSON in the file that STAND_IN_LOG names: command, arguments, node and variables. srun is like
Slurm's own in what the script relies on: it runs its command once per node, hands on the variables that ``--export``
says, and ends the step when a task fails if, and only if, it was asked to. Ray of a node of STAND_IN_FAILS ends by
itself during the run; a node of STAND_IN_LATE never joins.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS", "SRUN_CPUS_PER_TASK")
ALWAYS_HANDED_ON = ("SLURM_", "STAND_IN_", "PATH", "PYTHON")


def log():
    return Path(os.environ["STAND_IN_LOG"])


def note(command, arguments):
    line = json.dumps(
        {
            "command": command,
            "arguments": arguments,
            "node": os.environ.get("STAND_IN_NODE", "batch"),
            "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        }
    )
    with log().open("a") as file:
        file.write(line + "\n")


def calls():
    return [json.loads(line) for line in log().read_text().splitlines()]


def srun(arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("--overlap", action="store_true")
    parser.add_argument("--export", default=os.environ.get("SLURM_EXPORT_ENV", "ALL"))
    parser.add_argument("--kill-on-bad-exit", default="0")
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--ntasks", type=int)
    parser.add_argument("-w")
    parser.add_argument("--exclude")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    nodes = [given.w] if given.w else [node for node in job_nodes() if node != given.exclude]
    if len(nodes) != given.nodes or given.ntasks != given.nodes or not given.overlap:
        sys.exit(f"srun: {given} does not fit {nodes}")
    environment = dict(os.environ)
    if given.export != "ALL":
        environment = {key: value for key, value in environment.items() if key.startswith(ALWAYS_HANDED_ON)}
    tasks = [
        subprocess.Popen(given.command, env={**environment, "STAND_IN_NODE": node}, start_new_session=True)
        for node in nodes
    ]

    def end(*_):
        for task in tasks:
            if task.poll() is None:
                os.killpg(task.pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, lambda *_: (end(), os._exit(143)))
    while any(task.poll() is None for task in tasks):
        if given.kill_on_bad_exit == "1" and any(task.poll() for task in tasks):
            end()
        time.sleep(0.01)
    sys.exit(max((abs(task.returncode) for task in tasks), default=0))


def job_nodes():
    return os.environ["SLURM_JOB_NODELIST"].split(",")


def ray(arguments):
    started = [call for call in calls() if call["command"] == "ray" and call["arguments"][0] == "start"]
    note("ray", arguments)
    options = dict(word.removeprefix("--").split("=") for word in arguments[1:] if "=" in word)
    if arguments[0] == "start" and "--head" in arguments:
        stay()
    head = next((call for call in started if "--head" in call["arguments"]), None)
    if head is None:
        sys.exit("ConnectionError: no Ray at this address")
    listens = dict(word.removeprefix("--").split("=") for word in head["arguments"] if "=" in word)
    if options["address"] != f"{listens['node-ip-address']}:{listens['port']}":
        sys.exit(f"ConnectionError: {options['address']}")
    if head["variables"].get("RAY_AUTH_TOKEN") != os.environ.get("RAY_AUTH_TOKEN"):
        sys.exit("AuthenticationError: the token is another one")
    if arguments[0] == "start":
        stay()
    late = os.environ.get("STAND_IN_LATE", "").split(",")
    print("Node status\nActive:")
    for number, call in enumerate(started):
        if call["node"] not in late:
            print(f" 1 node_{number}")
    print("Pending:\n (no pending nodes)\nTotal Usage:\n 0.0/16.0 GPU")


def stay():
    """A node's Ray runs until it is ended, or for a moment of the run where it is one that fails."""
    if os.environ["STAND_IN_NODE"] in os.environ.get("STAND_IN_FAILS", "").split(","):
        while not any(call["command"] == "python" for call in calls()):
            time.sleep(0.01)
        print("Some Ray subprocesses exited unexpectedly", file=sys.stderr)
        sys.exit(1)
    time.sleep(60)


def hostname(arguments):
    note("hostname", arguments)
    print(os.environ.get("STAND_IN_ADDRESSES", "fd00::7 127.0.1.1 10.0.0.7 172.17.0.1"))


def python(arguments):
    """The recipe's run: as long as the test says, and with its exit status."""
    note("python", arguments)
    time.sleep(float(os.environ.get("STAND_IN_SECONDS", "0.2")))
    sys.exit(int(os.environ.get("STAND_IN_STATUS", "0")))


def scontrol(arguments):
    note("scontrol", arguments)
    print("\n".join(job_nodes()))


def sleep(arguments):
    time.sleep(0.02)


if __name__ == "__main__":
    name = Path(sys.argv[0]).name
    {
        "srun": srun,
        "scontrol": scontrol,
        "hostname": hostname,
        "ray": ray,
        "sleep": sleep,
        "python": python,
    }[name](sys.argv[1:])
