"""The pool of grading processes: limits hold, the dead are replaced, nobody is left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

pytest.importorskip("math_verify")

from spo_verl.agent.grading import processes
from spo_verl.agent.grading.processes import ComparisonLimits, Grader, GradingError

pytestmark = pytest.mark.long
QUICK = ComparisonLimits(seconds=3.0, processes=1)
TOWER = "9^{9^{9^{9^9}}}"


@pytest.fixture
def grader():
    made = Grader(QUICK)
    yield made
    made.close()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


def eventually(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_verdicts(grader):
    assert grader.compare("2\\sqrt{3}", "\\sqrt{12}") == "equal"
    assert grader.compare("2\\sqrt{3}", "\\sqrt{13}") == "different"


@pytest.fixture
def hangs(monkeypatch, tmp_path):
    """Grading processes in which the answer "hang" is never compared to an end, and "die" ends the process."""
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent(
            """
            import os, sys, time
            from spo_verl.agent.grading import worker
            real = worker.verdict
            def verdict(truth, answer):
                if answer == "hang":
                    time.sleep(600)
                if answer == "die" or (answer == "die once" and not os.path.exists(truth)):
                    open(truth, "w").close()
                    os.kill(os.getpid(), 9)
                if answer == "die once":
                    return "equal"
                if answer == "exhaust":
                    raise MemoryError
                return real(truth, answer)
            worker.verdict = verdict
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_comparison_that_does_not_end_is_ended_and_the_next_is_answered(hangs, caplog):
    grader = Grader(ComparisonLimits(seconds=1.0, processes=1))
    grader.compare("1", "x")  # the start of the process is not measured
    [first] = grader._all
    started = time.monotonic()
    assert grader.compare("5", "hang") == "unanswered"
    assert time.monotonic() - started < 20  # a crowded machine takes its time
    assert "counted as wrong (1 of 2 comparisons)" in caplog.text
    assert eventually(lambda: not alive(first.process.pid))
    assert grader.compare("2\\sqrt{3}", "\\sqrt{12}") == "equal"
    assert (grader.unanswered, grader.asked) == (1, 3)
    grader.close()


def test_too_much_work_gets_no_verdict_and_costs_no_process(grader, caplog):
    assert grader.compare("5", TOWER) == "unanswered"
    [first] = grader._all
    assert "counted as wrong (1 of 1 comparisons)" in caplog.text
    assert grader.compare("2\\sqrt{3}", "\\sqrt{12}") == "equal"
    assert [process.process.pid for process in grader._all] == [first.process.pid]


@pytest.mark.parametrize("how", ["killed", "killed and waited for", "stopped", "hung up"])
def test_a_process_that_died_while_it_was_idle_is_replaced_and_the_new_one_is_asked(how, grader, monkeypatch, caplog):
    grader.compare("1", "x")
    [process] = grader._all
    if how == "stopped":
        monkeypatch.setattr(processes, "ACCEPT_S", 0.5)
        process.process.send_signal(signal.SIGSTOP)
    elif how == "hung up":
        process.connection.close()
    else:
        process.process.kill()
        if how == "killed and waited for":
            process.process.wait()
        else:
            assert eventually(lambda: not alive(process.process.pid))  # a zombie
    assert grader.compare("2\\sqrt{3}", "\\sqrt{12}") == "equal"
    assert "has died; asking a new one" in caplog.text
    assert grader.unanswered == 0
    assert eventually(lambda: not alive(process.process.pid))


