"""Packages that tests compare with, where they are installed."""

import importlib
import os

import pytest


def library(name):
    """The module; without it the test is skipped, but fails where LM_REQUIRE_PARITY=1 demands it."""
    if os.environ.get("LM_REQUIRE_PARITY") == "1":
        return importlib.import_module(name)
    return pytest.importorskip(name)
