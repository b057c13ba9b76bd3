"""The server of reports: what it lists and answers, and to whom."""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading

import pytest

from cbst_mx.errors import ConfigError
from cbst_mx.report.server import open_server
from cbst_mx.report.story import find_below
from tests.report_runs import write_data, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("server")
    truths = write_data(root / "data", images=2)
    write_run(root / "runs" / "cbst" / "seed-0", root / "data", truths)
    write_run(root / "runs" / "st", root / "data", truths, method="st", rounds=3, done=1)
    (root / "runs" / "broken").mkdir()
    (root / "runs" / "broken" / "manifest.json").write_text("{}")
    (root / "secret.txt").write_text("secret")
    return root


@pytest.fixture(scope="module")
def server(runs):
    with open_server([runs / "runs"], port=0, images=2) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def ask(server, path, host=None, method="GET"):
    """Return status, headers and text of an answer."""
    address, port = server.server_address[:2]
    connection = http.client.HTTPConnection(address, port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", f"{address}:{port}" if host is None else host)
    connection.endheaders()
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, answer.headers, text


def test_it_lists_runs_and_why_one_cannot_be_read(server, runs):
    status, _, text = ask(server, "/")
    assert status == 200
    assert "3 runs" in text
    assert "round 1 of 3" in text
    assert "not finished" in text
    assert re.search(r"broken</th><td[^>]*>[^<]*experiment.yaml", text)


def test_a_report_of_two(server, runs):
    keys = {path.name: key for key, path in server.found().items()}
    status, headers, text = ask(server, f"/report?run={keys['seed-0']}&run={keys['st']}")
    assert status == 200
    assert "CBST gained" in text and "after 1 of 3 rounds" in text  # noqa: PT018
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Cache-Control"] == "no-store"
    assert text == ask(server, f"/report?run={keys['seed-0']}&run={keys['st']}")[2]


def test_the_state_changes_when_a_round_ends(server, runs):
    (key,) = [key for key, path in server.found().items() if path.name == "st"]
    before = ask(server, f"/state?run={key}")[2]
    assert ask(server, f"/state?run={key}")[2] == before
    path = runs / "runs" / "st" / "round-1" / "evaluation.json"
    path.write_text(path.read_text() + " ")
    assert ask(server, f"/state?run={key}")[2] != before


@pytest.mark.parametrize(
    "path",
    ["/secret.txt", "/../secret.txt", "/%2e%2e/secret.txt", "/report/../../secret.txt", "//etc/passwd", "/etc/passwd"],
)
def test_no_file_can_be_asked_for(server, path):
    status, _, text = ask(server, path)
    assert status == 404
    assert "secret" not in text.replace("secret.txt", "")


@pytest.mark.parametrize(
    "query", ["", "?run=", "?run=../secret", "?run=" + "0" * 12, "?" + "run=a&" * 2000], ids=range(5)
)
def test_a_run_is_asked_for_by_its_key(server, query):
    status, _, text = ask(server, f"/report{query}")
    assert status == 409
    assert "tick at least one run" in text or "run must be the key" in text or "Max number of fields" in text
    assert '<a href="/">' in text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "127.0.0.1:1"])
def test_other_names_for_this_machine_are_refused(server, host):
    status, _, text = ask(server, "/", host)
    assert status == 403
    assert "runs" not in text


def test_its_own_names_are_answered(server):
    port = server.server_address[1]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost", f"LOCALHOST:{port}"):
        assert ask(server, "/", host)[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_only_reads(server, method):
    assert ask(server, "/", method=method)[0] == 501


def test_head_has_no_page(server):
    status, headers, text = ask(server, "/", method="HEAD")
    assert (status, text) == (200, "")
    assert int(headers["Content-Length"]) > 1000


def test_nothing_is_written(runs, server):
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    for key in server.found():
        ask(server, f"/report?run={key}")
    ask(server, "/")
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


def test_it_listens_at_this_machine_only(server):
    assert server.server_address[0] == "127.0.0.1"
    assert server.address.startswith("http://127.0.0.1:")


def test_a_port_in_use_is_one_sentence(runs):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"host and port must be free to listen at, got 127.0.0.1 and {port}: "):
            open_server([runs], port=port)
    with pytest.raises(ConfigError, match="host and port must be free to listen at, got no.such.host.invalid"):
        open_server([runs], host="no.such.host.invalid")


def test_links_are_not_followed(runs, tmp_path):
    (tmp_path / "link").symlink_to(runs / "runs", target_is_directory=True)
    assert find_below([tmp_path]) == {}
    assert len(find_below([runs])) == 3


def test_a_server_that_listens_everywhere_answers_to_addresses_but_not_to_names(runs):
    with open_server([runs / "runs"], host="0.0.0.0", port=0) as found:
        port = found.server_address[1]
        for host in ("192.0.2.7", f"192.0.2.7:{port}", f"[2001:db8::1]:{port}"):
            assert found.answers(host)
        assert not found.answers("evil.example")
        assert not found.answers(f"evil.example:{port}")
        assert "0.0.0.0" not in found.address
    with open_server([runs / "runs"], port=0) as found:
        assert not found.answers("192.0.2.7")


def test_who_goes_away_is_no_error(server, capfd):
    address = server.server_address[:2]
    key = next(iter(server.found()))
    for _ in range(3):
        with socket.create_connection(address) as one:
            one.sendall(f"GET /report?run={key} HTTP/1.1\r\nHost: 127.0.0.1:{address[1]}\r\n\r\n".encode())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
    assert ask(server, "/")[0] == 200
    assert capfd.readouterr().err == ""
