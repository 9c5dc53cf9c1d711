"""What the page's server refuses, asked over HTTP as a stranger would: other pages, other files, too much."""

import http.client
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from directions.page import guard
from directions.page.session import UPLOAD_LIMIT, Studio
from tests.helpers.page import EVIL, photo

Served = tuple[str, Studio, Path]
SECRET = "nobody may read this"


def ask(served: Served, method: str, path: str, body: object = None, **headers: str) -> tuple[int, str, dict[str, str]]:
    """Status, text and headers of an answer; the path goes out as it is written."""
    connection = http.client.HTTPConnection(urlsplit(served[0]).netloc, timeout=30)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, body, named)  # type: ignore[arg-type]
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace"), dict(answer.getheaders())
    finally:
        connection.close()


def heard(served: Served, function: int, data: list[object], session: str = "stranger") -> str:
    """What Gradio's queue says of a call, as its page would make one."""
    body = json.dumps({"data": data, "fn_index": function, "session_hash": session})
    status, text, _ = ask(served, "POST", "/gradio_api/queue/join", body, content_type="application/json")
    if status != 200:
        return text
    connection = http.client.HTTPConnection(urlsplit(served[0]).netloc, timeout=60)
    connection.request("GET", f"/gradio_api/queue/data?session_hash={session}")
    answer, lines = connection.getresponse(), []
    while line := answer.readline().decode():
        lines.append(line)
        if '"process_completed"' in line or '"close_stream"' in line:
            break
    connection.close()
    return "".join(lines)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.txt"
    path.write_text(SECRET)
    return path


# --- which requests are answered -----------------------------------------------------------------------------------


def test_the_page_is_answered_and_no_other_page_may_frame_or_read_it(served: Served) -> None:
    status, text, headers = ask(served, "GET", "/")
    assert status == 200 and "flowgrad" in text
    assert "frame-ancestors 'none'" in headers["content-security-policy"] and "server" not in headers
    assert headers["cross-origin-resource-policy"] == "same-origin" and headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 400),  # a name that was made to lead here: DNS rebinding
        ({"host": "127.0.0.1.evil.example"}, 400),
        ({"host": "localhost.evil.example:7860"}, 400),
        ({"host": ""}, 400),
        ({"host": "evil.example", "origin": "http://evil.example"}, 400),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),  # another server of this machine
        ({"origin": "null"}, 403),  # a sandboxed frame, a file
        ({"host": "[::1]:7860", "origin": "http://[::1]:7860"}, 200),
        ({"host": "localhost:7860", "origin": "http://localhost:7860"}, 200),
    ],
)
def test_only_the_page_itself_may_post(served: Served, headers: dict[str, str], status: int) -> None:
    before = len(served[1].subjects.things)
    assert ask(served, "POST", "/flowgrad/photo/try?name=x.png", photo(), **headers)[0] == status
    join = ask(served, "POST", "/gradio_api/queue/join", "{}", content_type="text/plain", **headers)
    assert join[0] == (status if status >= 400 else 422)
    assert ask(served, "GET", "/config", **headers)[0] == status
    assert len(served[1].subjects.things) == min(before + (status == 200), served[1].subjects.room)


