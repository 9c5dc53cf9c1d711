"""Processes that share work, as torchrun starts them, but with nobody who ends the others when one dies."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers.paths import ROOT

QUIET = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def start(count: int, folder: Path, *command: object) -> "list[subprocess.Popen[str]]":
    """Start `python -m COMMAND` in a folder as so many processes; what they print can be read from them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**QUIET, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, "-m", *map(str, command)],
            cwd=folder,
            env={**os.environ, **{k: str(v) for k, v in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]


def ended(processes: "list[subprocess.Popen[str]]", seconds: float = 300) -> list[tuple[int, str]]:
    """The exit code of each process and what it printed. Raises TimeoutExpired, and ends them, if one does not end."""
    try:
        printed = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, printed, strict=True)]


def most_memory(process: "subprocess.Popen[bytes]", seconds: float) -> int:
    """The most bytes that a process has had when it ends, or after some seconds; 0 where the system does not tell."""
    peak, deadline = 0, time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        peak = max(peak, _high_water(process.pid))
        time.sleep(0.05)
    return peak


def _high_water(process: int) -> int:
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except OSError:  # it has ended, or this is no Linux
        return 0
    return int(found[1]) << 10 if found else 0
