"""One compiled program serves all experiments that differ only in what it traces, or never asks for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm import settings
from lm.training.programs import make_train_steps, many_steps
from lm.training.step import TRACED_OR_UNUSED, hyperparameters, init_state, static

OTHERS = dict(
    name="other", optimizer__learning_rate=0.5, optimizer__matrix_learning_rate=0.25, optimizer__weight_decay=0.7,
    optimizer__clip=None, schedule__warmup=7, schedule__decay="7%", schedule__final=0.3, train__seed=3,
    train__z_loss=0.1, train__diverged=7.0, train__steps=77, train__log_every=3, train__eval_every=9,
    train__eval_tokens=64, train__checkpoint_every=4, train__keep=5, train__trackers=["wandb"], data__corpus="other",
    data__text_field="other", data__separator="", data__tokenizer="bytes", data__vocab=300, data__validation=0.2,
    data__validation_corpus="other", train__start="other", schedule__context_start=4, schedule__context_growth="30%",
)  # fmt: skip


def experiment(**changes):
    return tiny.experiment("unused", model__vocab=21, optimizer__name="muon", model__dropout=0.1, **changes)


def test_what_is_traced_or_unused_leaves_no_trace_in_the_program():
    """Every such setting has another value: the text of the program is the same, to the last constant."""
    one, other = experiment(), experiment(**OTHERS)
    flat = [settings.flatten(settings.to_dict(e)) for e in (one, other)]
    assert {key for key in flat[0] if flat[0][key] != flat[1][key]} == TRACED_OR_UNUSED

    def program(e) -> str:
        state, hyper = jax.eval_shape(lambda: init_state(e)), hyperparameters(e, e.steps(1000))
        tokens, starts = jax.ShapeDtypeStruct((1000,), jnp.uint16), jax.ShapeDtypeStruct((64, 4), np.int32)
        return jax.jit(many_steps(e, 20)).lower(state, hyper, tokens, starts, 1).as_text()

    assert program(one) == program(other)
    assert static(one) == static(other)
    assert make_train_steps(one, 20) is make_train_steps(other, 20)


@pytest.mark.parametrize("change", [
    dict(model__layers=3), dict(model__vocab=22), dict(model__dropout=0.2), dict(model__remat="full"),
    dict(optimizer__momentum=0.9), dict(optimizer__beta1=0.8), dict(schedule__name="wsd"), dict(train__batch=8),
    dict(train__accumulation=2), dict(train__loss_chunk=7), dict(data__packing=True),
])  # fmt: skip
def test_whatever_else_changes_has_a_program_of_its_own(change):
    one, other = experiment(), tiny.replaced(experiment(), **change)
    assert make_train_steps(one, 20) is not make_train_steps(other, 20)


def test_ways_have_programs_of_their_own():
    """So has the end of text, where documents are kept apart by it; where they are not, it says nothing. And so has
    each number of pieces that windows are read in."""
    assert len({make_train_steps(experiment(), 20, way=way) for way in ("threads", "vmap")}) == 2
    packed, plain = experiment(data__packing=True), experiment()
    assert len({make_train_steps(packed, eot) for eot in (19, 20)}) == 2
    assert len({make_train_steps(plain, eot) for eot in (19, 20)}) == 1
    assert len({make_train_steps(plain, 20, pieces=pieces) for pieces in (1, 2, 4)}) == 3
