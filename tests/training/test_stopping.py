"""Being told to stop where it matters most: in the middle of an evaluation, and while the first program compiles."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from tiny import logged

from lm.run import Run
from lm.training import loop
from lm.training.loop import train
from lm.training.stopping import stop_signals


@pytest.mark.parametrize("step", [0, 30, 60])
def test_an_evaluation_is_cut_short_and_made_up_for(tiny_run, corpus, tmp_path, monkeypatch, step):
    """30 is due for all: evaluation, checkpoint. The run is saved there; going on, it tells what it had not told.

    Whoever has come to the end takes the time for its last evaluation.
    """
    figures = loop.validation_figures

    def told(member, here, *arguments):
        if here == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return figures(member, here, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "validation_figures", told)
        run = train(tiny.experiment(corpus), folder=tmp_path, display=False)
    assert run.reached == step and run.finished == (step == 60)
    assert (logged(run)[-1:] == logged(tiny_run)[-1:]) == (step == 60)
    run = train(tiny.experiment(corpus), folder=tmp_path, display=False)
    assert [record["step"] for record in logged(run)] == [record["step"] for record in logged(tiny_run)]
    for mine, theirs in zip(logged(run), logged(tiny_run), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)


COMPILING = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
import tiny
from lm.training import loop, pack, stopping

def compile(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)  # as a compiler it lets nobody in

stopping.PATIENCE = 0.2
pack.Pack.compile = compile
loop.train(tiny.experiment(sys.argv[2]), folder=sys.argv[3], display=False)
"""


def test_a_signal_in_the_first_compilation_ends_the_run_at_once(tiny_run, corpus, tmp_path):
    """Status 75 and one line, without waiting for the compiler; the same run is trained as if nothing had been."""
    words = [sys.executable, "-c", COMPILING, str(Path(tiny.__file__).parent), str(corpus), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=50)
    assert done.returncode == 75, done.stderr
    assert done.stderr == "lm: stopped before there was anything new to save; the same command goes on\n"
    assert Run(tmp_path / "tiny").steps() == []
    assert logged(train(tiny.experiment(corpus), folder=tmp_path, display=False)) == logged(tiny_run)


def test_a_second_sigterm_does_not_end_what_is_being_saved():
    """Clusters send several; a second Ctrl-C is a person's, and acts as usual."""
    with stop_signals() as stop:
        assert not stop
        stop.unsaved = True
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.numbers == [signal.SIGTERM, signal.SIGTERM, signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


BEGINNING = """
import gc, os, signal, sys
from lm.training.stopping import end_when_told_to_stop

end_when_told_to_stop()
sys.modules["jax"] = None  # which is only half imported when the signal comes
gc.callbacks.append(lambda *_: os.kill(os.getpid(), signal.SIGTERM))
gc.collect()
"""


def test_before_training_begins_sigterm_ends_with_75():
    """Wherever it comes: JAX is called back at each garbage collection, where an exception would be lost."""
    done = subprocess.run([sys.executable, "-c", BEGINNING], capture_output=True, text=True, timeout=50)
    assert done.returncode == 75 and done.stderr.startswith("lm: stopped before"), done.stderr
