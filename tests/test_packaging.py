"""The wheel: holds what an installed `tune` reads, and runs a recipe without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    return next(folder.glob("tunecli-*.whl"))


def relative_files(folder: Path) -> set[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in files}


def test_the_wheel_holds_the_package_the_options_and_the_recipes_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {f"tunecli/{name}" for name in relative_files(ROOT / "tunecli")}
    expected |= {f"tunecli/_configs/{name}" for name in relative_files(ROOT / "configs")}
    expected |= {f"tunecli/_recipes/{name}" for name in relative_files(ROOT / "recipes")}
    assert held == expected
    assert {Path(name).suffix for name in held} >= {".py", ".yaml", ".jsonl", ".jinja"}


def test_both_commands_and_the_licence_are_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name.split(".dist-info/")[1]: name for name in archive.namelist() if ".dist-info/" in name}
        commands = archive.read(names["entry_points.txt"]).decode()
    assert "tune = tunecli.__main__:command\n" in commands
    assert "tunecli = tunecli.__main__:command\n" in commands
    assert "licenses/LICENSE" in names


@pytest.fixture(scope="module")
def clean_environment(wheel, tmp_path_factory) -> Path:
    """A new environment with the wheel in it. It sees the libraries of this one, but not the checkout: the .pth file
    of an editable install counts only in an environment's own site-packages."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-index", "--no-deps", wheel], check=True)
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    purelib = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    Path(purelib.strip(), "libraries.pth").write_text("".join(f"{path}\n" for path in sorted(libraries)))
    return folder


@pytest.mark.slow
def test_an_installed_wheel_runs_a_recipe_from_another_folder(clean_environment, tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"TUNECLI_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}

    def call(*command: str) -> str:
        done = subprocess.run(
            [clean_environment / "bin" / command[0], *command[1:]],
            cwd=tmp_path,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    imported = call("python", "-c", "import tunecli; print(tunecli.__file__)")
    assert Path(imported.strip()).is_relative_to(clean_environment)
    assert "sft_lora_smollm2" in call("tune", "ls")
    call("tunecli", "run", "recipe=smoke_sft_lora", "output_dir=run")
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_size > 0
    assert (tmp_path / "run" / "adapter").is_dir()
