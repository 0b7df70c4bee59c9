"""A server is ready when its own process responds, not another one on its port."""

import http.server
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cupola_flows.servers.processes import wait_for
from cupola_platform.errors import ServiceError


def test_another_server_on_the_port_is_not_mistaken_for_the_one_that_failed_to_start(tmp_path: Path) -> None:
    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{other.server_address[1]}/"
    ours = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"])
    with pytest.raises(ServiceError, match=r"^ours exited before it responded"):
        wait_for(url, ours.pid, lambda: ours.poll() is None, "ours", tmp_path / "log")
    other.shutdown()


def test_a_server_in_a_child_process_is_ready(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys; subprocess.run([sys.executable, '-m', 'http.server', sys.argv[1], '-b', '127.0.0.1'])"
    )
    probe = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    port = probe.server_address[1]
    probe.server_close()
    ours = subprocess.Popen([sys.executable, "-c", script, str(port)], cwd=tmp_path, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/", ours.pid, lambda: ours.poll() is None, "ours", tmp_path / "log")
    finally:
        subprocess.run(["pkill", "-s", str(ours.pid)], check=False)
        ours.wait()