def test_a_page_for_others_knows_its_machine_by_name_and_address() -> None:
    assert guard.known_names("127.0.0.1")[:3] == ["127.0.0.1", "localhost", "[::1]"]
    assert "[::1]" in guard.known_names("::1") and guard.is_local("127.0.0.2") and not guard.is_local("example.org")
    names = guard.known_names("0.0.0.0")
    assert socket.gethostname().lower() in names and "127.0.0.1" in names and not any("*" in name for name in names)


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file={}",
        "/gradio_api/file%3D{}",
        "/gradio_api/file={}?x=/assets/",
        "/gradio_api//file={}",
        "/gradio_api/file/{}",
        "/file={}",
        "/assets/../gradio_api/file={}",
        "/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..{}",
        "/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e{}",
        "/assets/{}",
        "/assets/%2f{}",
        "/static/../../../../../../../../../../..{}",
        "/static/..\\..\\..\\..{}",
        "/static/{}%00.css",
        "/flowgrad/result/..%2f..%2f..%2f..%2f..{}",
        "/flowgrad/result/{}",
        "/flowgrad/{}",
        "/gradio_api/proxy=file://{}",
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/gradio_api/stream/x/y/z/playlist-file",
        "/?deep_link=../../../../../..{}",
        "/config?deep_link=..{}",
        "/svelte/..%2f..{}",
        "/custom_component/1/client/component/..%2f..{}",
    ],
)
def test_no_file_of_the_machine_is_read(served: Served, secret: Path, path: str) -> None:
    for file in (secret, Path(guard.__file__), Path(sys.executable)):
        status, text, _ = ask(served, "GET", path.format(file))
        shown = status == 200 and path.startswith(("/?", "/config"))  # the page, which asks for no file
        assert (shown or status in (400, 403, 404)) and SECRET not in text and "def guarded(" not in text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/upload"),
        ("POST", "/gradio_api/upload/"),
        ("POST", "/upload"),
        ("GET", "/gradio_api/upload_progress?upload_id=1"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/stream/x"),
        ("POST", "/gradio_api/run/predict"),
        ("POST", "/gradio_api/call/predict"),
        ("POST", "/gradio_api/undo-vibe-edit"),
        ("POST", "/gradio_api/run-history/connect"),
        ("POST", "/login"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/gradio_api/deep_link"),
        ("GET", "/gradio_api/dev/reload"),
        ("GET", "/gradio_api/token"),
        ("GET", "/openapi.json"),
        ("GET", "/monitoring/summary"),
        ("GET", "/docs"),
        ("PUT", "/flowgrad/photo/try"),
        ("POST", "/flowgrad/photo/other"),
        ("POST", "/flowgrad/result/x"),
    ],
)
def test_what_the_page_does_not_ask_for_is_closed(served: Served, method: str, path: str) -> None:
    boundary = "--x\r\nContent-Disposition: form-data; name=files; filename=../../x.png\r\n\r\nx\r\n--x--\r\n"
    status, text, _ = ask(served, method, path, boundary, content_type="multipart/form-data; boundary=x")
    assert status in (404, 405) and "Traceback" not in text
    assert not list(served[2].rglob("*.*"))


# --- too much --------------------------------------------------------------------------------------------------------


def zeros(count: int, memory: list[int]) -> Iterator[bytes]:
    """MiB of zeros, and what this process, which the server is in, holds meanwhile."""
    for _ in range(count):
        memory.append(psutil.Process().memory_info().rss)
        yield bytes(1 << 20)


@pytest.mark.parametrize("path", ["/flowgrad/photo/try", "/gradio_api/queue/join"])
def test_a_body_that_grows_beyond_its_limit_is_not_kept(served: Served, path: str) -> None:
    assert ask(served, "POST", path, b"", content_length=str(1 << 40))[0] == 413  # before anything is sent
    memory: list[int] = []
    status, _, _ = ask(served, "POST", path, zeros(1024, memory))  # it does not say how long it is
    assert status == 413 and max(memory) - memory[0] < UPLOAD_LIMIT + (80 << 20)


def test_few_photos_are_kept_and_trained_on(served: Served) -> None:
    _, studio, _ = served
    tokens = [ask(served, "POST", "/flowgrad/photo/try?name=x.png", photo(8 + i, 8))[1] for i in range(14)]
    assert len(studio.subjects.things) == studio.subjects.room < 14
    status, text, _ = ask(served, "GET", f"/flowgrad/result/{tokens[0]}?direction=old:1")
    assert status == 404 and "no longer in memory" in text
    many = "&".join(f"direction={name}:1" for name in ("old", "smiling", "evil", "a", "b"))
    assert "at most 4" in ask(served, "GET", f"/flowgrad/result/{tokens[-1]}?{many}")[1]


# --- names, tokens and sessions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../../tmp/x.png", "..%2f..%2fx.png", "%00", "/etc/passwd", "C:\\x.png", "x" * 9999]
)
def test_the_name_of_a_sent_photo_is_a_text(served: Served, name: str) -> None:
    status, token, _ = ask(served, "POST", f"/flowgrad/photo/try?name={name}", photo())
    assert status == 200
    status, _, headers = ask(served, "GET", f"/flowgrad/result/{token}?direction=old:1")
    sent = headers["content-disposition"].partition("filename=")[2].strip('"')
    assert status == 200 and headers["cache-control"] == "no-store"
    assert sent.endswith("-edited.png") and not set(sent) & set('/\\:"\r\n\0') and len(sent) < 100
    assert not list(served[2].rglob("*.*"))


@pytest.mark.parametrize(
    "query",
    [
        "direction=../../secret:1",
        "direction=/etc/passwd:1",
        "direction=tiny/old:1",
        "direction=old:nan",
        "direction=old:inf",
        "direction=old:1e40",
        "direction=old:much",
        "direction=old:1&within=nan",
        "direction=old:1&within=-1",
        "direction=%00:1",
        "direction=",
        "direction=unknown:1",
    ],
)
def test_directions_are_those_of_the_bank_at_finite_strengths(served: Served, query: str) -> None:
    token = served[1].sample(0)  # a picture that is edited, whether a face is seen in it or not
    status, text, _ = ask(served, "GET", f"/flowgrad/result/{token}?{query}")
    assert status == 404 and "Traceback" not in text and "Internal" not in text and len(text) < 400


