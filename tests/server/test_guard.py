import http.client
import json
import socket

import pytest
from live_server import IHC

ROUTES = [
    ("GET", "/"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/health"),
    ("GET", "/v1/models"),
    ("POST", "/v1/model"),
    ("POST", "/v1/images"),
    ("POST", "/v1/images/pixels"),
    ("GET", "/v1/images/img-1"),
    ("DELETE", "/v1/images/img-1"),
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/jobs/job-1"),
    ("DELETE", "/v1/jobs/job-1"),
    ("GET", "/v1/jobs/job-1/result"),
    ("GET", "/v1/jobs/job-1/picture"),
    ("POST", "/v1/prompt"),
    ("POST", "/v1/untouched"),
    ("POST", "/v1/runs/1/withdrawn"),
    ("POST", "/v1/shutdown"),
    ("GET", "/nothing/here"),
    ("OPTIONS", "/v1/jobs"),
    ("HEAD", "/"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_refuses_strangers(live, method, path):
    def status(**more):
        return live.ask(method, path, **more).status

    assert status(token=False) == 401
    assert status(token=False, headers={"Authorization": "Bearer wrong"}) == 401
    assert status(token=False, headers={"Authorization": live.state["token"]}) == 401
    assert status(token=False, headers={"Authorization": "Bearer \xe9\xe8"}) == 401
    assert status(headers={"Host": "evil.example"}) == 403
    assert status(headers={"Host": "127.0.0.1.evil.example:80"}) == 403
    assert status(headers={"Host": ""}) == 403
    assert status(headers={"Origin": "https://evil.example"}) == 403
    assert status(headers={"Origin": "null"}) == 403
    assert status(headers={"X-PathoSAM-Protocol": "99"}) == 426


@pytest.mark.parametrize(
    "path", [*sorted({path for _, path in ROUTES}), "/v1", "/docs/", "/v1/../v1/health", "//", "/?"]
)
def test_every_method_of_every_path_refuses_strangers(live, path):
    """Whether the route exists, whether it has the method."""
    for method in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "ODD"):
        assert live.ask(method, path, token=False).status == 401
        assert live.ask(method, path, headers={"Host": "evil.example"}).status == 403
        assert live.ask(method, path, headers={"Origin": "http://evil.example"}).status == 403
        preflight = {"Access-Control-Request-Method": "POST", "Origin": "https://evil.example"}
        refused = live.ask(method, path, headers=preflight)
        assert refused.status == 403
        assert not [name for name in refused.headers if name.startswith("access-control")]


def plain(live, *lines):
    """The status of a request whose head is sent as it is."""
    host, _, port = live.host.partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        return int(connection.makefile("rb").readline().split()[1])


def test_heads_that_no_library_sends_are_refused(live):
    token, own = f"Authorization: Bearer {live.state['token']}", f"Host: {live.host}"
    line = "GET /v1/health HTTP/1.1"
    assert plain(live, line, own, token) == 200
    assert plain(live, "GET /v1/health HTTP/1.0", token) == 403
    assert plain(live, line, own, "Host: evil.example", token) in (400, 403)
    assert plain(live, line, f"Host: user@{live.host}", token) in (400, 403)
    assert plain(live, line, f"Host: {live.host}.evil.example", token) in (400, 403)
    assert plain(live, line, "Host: 127.1", token) == 403
    assert plain(live, line, own, token, "Authorization: Bearer x") == 401
    assert plain(live, line, own, token, "Origin: null", f"Origin: http://{live.host}") == 403
    assert plain(live, "GET http://evil.example/v1/health HTTP/1.1", own) in (400, 401, 403, 404)
    assert plain(live, "OPTIONS * HTTP/1.1", own) in (400, 401)
    upgrade = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    assert plain(live, line, own, *upgrade, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==") == 401


def test_every_route_of_the_document_is_in_the_list_above(live):
    document = live.get("/openapi.json").json
    listed = {
        (
            method,
            path.replace("img-1", "{image}").replace("job-1", "{job}").replace("/1/", "/{run}/"),
        )
        for method, path in ROUTES
    }
    documented = {
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    }
    assert documented <= listed


def test_own_names_and_own_origin_are_welcome(live):
    port = live.host.rpartition(":")[2]
    for host in (
        f"127.0.0.1:{port}",
        f"localhost:{port}",
        "localhost",
        "LOCALHOST:9000",
        "[::1]:1",
    ):
        assert live.get("/v1/health", headers={"Host": host}).status == 200
        own = {"Host": host, "Origin": f"http://{host}"}
        assert live.get("/v1/health", headers=own).status == 200


def test_answers_name_the_protocol_and_the_remedy(live):
    refused = live.get("/v1/health", token=False)
    assert refused.headers["x-pathosam-protocol"] == "1"
    assert refused.headers["www-authenticate"] == "Bearer"
    assert set(refused.json["error"]) == {"subject", "cause", "remedy", "code"}
    old = live.get("/v1/health", headers={"X-PathoSAM-Protocol": "2"})
    assert old.code == "protocol_mismatch"
    assert "same version" in old.json["error"]["remedy"]
    assert live.get("/v1/health", headers={"X-PathoSAM-Protocol": "1"}).status == 200


def test_a_declared_body_is_refused_before_it_is_read(live):
    connection = http.client.HTTPConnection(live.host, timeout=30)
    connection.putrequest("POST", "/v1/jobs")
    connection.putheader("Authorization", f"Bearer {live.state['token']}")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())["error"]["code"] == "too_large"
    connection.close()


def test_a_chunked_body_without_a_length_is_cut_off(live):
    def endless():
        for _ in range(60):
            yield b" " * (1 << 20)

    connection = http.client.HTTPConnection(live.host, timeout=30)
    headers = {
        "Authorization": f"Bearer {live.state['token']}",
        "Content-Type": "application/json",
        "Transfer-Encoding": "chunked",
    }
    try:
        connection.request("POST", "/v1/jobs", endless(), headers, encode_chunked=True)
        status = connection.getresponse().status
    except (BrokenPipeError, ConnectionResetError):
        status = 413  # it closed the connection while we were still sending
    finally:
        connection.close()
    assert status == 413
    assert live.get("/v1/health").status == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 200_000, b"\xff\xfe", b"null", b"NaN", b"{}"])
