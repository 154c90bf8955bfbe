import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_lectures_program_reaches_its_own_target() -> None:
    script = EXAMPLES / "mnist_lecture.py"
    done = subprocess.run(
        [sys.executable, script, "mnist-5k"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "epoch 10 " in done.stdout
