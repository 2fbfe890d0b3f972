"""The benchmarks run: a script that nobody can start measures nothing."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def test_a_front_at_the_floor_is_its_best_point_there_or_a_line_between_neighbours():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from fronts import at_floor
    finally:
        sys.path.pop(0)

    def front(*points: tuple[float, float]) -> list[dict]:
        return [{"after": {"specificity_success": x, "harmonic_success": y}} for x, y in points]

    assert at_floor(front((0.8, 0.7), (0.89, 0.6))) is None and at_floor([]) is None
    assert at_floor(front((0.99, 0.3), (0.95, 0.5))) == (50.0, 95.0), "it ended above the floor"
    assert at_floor(front((0.95, 0.5), (0.85, 0.7), (0.80, 0.9))) == pytest.approx((60.0, 90.0)), "neighbours only"
    assert at_floor(front((0.95, 0.5), (0.85, 0.4))) == (50.0, 95.0), "the line falls"


@pytest.mark.slow
def test_the_bystanders_benchmark_runs():
    done = subprocess.run([sys.executable, "benchmarks/bystanders.py", "--requests", "3"], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if line.startswith("| ")]) > 3


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
