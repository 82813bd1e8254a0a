import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys

import pytest
from live_server import LiveServer

from pathosam_qupath.errors import UsageError
from pathosam_qupath.server.serving import ServeOptions, _bound
from pathosam_qupath.server.state import ServerState, StateFolder, new_token, read_state

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file modes")


def described(token="t"):
    return ServerState("http://127.0.0.1:1", token, 1, "0", {"min": 1, "max": 1}, "now")


@posix
def test_only_the_owner_can_read_the_token(live):
    folder = live.folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "server.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "page.html").stat().st_mode) == 0o600
    assert len(live.state["token"]) >= 43


@posix
def test_the_token_is_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        with StateFolder(tmp_path / "state") as folder:
            folder.publish(described())
            assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
            assert stat.S_IMODE(folder.state_path.stat().st_mode) == 0o600
    finally:
        os.umask(before)


@posix
@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701, 0o740])
def test_a_folder_that_others_can_look_into_is_refused(tmp_path, mode):
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UsageError, match="chmod 700"), StateFolder(folder):
        pass
    assert list(folder.iterdir()) == []


def test_leaving_removes_what_clients_read(tmp_path):
    with StateFolder(tmp_path / "state") as folder:
        folder.publish(described())
        assert read_state(folder.path) == described()
    assert read_state(folder.path) is None
    assert not folder.link_path.exists()


def test_a_second_server_is_told_where_the_first_is(live):
    second = subprocess.run(
        [sys.executable, "-m", "pathosam_qupath", "serve", "--state", str(live.folder), "--json"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode == 2
    assert live.state["url"] in json.loads(second.stdout)["error"]["cause"]
    assert live.get("/v1/health").status == 200


def test_a_killed_server_does_not_stop_the_next(tmp_path):
    first = LiveServer(tmp_path / "state", wait_for_model=False)
    first.end(signal.SIGKILL)
    assert read_state(first.folder).token == first.state["token"]
    second = LiveServer(first.folder, wait_for_model=False)
    try:
        assert second.get("/v1/health").status == 200
        assert second.state["token"] != first.state["token"]
    finally:
        second.end()


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_ends_it_cleanly(tmp_path, number):
    server = LiveServer(tmp_path / "state", wait_for_model=False)
    assert server.end(number) == 0
    assert read_state(server.folder) is None
    assert not (server.folder / "page.html").exists()
    assert "Traceback" not in (tmp_path / "state.log").read_text()


def test_a_client_can_end_it(tmp_path):
    server = LiveServer(tmp_path / "state", wait_for_model=False)
    assert server.post("/v1/shutdown", {}).status == 202
    assert server.process.wait(30) == 0
    assert read_state(server.folder) is None
    server.log.close()


def test_tokens_differ():
    assert len({new_token() for _ in range(100)}) == 100


def test_small_answers_are_sent_at_once():
    sent_at_once = []

    async def answer(_, writer):
        accepted = writer.get_extra_info("socket")
        sent_at_once.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async def connect():
        listening = _bound(ServeOptions(port=0))
        async with await asyncio.start_server(answer, sock=listening):
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            await reader.read()
            writer.close()

    asyncio.run(connect())
    assert len(sent_at_once) == 1
    assert sent_at_once[0] != 0
