"""The benchmarks run: a script that nobody can start measures nothing."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_gpu_benchmark_runs_its_tiny_shapes_on_a_processor():
    """In bfloat16; the script itself refuses to report an edit that is not finite."""
    amounts = ["--requests", "4", "--yardstick", "1", "--steps", "6", "--tokens", "500"]
    command = [sys.executable, "benchmarks/gpu.py", "--shape", "tiny", "--device", "cpu", *amounts]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(\w+): .* in bfloat16", done.stdout, re.MULTILINE) == ["gptj", "llama"]
    assert done.stdout.count("the floor") == done.stdout.count("projection for 10,000 edits") == 2
    moved = [float(value) for value in re.findall(r"moved ([\d.]+)", done.stdout)]
    assert len(moved) == 2 and min(moved) > 0
