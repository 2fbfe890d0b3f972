"""A run over two network namespaces: the coordinator and Prefect's server in one, the worker in the other, an S3 store between them.

    sudo python benchmarks/namespaces.py

The worker sees neither the coordinator's files (an empty file system is mounted over them) nor its network, but for two addresses:
Prefect's API and the S3 server. What it leaves is compared, bit for bit, with the same run in one process. Needs Linux, root, `ip`
and `unshare`, and `moto[server]` for the S3-compatible server.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kills import texts

ROOT = Path(__file__).resolve().parent.parent
HERE, THERE, NET = "10.77.0.1", "10.77.0.2", "10.77.0"
COORDINATOR, WORKER = "metake-a", "metake-b"
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def namespaces():
    """Two namespaces with a cable between them."""
    try:
        for name in (COORDINATOR, WORKER):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", "metake0", "netns", COORDINATOR, "type", "veth", "peer", "name", "metake1", "netns", WORKER)
        for name, link, address in ((COORDINATOR, "metake0", HERE), (WORKER, "metake1", THERE)):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
        yield
    finally:
        for name in (COORDINATOR, WORKER):
            with suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)


def inside(name: str, *words: str, hide: Path | None = None) -> list[str]:
    """A command line that runs in a namespace, with an empty file system over a folder that it shall not see."""
    command = ["ip", "netns", "exec", name, *words]
    if hide is None:
        return command
    script = f'mount -t tmpfs none "{hide}" && exec "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *command]


@contextmanager
def background(command: list[str], env: dict[str, str], cwd: Path, log: Path):
    with log.open("w") as file:
        process = subprocess.Popen(command, env=env, cwd=cwd, stdout=file, stderr=file, start_new_session=True)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two, ExitStack() as stack:
        ours, theirs = Path(one), Path(two)
        base = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "METAKE_", "AWS_"))}
        quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "PREFECT_UI_ENABLED": "false", "PYTHONPATH": str(ROOT)}
        shared = base | quiet | KEYS | {"PREFECT_API_URL": f"http://{HERE}:4200/api", "AWS_ENDPOINT_URL": f"http://{HERE}:5000"}
        coordinator = shared | {
            "PREFECT_HOME": str(ours / "prefect"),
            "XDG_CACHE_HOME": str(ours / "cache"),
            "METAKE_DATABASE": str(ours / "metake.duckdb"),
        }
        worker = shared | {"PREFECT_HOME": str(theirs / "prefect"), "XDG_CACHE_HOME": str(theirs / "cache")}
        model = ours / "model"
        small = ["--limit", "12", "--batch-size", "4", "--layers", "2", "--tokens", "4000", "--set", "steps=10", *texts(ours)]
        from metake import demo

        subprocess.run(["cp", "-r", str(demo.model_path()), str(model)], check=True)
        subprocess.run(["cp", str(demo.requests_path()), str(ours / "requests.jsonl.gz")], check=True)
        asked = ["edit", str(ours / "requests.jsonl.gz"), "--model", str(model), *small]
        python, stack_enter = sys.executable, stack.enter_context
        stack_enter(namespaces())
        server = {name: value for name, value in coordinator.items() if name != "PREFECT_API_URL"}
        stack_enter(
            background(inside(COORDINATOR, python, "-m", "prefect", "server", "start", "--host", HERE), server, ROOT, ours / "server.log")
        )
        stack_enter(
            background(inside(COORDINATOR, python, "-m", "moto.server", "-H", HERE, "-p", "5000"), coordinator, ROOT, ours / "s3.log")
        )
        urls = f"'http://{HERE}:4200/api/health', r.Request('http://{HERE}:5000/metake', method='PUT')"  # the second makes the bucket
        ask = f"import urllib.request as r; [r.urlopen(url) for url in ({urls})]"
        deadline = time.monotonic() + 90
        while subprocess.run(inside(COORDINATOR, python, "-c", ask), capture_output=True).returncode:
            assert time.monotonic() < deadline, "the servers did not start"
            time.sleep(1)
        subprocess.run(
            inside(COORDINATOR, python, "-m", "flows.serve", "--deploy-only"), env=coordinator, cwd=ROOT, check=True, capture_output=True
        )
        start = inside(
            WORKER, python, "-m", "prefect", "worker", "start", "--pool", "gpu", "--type", "process", "--name", "there", hide=ours
        )
        stack_enter(background(start, worker, ROOT, theirs / "worker.log"))
        options = ["--home", "s3://metake/home", "--out", str(ours / "out"), "--workers", "targets-shard/targets-shard"]
        clock = time.monotonic()
        done = subprocess.run(
            inside(COORDINATOR, python, "-m", "flows.cli", *asked, *options), env=coordinator, cwd=ours, text=True, stderr=subprocess.PIPE
        )
        assert done.returncode == 0, f"{done.stderr}\n{(theirs / 'worker.log').read_text()[-3000:]}"
        print(done.stderr)
        query = "SELECT DISTINCT worker, list(DISTINCT stage) AS stages FROM stages GROUP BY worker"
        subprocess.run(
            inside(COORDINATOR, python, "-m", "flows.cli", "sql", "--home", "s3://metake/home", query),
            env=coordinator,
            cwd=ours,
            check=True,
        )
        print(f"two namespaces: {time.monotonic() - clock:.0f} s; the coordinator at {HERE}, the worker at {THERE}")
        alone = {name: value for name, value in base.items()} | quiet | {"PREFECT_HOME": str(ours / "prefect-alone")}
        words = [python, "-m", "flows.cli", *asked, "--home", str(ours / "alone"), "--out", str(ours / "alone-out"), "--quiet"]
        subprocess.run(words, env=alone, cwd=ours, check=True, capture_output=True)
        same = digest(ours / "out") == digest(ours / "alone-out")
        verdict = "the same bits" if same else "OTHER BITS"
        print(f"checkpoint {digest(ours / 'out')[:16]}, in one process {digest(ours / 'alone-out')[:16]}: {verdict}")
        return int(not same)


if __name__ == "__main__":
    sys.exit(main())
