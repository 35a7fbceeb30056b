"""The queue of the CPU kernel's tasks, by a program of its own: task_queue.cpp says what holds."""

import shutil
import subprocess
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "csrc"


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_what_task_queue_cpp_says(tmp_path: Path) -> None:
    program = tmp_path / "task_queue"
    folders = [f"-I{folder}" for folder in (SOURCES, *include_paths())]
    command = ["g++", "-std=c++20", "-O1", "-pthread", *folders]
    command += [HERE / "task_queue.cpp", SOURCES / "expert_tasks.cpp", "-o", program]
    subprocess.run(command, check=True)
    finished = subprocess.run([program], capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (0, "")
