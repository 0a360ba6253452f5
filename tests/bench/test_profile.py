"""Operations of a trace, added up without counting anything twice."""

import jax
import jax.numpy as jnp
import pytest

from lm.bench.profile import kind, profile, summarize


def event(name, ts, dur, tid=1, op=True):
    args = {"hlo_op": name} if op else {}
    return {"ph": "X", "pid": 7, "tid": tid, "name": name, "ts": ts, "dur": dur, "args": args}


def test_only_own_time_counts():
    """A loop holds two products and a loop; another thread works at the same time; what is no operation is left out."""
    events = [
        event("lm.bench", 0, 100, op=False),
        event("while.3", 10, 80),
        event("dot.1", 20, 10),
        event("dot.27", 30, 20),
        event("call", 60, 20),
        event("add_fusion.2.clone", 65, 10),
        event("dot.4", 15, 50, tid=2),
        event("end: dot.4", 65, 1, tid=2, op=False),
        {"ph": "M", "pid": 7, "name": "process_name"},
    ]
    found = {o.name: (o.count, o.seconds * 1e6, o.share) for o in summarize(events)}
    assert found == {
        "dot": (3, pytest.approx(80), pytest.approx(0.8)),
        "while": (1, pytest.approx(30), pytest.approx(0.3)),
        "add_fusion": (1, pytest.approx(10), pytest.approx(0.1)),
        "call": (1, pytest.approx(10), pytest.approx(0.1)),
    }
    assert [o.name for o in summarize(events, top=2)] == ["dot", "while"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("dot", "matrix product"), ("add_fusion", "fusion"), ("copy_bitcast_fusion", "fusion with a copy"),
     ("while", "loop"), ("loop_convert_fusion", "fusion"), ("copy", "copy"), ("tanh", "elementwise")],
)  # fmt: skip
def test_names_say_what_an_operation_is(name, said):
    assert kind(name) == said


def test_a_real_trace_names_the_costly_operation(tmp_path):
    """Two traces into one folder: the second is told from the first."""
    step = jax.jit(lambda x, n: jax.lax.fori_loop(0, n, lambda _, x: jnp.tanh(x @ x), x))
    x = jnp.ones((768, 768))  # products grow faster than the rest
    step(x, 1).block_until_ready()
    for n in (1, 20):
        found = profile(lambda n=n: step(x, n).block_until_ready(), tmp_path / "trace")
    assert found[0].kind.startswith("matrix product")
    assert found[0].count >= 20
    assert found == sorted(found, key=lambda o: -o.seconds)
    assert all(0 <= o.share < 3 for o in found)
