"""The DICOM listener against dcmtk's storescp, Orthanc, and pynetdicom as the original used it, with one client.

Everybody receives the same bytes from dcmtk's dcmsend, TCP_NODELAY on both ends, in turns; medians are compared. CPU
seconds are those of the server's processes from before the first connection until all it took is where it belongs: for
ours, blobs and rows of the catalog.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.intake_objects import Objects, make_objects

NAME = "intake"

REPEATS, REPEATS_FULL = 5, 9
SEND_S = 300.0
START_S = 60.0
ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1", "OMP_NUM_THREADS": "1"}
STUDY, INSTANCE, REFERENCE = "ours, study", "ours, instance", "ours, pynetdicom"
STORESCP, STORESCP_FORK, ORTHANC, ORIGINAL = "storescp", "storescp --fork", "Orthanc", "original"
BARE = "write + fsync"


@dataclass(frozen=True)
class Turn:
    """One set of objects, sent once."""

    seconds: float
    cpu_s: float
    rss_mib: float


class Server:
    """A server process on its port."""

    def __init__(self, command: Sequence[str], port: int, folder: Path, *, talks: bool) -> None:
        self.port = port
        self.folder = folder
        self._talks = talks
        self._process = subprocess.Popen(
            command,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
            stdout=subprocess.PIPE if talks else subprocess.DEVNULL,
            stderr=None if talks else subprocess.DEVNULL,
            text=True,
        )
        self.seen = psutil.Process(self._process.pid)
        if talks:
            assert self._process.stdout is not None
            self.port = int(self._process.stdout.readline())
        else:
            wait_for_port(port)
        self._living = self.seen.children(recursive=True) if talks else []

    def settle(self) -> None:
        """Nothing that was acknowledged is still on its way inside the server."""
        if self._talks:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            if not self._process.stdout.readline():
                raise RuntimeError("a server has ended")

    def cpu_s(self) -> float:
        """CPU seconds of the process, of its children, and of those that have ended."""
        times = [one.cpu_times() for one in (self.seen, *self._living)]
        ended = times[0].children_user + times[0].children_system
        return float(sum(one.user + one.system for one in times) + ended)

    def rss_mib(self) -> float:
        """Resident memory of the process and its children now."""
        return float(sum(one.memory_info().rss for one in (self.seen, *self._living))) / (1 << 20)

    def stop(self) -> None:
        """The process has ended."""
        if self._talks:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            self._process.stdout.close()
        else:
            self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(30)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int) -> None:
    """The port answers.

    Raises:
        TimeoutError: not within START_S.
    """
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"port {port} does not answer")


def start(name: str, root: Path, talking: str = "") -> Server:
    """The server called `name`, in a folder of its own; `talking` is what bench.intake_server calls it."""
    folder = root / name.replace(" ", "_").replace(",", "")
    folder.mkdir()
    if talking:
        command = [sys.executable, "-m", "bench.intake_server", talking, str(folder), "0"]
        return Server(command, 0, folder, talks=True)
    port = free_port()
    if name == ORTHANC:
        config = folder / "orthanc.json"
        config.write_text(
            json.dumps(
                {
                    "StorageDirectory": str(folder / "storage"),
                    "IndexDirectory": str(folder / "storage"),
                    "DicomAet": "HEIMDALLR",
                    "DicomPort": port,
                    "HttpServerEnabled": False,
                    "SyncStorageArea": True,
                    "DicomCheckCalledAet": False,
                    "Plugins": [],
                }
            )
        )
        return Server(["/usr/sbin/Orthanc", str(config)], port, folder / "storage", talks=False)
    fork = ["--fork"] if name == STORESCP_FORK else []
    return Server(["/usr/bin/storescp", *fork, "+B", "-od", str(folder), str(port)], port, folder, talks=False)


def send(port: int, folders: Sequence[Path]) -> float:
    """Wall seconds until dcmsend has sent each of `folders`, all at once, one association each.

    Raises:
        RuntimeError: an object was not answered Success.
    """
    command = ["/usr/bin/dcmsend", "-aec", "HEIMDALLR", "127.0.0.1", str(port), "--scan-directories"]
    began = time.perf_counter()
    clients = [
        subprocess.Popen([*command, str(folder)], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for folder in folders
    ]
    said = [client.communicate(timeout=SEND_S)[1] for client in clients]
    seconds = time.perf_counter() - began
    if any(client.returncode for client in clients):
        raise RuntimeError(f"dcmsend: {b' '.join(said)[:500]!r}")
    return seconds


def turn(server: Server, folders: Sequence[Path]) -> Turn:
    """The objects of `folders` sent to `server` once."""
    os.sync()
    before = server.cpu_s()
    seconds = send(server.port, folders)
    server.settle()
    return Turn(seconds, server.cpu_s() - before, server.rss_mib())


def bare(objects: Objects, root: Path, threads: int) -> Turn:
    """The same bytes written and fsynced file by file, as many at once as there were associations."""
    # Nothing is deleted between turns: ext4 gives the inodes of deleted files to nobody for minutes, and looking for
    # others would count as CPU seconds of whoever makes the next file.
    folder = Path(tempfile.mkdtemp(prefix="bare-", dir=root))
    contents = [path.read_bytes() for path in objects.paths()]
    os.sync()

    def write(part: int) -> None:
        for index in range(part, len(contents), threads):
            fd = os.open(folder / str(index), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            os.write(fd, contents[index])
            os.fsync(fd)
            os.close(fd)

    writers = [threading.Thread(target=write, args=(part,)) for part in range(threads)]
    cpu, began = time.process_time(), time.perf_counter()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(SEND_S)
    return Turn(time.perf_counter() - began, time.process_time() - cpu, 0.0)


def run(full: bool) -> Iterator[dict[str, object]]:
    """Yield figures of both sets of objects, with one and with four associations."""
    with tempfile.TemporaryDirectory(prefix="intake-", dir=os.environ.get("BENCH_DIR")) as name, ExitStack() as stack:
        root = Path(name)
        servers: dict[str, Server] = {}
        for who, talking in (
            (STUDY, "study"),
            (INSTANCE, "instance"),
            (REFERENCE, "instance/pynetdicom"),
            (STORESCP, ""),
            (STORESCP_FORK, ""),
            (ORTHANC, ""),
            (ORIGINAL, "original"),
        ):
            servers[who] = start(who, root, talking)
            stack.callback(servers[who].stop)
        for what, size in (("ct", 512), ("small", 64)):
            objects = make_objects(root / what, 300, size)
            for associations in (1, 4):
                found = measure(servers, objects, root, associations, REPEATS_FULL if full else REPEATS)
                yield from figures(found, objects, what, associations)


def measure(
    servers: dict[str, Server], objects: Objects, root: Path, associations: int, repeats: int
) -> dict[str, list[Turn]]:
    """Turns of everybody, one after the other, the first of each left out as its warm-up."""
    left_out = STORESCP if associations > 1 else STORESCP_FORK
    contenders: dict[str, Callable[[], Turn]] = {BARE: lambda: bare(objects, root, associations)}
    for who, server in servers.items():
        if who != left_out:
            contenders[who] = lambda server=server: turn(server, objects.renewed(associations))
    found: dict[str, list[Turn]] = {who: [] for who in contenders}
    for repeat in range(repeats + 1):
        for who, once in contenders.items():
            measured = once()
            if repeat:
                found[who].append(measured)
    return found


def figures(
    found: dict[str, list[Turn]], objects: Objects, what: str, associations: int
) -> Iterator[dict[str, object]]:
    """The figures of one set of objects and one number of associations."""
    count, gigabytes = len(objects), objects.size / 1e9
    rate = {who: statistics.median(count / turn.seconds for turn in turns) for who, turns in found.items()}
    # Of all turns together: the kernel counts in hundredths of a second, and a turn may take eight of them.
    cpu = {who: sum(turn.cpu_s for turn in turns) / (gigabytes * len(turns)) for who, turns in found.items()}
    rss = {who: max(turn.rss_mib for turn in turns) for who, turns in found.items()}
    storescp = STORESCP if STORESCP in found else STORESCP_FORK
    where = f"{what}_{associations}"

    def figure(name: str, value: float, unit: str, peer: str, peer_value: float, bar: str) -> dict[str, object]:
        return {
            "figure": name,
            "value": round(value, 4),
            "unit": unit,
            "peer": peer,
            "peer_value": round(peer_value, 4),
            "bar": bar,
        }

    suffix = "" if where == "ct_1" else f".{where}"
    yield figure(f"intake.study.inst_s_vs_storescp{suffix}", rate[STUDY], "inst/s", storescp, rate[storescp], ">=0.9")
    yield figure(f"intake.study.cpu_vs_storescp{suffix}", cpu[STUDY], "CPU s/GB", storescp, cpu[storescp], "<=1.5")
    yield figure(f"intake.study.inst_s_vs_original{suffix}", rate[STUDY], "inst/s", ORIGINAL, rate[ORIGINAL], ">=4")
    yield figure(
        f"intake.instance.time_vs_bare_fsync{suffix}", 1e3 / rate[INSTANCE], "ms/inst", BARE, 1e3 / rate[BARE], "<=1.5"
    )
    yield figure(
        f"intake.instance.inst_s_vs_orthanc{suffix}", rate[INSTANCE], "inst/s", ORTHANC, rate[ORTHANC], ">=1.2"
    )
    for who in found:
        label = who.replace(", ", "_").replace(" --", "_").replace(" ", "").replace("+", "_")
        yield {"figure": f"intake.{label}.inst_s.{where}", "value": round(rate[who], 1), "unit": "inst/s"}
        megabytes = rate[who] * objects.size / count / 1e6
        yield {"figure": f"intake.{label}.mb_s.{where}", "value": round(megabytes, 1), "unit": "MB/s"}
        yield {"figure": f"intake.{label}.cpu_s_per_gb.{where}", "value": round(cpu[who], 3), "unit": "CPU s/GB"}
        if who != BARE:
            yield {"figure": f"intake.{label}.rss_mib.{where}", "value": round(rss[who], 1), "unit": "MiB"}
