"""The client against a server on this machine that speaks SandboxFusion's protocol, well and badly."""

import asyncio
import contextlib
import time

import pytest
from aiohttp import web

from spo_verl.agent.agent_errors import SpoInterpreterError
from spo_verl.agent.config import SandboxFusionConfig
from spo_verl.agent.interpreter import shared
from spo_verl.agent.interpreter.sandbox_fusion import SandboxFusion

QUICK = {"backoff_seconds": 0.02, "max_backoff_seconds": 0.2, "attempts": 3, "run_seconds": 1.0, "request_seconds": 2.0}


def answer(status="Success", run=None, **fields):
    ran = {
        "status": "Finished",
        "execution_time": 0.125,
        "return_code": 0,
        "stdout": "1\n",
        "stderr": "",
        **(run or {}),
    }
    return {"status": status, "message": "", "compile_result": None, "run_result": ran, "files": {}, **fields}


class Server:
    """Gives each of its answers once, the last for ever. An answer is a JSON object or a function of the request."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []
        self.times = []
        self.under_way = self.most = 0

    async def handle(self, request):
        self.requests.append((request.path, await request.json()))
        self.times.append(time.monotonic())
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            given = self.answers[min(len(self.requests), len(self.answers)) - 1]
            given = await given(request) if callable(given) else given
            return given if isinstance(given, web.StreamResponse) else web.json_response(given)
        finally:
            self.under_way -= 1


def play(server, use, **settings):
    """Run ``use(client)`` beside the server."""

    async def both():
        app = web.Application()
        app.router.add_post("/{path:.*}", server.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        client = SandboxFusion(SandboxFusionConfig(**{"url": f"http://127.0.0.1:{port}", **QUICK, **settings}))
        try:
            return await use(client)
        finally:
            await client.close()
            await runner.cleanup()

    return asyncio.run(both())


def run_one(server, **settings):
    return play(server, lambda client: client.run("print(1)"), **settings)


def reply(status, text="", **headers):
    async def respond(request):
        return web.Response(status=status, text=text, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return respond


def slow(seconds, then):
    async def respond(request):
        await asyncio.sleep(seconds)
        return web.json_response(then)

    return respond


async def hang_up(request):
    request.transport.close()
    return web.Response()


def test_a_request_has_what_the_protocol_asks_for():
    server = Server(answer())
    result = run_one(server, memory_mb=333, compile_seconds=3.0)
    assert server.requests == [
        (
            "/run_code",
            {
                "code": "print(1)",
                "language": "python",
                "run_timeout": 1.0,
                "compile_timeout": 3.0,
                "memory_limit_MB": 333,
            },
        )
    ]
    assert (result.stdout, result.stderr, result.outcome, result.seconds) == ("1\n", "", "finished", 0.125)


@pytest.mark.parametrize(
    ("given", "outcome", "stdout", "stderr", "note"),
    [
        (answer("Failed", {"return_code": 1, "stdout": "a", "stderr": "Traceback"}), "failed", "a", "Traceback", ""),
        (answer("Failed", {"return_code": 3}), "failed", "1\n", "", "exit code 3"),
        (
            answer("Failed", {"status": "TimeLimitExceeded", "return_code": None, "stdout": None, "stderr": None}),
            "timeout", "", "", "out of time",
        ),
        (answer(run={"execution_time": None, "stdout": None}), "finished", "", "", ""),
        (
            answer("Failed", compile_result={"status": "Finished", "return_code": 1, "stderr": "no"}),
            "failed", "", "no", "",
        ),
    ],
)  # fmt: skip
def test_what_the_program_did_is_a_result_and_not_tried_again(given, outcome, stdout, stderr, note):
    server = Server(given)
    result = run_one(server)
    assert (result.outcome, result.stdout, result.stderr) == (outcome, stdout, stderr)
    assert note in result.note
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "trouble",
    [
        reply(500, "oops"),
        reply(502),
        reply(503),
        reply(429),
        reply(200, "<html>not json</html>"),
        reply(200, '"text"'),
        reply(200, '{"status": "Maybe"}'),
        reply(200, ""),
        hang_up,
        slow(3.0, answer()),
        answer("SandboxError", message="no space left on device"),
        {"status": "Success", "message": "", "run_result": None},
    ],
    ids=lambda value: getattr(value, "__qualname__", "answer"),
)
def test_trouble_of_the_server_is_tried_again_and_then_fails_the_rollout(trouble):
    once = Server(trouble, answer())
    assert run_one(once).stdout == "1\n"
    assert len(once.requests) == 2
    for_ever = Server(trouble)
    with pytest.raises(SpoInterpreterError, match="failed 3 times"):
        run_one(for_ever, request_seconds=1.1)
    assert len(for_ever.requests) == 3


def test_a_server_that_is_not_there_is_named():
    async def use(client):
        return await client.run("1")

    with pytest.raises(SpoInterpreterError, match=r"http://127\.0\.0\.1:9/run_code failed 3 times"):
        play(Server(answer()), use, url="http://127.0.0.1:9")


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_refused_request_is_not_tried_again(status):
    server = Server(reply(status, "no such thing"))
    with pytest.raises(SpoInterpreterError, match=f"HTTP {status}"):
        run_one(server)
    assert len(server.requests) == 1


def test_retry_after_is_kept_up_to_the_limit():
    server = Server(reply(429, Retry_After="0.15"), answer())
    run_one(server)
    assert server.times[1] - server.times[0] >= 0.15
    server = Server(reply(429, Retry_After="3600"), answer())
    run_one(server)
    assert 0.2 <= server.times[1] - server.times[0] < 1.0
    server = Server(reply(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), answer())
    assert run_one(server).stdout == "1\n"


def test_waits_double():
    server = Server(reply(500))
    with pytest.raises(SpoInterpreterError):
        run_one(server, attempts=4, backoff_seconds=0.1, max_backoff_seconds=10.0)
    waits = [later - sooner for sooner, later in zip(server.times, server.times[1:], strict=False)]
    assert 0.05 <= waits[0] < 0.1 + 0.1
    assert 0.10 <= waits[1] < 0.2 + 0.1
    assert 0.20 <= waits[2] < 0.4 + 0.1


def test_not_more_requests_than_allowed_are_in_flight():
    server = Server(slow(0.1, answer()))

    async def use(client):
        return await asyncio.gather(*(client.run("1") for _ in range(12)))

    results = play(server, use, max_running=4)
    assert len(results) == 12
    assert server.most == 4


def test_too_long_a_queue_fails_and_the_others_go_on():
    server = Server(slow(0.4, answer()))

    async def use(client):
        return await asyncio.gather(*(client.run("1") for _ in range(3)), return_exceptions=True)

    results = play(server, use, max_running=1, max_wait_seconds=0.6)
    assert [type(result).__name__ for result in results] == ["ProgramResult", "ProgramResult", "SpoInterpreterError"]
    assert "no place for a program within 0.6 s" in str(results[2])


def test_a_cancelled_call_frees_its_place():
    server = Server(slow(5.0, answer()), answer())

    async def use(client):
        task = asyncio.ensure_future(client.run("1"))
        await asyncio.sleep(0.1)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return await asyncio.wait_for(client.run("1"), 1.0)

    assert play(server, use, max_running=1).stdout == "1\n"


def test_another_path_is_kept():
    server = Server(answer())

    async def use(client):
        other = SandboxFusion(SandboxFusionConfig(url=client.config.url + "/v2/run", **QUICK))
        await other.run("1")
        await other.close()

    play(server, use)
    assert server.requests[0][0] == "/v2/run"


def test_rollouts_of_one_worker_share_a_backend():
    async def use():
        first = SandboxFusionConfig(url="http://a")
        return shared(first) is shared(SandboxFusionConfig(url="http://a")), shared(first) is shared(
            SandboxFusionConfig(url="http://b")
        )

    assert asyncio.run(use()) == (True, False)