def test_a_link_in_the_bank_shows_nothing_of_what_it_leads_to(served: Served, secret: Path) -> None:
    _, studio, _ = served
    link = studio.bank.folder / studio.model.name / "link.safetensors"
    link.symlink_to(secret)
    try:
        assert "link" not in studio.names()
        status, text, _ = ask(served, "GET", f"/flowgrad/result/{studio.sample(0)}?direction=link:1")
        assert status == 404 and SECRET not in text
        assert SECRET not in ask(served, "GET", "/")[1]
    finally:
        link.unlink()


def test_a_photo_belongs_to_who_knows_its_token(served: Served) -> None:
    first, second = (ask(served, "POST", "/flowgrad/photo/try?name=x.png", photo())[1] for _ in range(2))
    assert first != second and len(first) >= 20
    for guess in ("", "0", first[:-1], first.swapcase(), f"{first}/", "*"):
        assert ask(served, "GET", f"/flowgrad/result/{guess}?direction=old:1")[0] == 404
    config = ask(served, "GET", "/config")[1] + ask(served, "GET", "/")[1]
    assert first not in config and second not in config


def functions(served: Served) -> Iterator[tuple[int, list[str]]]:
    """Each of the page's functions by its number, and the kinds of its inputs."""
    config = json.loads(ask(served, "GET", "/config")[1])
    kinds = {part["id"]: part["type"] for part in config["components"]}
    for function in config["dependencies"]:
        yield function["id"], [kinds[i] for i in function["inputs"]]


@pytest.mark.parametrize(
    "value",
    [
        {"path": "{}", "meta": {"_type": "gradio.FileData"}},
        {"path": "{}", "url": "http://127.0.0.1:1/x", "orig_name": "../../x", "meta": {"_type": "gradio.FileData"}},
        "../../etc/passwd",
        ["../evil", "/etc/passwd"],
        -1e308,
        EVIL,
        None,
    ],
)
def test_what_a_stranger_says_to_the_pages_functions_reads_no_file_and_shows_no_trace(
    served: Served, secret: Path, value: object
) -> None:
    value = json.loads(json.dumps(value).replace("{}", str(secret)))
    for number, kinds in functions(served):
        told = heard(served, number, [None if kind == "state" else value for kind in kinds])
        assert SECRET not in told and "Traceback" not in told and 'File \\"' not in told and "site-packages" not in told
        assert str(secret.parent) not in told
    assert not list(served[2].rglob("*.*"))
    assert not list(served[1].bank.folder.rglob("passwd*"))


def test_no_call_names_a_file_or_an_address_however_it_is_written(served: Served, secret: Path) -> None:
    file = f'{{"p\\u0061th": "{secret}", "meta": {{"_type": "gradio.FileData"}}}}'
    for data in (f"[[{file}]]", f'[{{"a": {file}}}]', "[" * 100_000, "[NaN", "\udcff"):
        raw = f'{{"data": {data}, "fn_index": 3, "session_hash": "x"}}'.encode("utf-8", "surrogateescape")
        for body in (raw, raw.decode("utf-8", "replace").encode("utf-16")):
            assert ask(served, "POST", "/gradio_api/queue/join", body, content_type="application/json")[0] == 400
    assert not list(served[2].rglob("*.*"))


def test_what_went_wrong_inside_is_not_told(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise RuntimeError(SECRET)

    _, studio, _ = served
    monkeypatch.setattr(studio, "sample", fail)
    told = [heard(served, number, [0]) for number, kinds in functions(served) if kinds == ["number"]]
    assert len(told) == 1 and '"success":false' in told[0].replace(" ", "") and SECRET not in told[0]
    monkeypatch.setattr(studio, "_edits", fail)
    token = ask(served, "POST", "/flowgrad/photo/try?name=x.png", photo())[1]
    status, text, _ = ask(served, "GET", f"/flowgrad/result/{token}?direction=old:1")
    assert status == 500 and SECRET not in text and "Traceback" not in text


def test_titles_of_hostile_directions_are_texts_in_the_page(served: Served) -> None:
    _, text, _ = ask(served, "GET", "/")
    assert "<img src=x" not in text and "onerror=alert(1)>" not in text.replace("&gt;", "")
