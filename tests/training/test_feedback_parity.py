"""The loss of preferences is that of TRL, on random log-probabilities."""

import dataclasses
from collections import defaultdict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from libraries import library

from lm.config import Experiment, FeedbackConfig, ModelConfig
from lm.model.api import Inputs, build
from lm.model.loss import Batch
from lm.training.objectives import account
from lm.training.step import hyperparameters

B, T, V = 5, 7, 11


@pytest.mark.parity
@pytest.mark.parametrize(("per_token", "name"), [(False, "sigmoid"), (True, "sigmoid_norm")])
def test_the_loss_is_trls(per_token, name):
    trainer, torch = library("trl.trainer.dpo_trainer").DPOTrainer, library("torch")
    rng = np.random.default_rng(0)
    model = build(ModelConfig(layers=1, width=16, heads=2, context=T, vocab=V, vocab_multiple=1, zero_init=False))
    params, reference = (jax.tree.map(lambda x: 3 * x, model.init(seed)) for seed in (0, 1))
    tokens_2BU = rng.integers(0, V, (2 * B, T + 1))
    learnt_2BT = (np.arange(T) >= rng.integers(0, T - 1, (2 * B, 1))).astype(np.int32)

    def logprobs(p) -> np.ndarray:
        logits, _ = model.apply(p, Inputs(tokens_2BU[:, :-1]))
        return np.array(jnp.take_along_axis(jax.nn.log_softmax(logits), tokens_2BU[:, 1:, None], axis=2))[..., 0]

    e = Experiment(model=model.config, feedback=FeedbackConfig(beta=0.3, per_token=per_token))
    e = dataclasses.replace(e, train=dataclasses.replace(e.train, objective="preference", start="base"))
    hyper = hyperparameters(e, e.steps(1 << 20)) | {"frozen": {"reference": reference}}
    batch = Batch(tokens_2BU[:B], learnt_2BT[:B], rejected_BU=tokens_2BU[B:], rejected_weights_BT=learnt_2BT[B:])
    _, sums = account(params, batch, e, None, hyper, None)

    own, their = (torch.tensor(logprobs(p) * learnt_2BT) for p in (params, reference))
    nothing = torch.zeros(2 * B, T)
    outputs = SimpleNamespace(log_probs=own, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
    sums_of_reference = their.sum(dim=1).chunk(2)
    inputs = {
        "input_ids": torch.tensor(tokens_2BU), "attention_mask": torch.ones(2 * B, T + 1, dtype=torch.long),
        "completion_mask": torch.tensor(np.pad(learnt_2BT, ((0, 0), (1, 0)))),
        "ref_chosen_logps": sums_of_reference[0], "ref_rejected_logps": sums_of_reference[1],
    }  # fmt: skip
    gather = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    own_self = SimpleNamespace(
        model=SimpleNamespace(training=False), accelerator=gather, aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=True, f_divergence_type="reverse_kl", beta=0.3, loss_types=[name], loss_weights=[1.0],
        label_smoothing=0.0, use_weighting=False, _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    loss = trainer._compute_loss(own_self, lambda **_: outputs, inputs, False)
    assert float(sums["nats"]) / B == pytest.approx(float(loss), abs=1e-5)
    metrics = own_self._metrics["eval"]
    assert float(sums["right"]) / B == pytest.approx(metrics["rewards/accuracies"][0]) or per_token
    assert 0.3 * float(sums["chosen"]) / B == pytest.approx(metrics["rewards/chosen"][0], abs=1e-5)