def test_all_idle_processes_may_have_died_together():
    grader = Grader(ComparisonLimits(processes=2))
    threads = [threading.Thread(target=grader.compare, args=("2\\sqrt{3}", f"\\sqrt{{{n}}}")) for n in range(20, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for process in grader._all:
        process.process.kill()
    assert [grader.compare("2\\sqrt{3}", "\\sqrt{12}") for _ in range(3)] == ["equal"] * 3
    grader.close()


def test_a_process_that_dies_in_the_middle_is_asked_again_once(hangs):
    grader = Grader(ComparisonLimits(seconds=30.0, processes=1))
    assert grader.compare(str(hangs / "mark"), "die once") == "equal"
    assert grader.compare(str(hangs / "mark"), "die") == "unanswered"
    assert grader.compare("2\\sqrt{3}", "\\sqrt{12}") == "equal"
    assert grader.unanswered == 1
    grader.close()


def test_a_process_without_memory_is_replaced(hangs):
    grader = Grader(ComparisonLimits(seconds=30.0, processes=1))
    assert grader.compare("5", "exhaust") == "unanswered"
    assert not grader._all
    assert grader.compare("2\\sqrt{3}", "\\sqrt{12}") == "equal"
    grader.close()


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_the_first_comparison_does_not_pay_for_the_warm_up():
    """Everything is imported and used before a process is ready, so the first comparison has its whole limit."""
    grader = Grader(ComparisonLimits(seconds=30.0, processes=1))
    process = grader._take(fresh=True)
    grader._give_back(process, keep=True)
    used = cpu_seconds(process.process.pid)
    assert grader.compare("55", "\\sum_{k=1}^{10} k") == "equal"
    assert cpu_seconds(process.process.pid) - used < 0.3  # the imports alone take longer
    grader.close()


def test_too_little_memory_is_no_crash():
    grader = Grader(ComparisonLimits(seconds=20.0, memory_mb=512, processes=1))
    try:
        assert grader.compare("5", "2^{2^{38}}") in ("unanswered", "different")
        assert grader.compare("2\\sqrt{3}", "\\sqrt{12}") == "equal"
    finally:
        grader.close()


def test_many_threads_share_few_processes():
    grader = Grader(ComparisonLimits(processes=2))
    verdicts = {}
    threads = [
        threading.Thread(
            target=lambda i=i: verdicts.update({i: grader.compare(f"{i}\\sqrt{{2}}", f"\\sqrt{{{2 * i * i}}}")})
        )
        for i in range(2, 14)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(verdicts.values()) == {"equal"}
    assert len(verdicts) == 12
    assert len(grader._all) <= 2
    grader.close()
    assert not grader._all


def test_ten_hopeless_answers_in_a_row_are_no_broken_grader(grader, monkeypatch):
    monkeypatch.setattr(processes, "SUSPICIOUS_IN_A_ROW", 2)
    for _ in range(3):
        assert grader.compare("5", TOWER) == "unanswered"


def test_a_grader_that_does_not_work_is_loud(monkeypatch):
    grader = Grader(QUICK)
    monkeypatch.setattr(processes, "SUSPICIOUS_IN_A_ROW", 2)
    monkeypatch.setattr(processes._Process, "compare", lambda self, truth, answer: "unanswered")
    assert grader.compare("1", "x") == "unanswered"
    with pytest.raises(GradingError, match="2 comparisons in a row and then an easy one"):
        grader.compare("1", "x")
    grader.close()


def test_a_process_that_cannot_start_is_loud(tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text("raise RuntimeError('broken installation')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(GradingError, match=r"broken installation.*pip install 'math-verify"):
        Grader(QUICK).compare("1", "x")


PARENT = """
import os, sys, time
from spo_verl.agent.grading.processes import ComparisonLimits, grader
one = grader(ComparisonLimits(processes=1))
assert one.compare("2", "x") == "different"
[process] = one._all
print(process.process.pid, flush=True)
{}
"""


def start(rest):
    code = PARENT.format(textwrap.dedent(rest))
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def test_processes_end_with_their_parent():
    parent, child = start("")
    assert parent.wait(30) == 0
    assert eventually(lambda: not alive(child))


def test_processes_end_when_their_parent_is_killed():
    parent, child = start("time.sleep(60)")
    assert alive(child)
    parent.kill()
    parent.wait(30)
    assert eventually(lambda: not alive(child))


def test_a_fork_has_processes_of_its_own():
    parent, child = start(
        """
        one._lock.acquire()  # as if another thread held it at this moment
        pid = os.fork()
        if pid == 0:
            again = grader(ComparisonLimits(processes=1))
            verdict = again.compare("2", "\\\\sqrt{4}")
            from spo_verl.agent.grading.processes import close_all
            close_all()
            os._exit(0 if again is not one and verdict == "equal" else 1)
        status = os.waitpid(pid, 0)[1]
        one._lock.release()
        assert one.compare("2", "x") == "different" and [p.process.pid for p in one._all] == [process.process.pid]
        sys.exit(status)
        """
    )
    assert parent.wait(60) == 0
    assert eventually(lambda: not alive(child))