def test_bodies_that_are_no_requests_are_refused(live, body):
    answer = live.ask("POST", "/v1/jobs", raw=body, headers={"Content-Type": "application/json"})
    assert answer.status in (400, 422)
    assert answer.json["error"]["remedy"]


def test_the_page_trades_the_token_for_a_cookie_that_can_look_and_cancel_only(live):
    assert live.get("/?token=wrong", token=False).status == 401
    welcome = live.get(f"/?token={live.state['token']}", token=False)
    assert welcome.status == 200
    text = welcome.headers["set-cookie"]
    assert "HttpOnly" in text
    assert "SameSite=Strict" in text
    assert live.state["token"] not in text
    cookie = {"Cookie": text.partition(";")[0]}
    for path in ("/", "/v1/jobs", "/v1/health", "/docs"):
        assert live.get(path, token=False, headers=cookie).status == 200
    assert live.ask("DELETE", "/v1/jobs/none", token=False, headers=cookie).status == 404
    assert live.ask("DELETE", "/v1/images/none", token=False, headers=cookie).status == 401
    opening = {"path": str(IHC)}
    assert live.post("/v1/images", opening, token=False, headers=cookie).status == 401
    assert live.post("/v1/shutdown", {}, token=False, headers=cookie).status == 401


def test_the_token_opens_nothing_but_the_page_by_its_address(live):
    assert live.get(f"/v1/health?token={live.state['token']}", token=False).status == 401


def test_nothing_is_loaded_from_elsewhere(live):
    for path in ("/", "/docs"):
        page = live.get(path)
        assert b"://" not in page.body.replace(b"http://www.w3.org", b"")
        assert "default-src 'none'" in page.headers["content-security-policy"]
