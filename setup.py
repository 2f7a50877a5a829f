"""What pyproject.toml cannot say: all packages, and the folders of a checkout that a wheel keeps inside `engine`.

See engine/installation.py, which finds them there.
"""

from setuptools import find_packages, setup

PACKAGES = ("engine", "tokenizer", "autoregressive", "evaluations")
FOLDERS = ("configs", "scripts")

setup(
    packages=[
        *find_packages(include=[f"{name}{rest}" for name in PACKAGES for rest in ("", ".*")]),
        *(f"engine.{name}" for name in FOLDERS),
    ],
    package_dir={f"engine.{name}": name for name in FOLDERS},
)
