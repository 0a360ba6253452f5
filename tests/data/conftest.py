"""Tests of data keep to a cache of their own and to this machine."""

import pytest


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("LM_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a test used the network"))
