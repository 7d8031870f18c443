"""Losses and gradients of TRL's own trainers on one micro-batch, for test_sequence_losses.py.

It runs in the peer's own environment, which `make bench-dpo` makes, and writes tests/trainer/objective/trl_losses.json:

    .venv-peer/bin/python benchmarks/peer_trl_losses.py

The model is a table of the log-probabilities of a few tokens, so that the loss is TRL's and nothing else. It has two
tokens: 0, which is every target, and one with the remaining probability.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
import trl
from accelerate import Accelerator
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

RESULT = Path(__file__).parents[1] / "tests/trainer/objective/trl_losses.json"
PROMPTS, ANSWERS = (3, 3, 5, 5, 2, 2), (4, 6, 3, 2, 7, 5)  # tokens of each row; two rows are a pair
LABELS = (True, False, True, True, False, True)  # of KTO, for which each row is an example
LENGTH = max(map(sum, zip(PROMPTS, ANSWERS, strict=True)))
BETA, GAMMA, DESIRABLE, UNDESIRABLE = 0.3, 0.7, 1.5, 0.6


class Table(torch.nn.Module):
    """Row r is the log p of each token of document r; the first token of an input names the row."""

    is_gradient_checkpointing = False

    def __init__(self, seed: int, rows: int = 2 * len(PROMPTS)) -> None:
        super().__init__()
        logps = -2 * torch.rand(rows, LENGTH, generator=torch.Generator().manual_seed(seed)) - 0.05
        self.logps = torch.nn.Parameter(logps)

    def forward(self, input_ids, labels=None, **_):
        logps = self.logps[input_ids[:, 0]]
        following = torch.cat((logps[:, 1:], logps[:, :1]), dim=1)  # logits at t are those of token t + 1
        logits = torch.stack((following, torch.log(-torch.expm1(following))), dim=2)
        none = torch.zeros(len(logps), LENGTH - 1)
        targets = none if labels is None else (labels[:, 1:] != -100).float()
        return SimpleNamespace(
            logits=logits, log_probs=logps[:, 1:] * targets, entropy=none, mean_logits=none, is_top1=none.bool()
        )


def inputs(rows, offset=0):
    ids, attention, completion = (torch.zeros(len(rows), LENGTH, dtype=torch.long) for _ in range(3))
    for index, row in enumerate(rows):
        ids[index, 0] = row + offset
        attention[index, : PROMPTS[row] + ANSWERS[row]] = 1
        completion[index, PROMPTS[row] : PROMPTS[row] + ANSWERS[row]] = 1
    return ids, attention, completion


def trainer(kind, model, reference, **attributes):
    made = object.__new__(kind)
    made.__dict__ |= attributes | {
        "model": model, "ref_model": reference, "beta": BETA, "accelerator": Accelerator(cpu=True),
        "_metrics": defaultdict(lambda: defaultdict(list)), "_total_train_tokens": 0, "_tp_size": 1,
        "aux_loss_enabled": False, "is_encoder_decoder": False, "precompute_ref_logps": False,
        "args": SimpleNamespace(gradient_checkpointing_kwargs=None), "loss_type": attributes["loss_type"],
    }  # fmt: skip
    return made


def of_dpo(loss_type, model, reference):
    ids, attention, completion = inputs([0, 2, 4, 1, 3, 5])
    made = trainer(
        DPOTrainer, model, reference, loss_type=loss_type, loss_types=[loss_type], loss_weights=[1.0], ld_alpha=None,
        f_divergence_type="reverse_kl", use_weighting=False, label_smoothing=0.0,
    )  # fmt: skip
    batch = {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}
    return DPOTrainer._compute_loss(made, model, batch, False)


def of_pairs(kind, loss_type, model):
    batch = {}
    for name, rows in (("chosen", [0, 2, 4]), ("rejected", [1, 3, 5])):
        ids, attention, completion = inputs(rows)
        labels = ids.masked_fill(completion == 0, -100)
        batch |= {f"{name}_input_ids": ids, f"{name}_attention_mask": attention, f"{name}_labels": labels}
    made = trainer(
        kind, model, None, loss_type=loss_type, padding_value=0, pad_token_id=0, cpo_alpha=0.0, simpo_gamma=GAMMA,
        label_smoothing=0.0, alpha=0.0,
    )  # fmt: skip
    return kind.get_batch_loss_metrics(made, model, batch)[0]


def of_kto(model, reference):
    ids, attention, completion = inputs(range(len(LABELS)))
    kl_ids, kl_attention, kl_completion = inputs(range(len(LABELS)), offset=len(LABELS))
    made = trainer(
        KTOTrainer, model, reference, loss_type="kto", calculate_KL=True, desirable_weight=DESIRABLE,
        undesirable_weight=UNDESIRABLE,
    )  # fmt: skip
    batch = {
        "input_ids": ids, "attention_mask": attention, "completion_mask": completion, "label": torch.tensor(LABELS),
        "KL_input_ids": kl_ids, "KL_attention_mask": kl_attention, "KL_completion_mask": kl_completion,
    }  # fmt: skip
    return KTOTrainer._compute_loss(made, model, batch, False)


def sums(table, offset=0):
    """The sum over each row's answer, and that over the rest of its targets."""
    rows = [table[row + offset] for row in range(len(PROMPTS))]
    spans = [(row, prompt, prompt + answer) for row, prompt, answer in zip(rows, PROMPTS, ANSWERS, strict=True)]
    return [row[start:end].sum().item() for row, start, end in spans], [
        row[1:start].sum().item() for row, start, _ in spans
    ]


def gradients(table):
    """Those of one token of each answer and of each prompt; all tokens of one have the same."""
    found = []
    for row, prompt, answer in zip(table, PROMPTS, ANSWERS, strict=False):
        for part in (row[prompt : prompt + answer], row[1:prompt]):
            torch.testing.assert_close(part, part[:1].expand_as(part))
        found.append([row[prompt].item(), row[1].item()])
    return found


def main():
    reference = Table(seed=2)
    losses = {
        "dpo": lambda model: of_dpo("sigmoid", model, reference),
        "ipo": lambda model: of_dpo("ipo", model, reference),
        "simpo": lambda model: of_pairs(CPOTrainer, "simpo", model),
        "orpo": lambda model: of_pairs(ORPOTrainer, "orpo", model),
        "kto": lambda model: of_kto(model, reference),
    }
    results = {}
    for name, loss_of in losses.items():
        model = Table(seed=1)
        loss = loss_of(model)
        loss.backward()
        results[name] = {"loss": loss.item(), "gradients": gradients(model.logps.grad)}
    tables = {"policy": Table(seed=1).logps.double(), "reference": reference.logps.double()}
    document = {
        "trl": trl.__version__, "beta": BETA, "simpo_gamma": GAMMA, "desirable_weight": DESIRABLE,
        "undesirable_weight": UNDESIRABLE, "labels": LABELS, "prompt_tokens": [each - 1 for each in PROMPTS],
        "answer_tokens": ANSWERS, "answers": {name: sums(table)[0] for name, table in tables.items()},
        "prompts": sums(tables["policy"])[1],
        "mismatched": {name: sums(table, len(LABELS))[0] for name, table in tables.items()}, "losses": results,
    }  # fmt: skip
    RESULT.write_text(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
