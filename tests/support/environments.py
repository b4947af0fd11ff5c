"""A fresh virtual environment with musubi's own wheel in it, for plugins to be installed beside."""

import contextlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from commands import Ran

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "examples" / "plugins"
CONSTRAINTS = ROOT / "constraints.txt"


@dataclass
class Environment:
    """A virtual environment with musubi's own wheel in it, and a folder of wheels beside it."""

    folder: Path

    @property
    def path(self):
        return f"{self.folder / 'venv' / 'bin'}:/usr/bin:/bin"

    def run(self, *args, cwd=None, **env):
        """Run a command of the environment, with nothing of ours around it."""
        done = subprocess.run(
            [shutil.which(args[0], path=self.path), *map(str, args[1:])],
            cwd=cwd or self.folder,
            env={"PATH": self.path, "HOME": os.environ.get("HOME", "/"), **env},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def pip(self, *args, **how):
        ran = self.run("python", "-m", "pip", "-q", "--disable-pip-version-check", *args, **how)
        assert ran.code == 0, ran.err

    def wheel(self, project):
        """Build a project's wheel from a copy, so that nothing is left in it."""
        copy = self.folder / "source" / project.name
        ignored = shutil.ignore_patterns(".*", "tests", "benchmarks", "__pycache__")
        shutil.copytree(project, copy, ignore=ignored)
        built = self.folder / "wheels" / project.name
        self.pip("wheel", "--no-deps", "--no-build-isolation", "-w", built, copy)
        shutil.rmtree(copy)
        (wheel,) = built.iterdir()
        return wheel

    @contextlib.contextmanager
    def plugin(self, *names):
        """Have sample plugins installed for a while."""
        wheels = [self.wheel(SAMPLES / name) for name in names]
        self.pip("install", "--no-deps", *wheels)
        try:
            yield
        finally:
            self.pip("uninstall", "-y", *names)
            shutil.rmtree(self.folder / "wheels")


def fresh(folder):
    """Make one, with the example's run and photos beside it."""
    made = Environment(folder)
    subprocess.run([sys.executable, "-m", "venv", made.folder / "venv"], check=True)
    made.pip("install", "-c", CONSTRAINTS, "hatchling", "editables", "pytest")
    made.pip("install", "-c", CONSTRAINTS, made.wheel(ROOT))
    shutil.rmtree(made.folder / "wheels")
    shutil.copytree(ROOT / "examples" / "run", made.folder / "run")
    shutil.copytree(ROOT / "examples" / "photos", made.folder / "photos")
    return made
