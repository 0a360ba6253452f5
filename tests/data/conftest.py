"""Tests of data keep to a cache of their own and to this machine."""

import socket

import pytest


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("LM_CACHE", str(tmp_path_factory.mktemp("cache")))
    connect = socket.socket.connect

    def connect_here(own, address):
        if address[0] != "127.0.0.1":
            pytest.fail("a test used the network")
        return connect(own, address)

    monkeypatch.setattr("socket.socket.connect", connect_here)
