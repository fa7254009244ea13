"""Builds the wheel, compares it with the tree, and uses it alone: in a fresh environment per interpreter.

    python .ci/wheel_test.py python3.10 python3.13     what `make wheel-test PYTHONS="python3.10 python3.13"` runs

Each environment gets the wheel and what it asks for, under constraints.txt, and no file of this repository: it shows the
version, runs the demo, fits and inspects an editor from the shell, and runs the first code of the README.
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH_INDEX = os.environ.get("TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
BLOCK = re.compile(r"^(?P<before>[^\n]*)\n```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def main() -> None:
    """Fails on the first thing that does not work."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = built(Path(folder))
        missing = sorted(tracked() - packed(wheel))
        if missing:
            sys.exit(f"The wheel lacks {', '.join(missing)}.")
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, no file of sea_lens/ is missing", flush=True)
        for number, python in enumerate(sys.argv[1:] or [sys.executable]):
            use(wheel, python, Path(folder) / f"environment-{number}")


def built(folder: Path) -> Path:
    """The wheel, made in a folder."""
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def tracked() -> set[str]:
    """The files of the package that git knows."""
    return set(run("git", "-C", ROOT, "ls-files", "sea_lens").split())


def packed(wheel: Path) -> set[str]:
    """The files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def first_code() -> str:
    """The first code of the README that needs no model from the hub."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return next(match["code"] for match in BLOCK.finditer(readme) if "not run" not in match["before"])


def use(wheel: Path, python: str, environment: Path) -> None:
    """Installs the wheel alone and works with it, outside of the repository."""
    run(python, "-m", "venv", environment)
    own, elsewhere = environment / "bin" / "python", environment / "elsewhere"
    elsewhere.mkdir()
    pip = [own, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    run(*pip, "--no-deps", "--retries", "1", "--extra-index-url", TORCH_INDEX, "torch")  # no gigabytes of CUDA
    run(*pip, wheel)
    run(own, "-m", "pip", "check")
    shell = environment / "bin" / "sea-lens"
    said = run(shell, "--version", cwd=elsewhere).strip()
    run(shell, "demo", "--random-editors", "2", cwd=elsewhere)
    run(shell, "fit", "mean-difference", "organism", "organism", "--n", "60", "--layers", "2", cwd=elsewhere)
    run(shell, "inspect", "editor", cwd=elsewhere)
    printed = run(own, "-c", first_code(), cwd=elsewhere).strip()
    print(f"{run(own, '--version').strip()}: {said}; the README prints {printed.splitlines()[-1]}", flush=True)
    run("rm", "-r", environment)


def run(*words: object, cwd: Path | None = None) -> str:
    """What a program prints; its errors end this one."""
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
