"""What pyproject.toml cannot say: the package, and the folder configs/ inside it when it is installed."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["lm", "lm.*"]), "lm.configs"], package_dir={"lm.configs": "configs"})
