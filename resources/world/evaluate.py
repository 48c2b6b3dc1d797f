"""Measure the embedded model: the figures that ``resources/README.md`` states.

``python -m resources.world.evaluate`` prints them as JSON. Scoring follows lm-evaluation-harness
(last word greedy for LAMBADA, log-likelihood per character of the ending for HellaSwag and ARC), so
the study's own top-8 run must agree; this is a small, independent version that needs only
transformers. Sequences of about the same length are batched, padded on the right, where a causal model does
not look.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from . import activities
from .generate import DATASETS
from .train_tokenizer import MAX_LENGTH, MODEL

BATCH_SIZE = 64


def read_rows(name: str, folder: Path = DATASETS) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]


def set_top_k(model: PreTrainedModel, k: int) -> None:
    """Let every router select its k most probable experts, with their plain softmax weights."""
    for layer in model.model.layers:
        layer.mlp.gate.top_k = k


@torch.no_grad()
def token_scores(
    model: PreTrainedModel, sequences: list[list[int]]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per sequence: log-probability of each token after the first, and whether it is the greedy."""
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    scores: list = [None] * len(sequences)
    for start in range(0, len(order), BATCH_SIZE):
        batch = order[start : start + BATCH_SIZE]
        tokens = [torch.tensor(sequences[i], device=model.device) for i in batch]
        ids = pad_sequence(tokens, batch_first=True)
        mask = pad_sequence([torch.ones_like(one) for one in tokens], batch_first=True)
        logits = model(ids, attention_mask=mask).logits[:, :-1].float()  # (B, T - 1, V)
        target = ids[:, 1:]
        chosen = logits.log_softmax(-1).gather(2, target[..., None])[..., 0]
        greedy = logits.argmax(-1) == target
        for row, i in enumerate(batch):
            own = slice(len(sequences[i]) - 1)
            scores[i] = (chosen[row, own].cpu(), greedy[row, own].cpu())
    return scores


def perplexity(model: PreTrainedModel, tokenizer) -> float:
    """exp(mean over the text rows of the row's mean negative log-likelihood)."""
    texts = [row["text"] for row in read_rows("wikitext") if row["text"]]
    sequences = [tokenizer(text)["input_ids"][:MAX_LENGTH] for text in texts]
    losses = [-chosen.mean().item() for chosen, _ in token_scores(model, sequences)]
    return math.exp(sum(losses) / len(losses))


def _continuations(tokenizer, pairs: list[tuple[str, str]]) -> tuple[list[list[int]], list[int]]:
    """Whole sequences, and how many of their tokens are context."""
    sequences = [tokenizer(context + continuation)["input_ids"] for context, continuation in pairs]
    return sequences, [len(tokenizer(context)["input_ids"]) for context, _ in pairs]


def lambada_hits(model: PreTrainedModel, tokenizer) -> list[bool]:
    """Whether each passage's last word is the greedy choice, token by token."""
    pairs = []
    for row in read_rows("lambada"):
        context, word = row["text"].rsplit(" ", 1)
        pairs.append((context, " " + word))
    sequences, starts = _continuations(tokenizer, pairs)
    scored = token_scores(model, sequences)
    return [bool(greedy[n - 1 :].all()) for (_, greedy), n in zip(scored, starts, strict=True)]


def choice_hits(model: PreTrainedModel, tokenizer, questions: list[tuple[str, list[str], int]]) -> list[bool]:
    """Whether the right choice has the highest log-likelihood per character, question by question.

    ``questions``: (context, choices, index of the right one)
    """
    pairs = [(context, " " + choice) for context, choices, _ in questions for choice in choices]
    sequences, starts = _continuations(tokenizer, pairs)
    scored = iter(zip(token_scores(model, sequences), starts, strict=True))
    hits = []
    for _, choices, gold in questions:
        values = []
        for choice in choices:
            (chosen, _), n = next(scored)
            values.append(chosen[n - 1 :].sum().item() / len(choice))
        hits.append(max(range(len(values)), key=values.__getitem__) == gold)
    return hits


def hellaswag_questions() -> list[tuple[str, list[str], int]]:
    return [
        (activities.scored_context(row), row["endings"], int(row["label"])) for row in read_rows("hellaswag")
    ]


def arc_questions() -> list[tuple[str, list[str], int]]:
    return [
        (
            f"Question: {row['question']}\nAnswer:",
            row["choices"]["text"],
            row["choices"]["label"].index(row["answerKey"]),
        )
        for row in read_rows("arc_challenge")
    ]


def gini(counts: torch.Tensor) -> float:
    """Gini coefficient of non-negative counts: 0 when all are equal, near 1 when one has all."""
    x = counts.double().sort().values
    n = len(x)
    i = torch.arange(1, n + 1, dtype=torch.float64)
    return (2 * (i * x).sum() / (n * x.sum()) - (n + 1) / n).item()


class RoutingRecord:
    """Counts expert usage and sums router statistics of every layer while it is attached."""

    def __init__(self, model: PreTrainedModel) -> None:
        num_layers, num_experts = model.config.num_hidden_layers, model.config.num_experts
        self.counts = torch.zeros(num_layers, num_experts, dtype=torch.long)
        self.logits: list[list[torch.Tensor]] = [[] for _ in range(num_layers)]
        self.mass: list[list[torch.Tensor]] = [[] for _ in range(num_layers)]
        self.hooks = [model.register_forward_pre_hook(self._before, with_kwargs=True)]
        self.hooks += [
            layer.mlp.gate.register_forward_hook(self._hook(i)) for i, layer in enumerate(model.model.layers)
        ]

    def _before(self, _model, _inputs, keywords) -> None:
        self.is_token = keywords["attention_mask"].flatten().bool()  # (B * T,), false at the padding

    def _hook(self, layer: int):
        def hook(_module, _inputs, outputs) -> None:
            logits, weights, indices = (one[self.is_token] for one in outputs)
            self.counts[layer] += torch.bincount(indices.flatten().cpu(), minlength=self.counts.shape[1])
            self.logits[layer].append(logits.float().cpu())
            self.mass[layer].append(weights.float().sum(-1).cpu())

        return hook

    def detach(self) -> None:
        for hook in self.hooks:
            hook.remove()


def evaluate(model: PreTrainedModel, tokenizer, top_ks: tuple[int, ...] = (16, 32, 64)) -> dict:
    """All figures of the model card. The model is left with its native top-k."""
    native = model.config.num_experts_per_tok
    record = RoutingRecord(model)
    figures: dict = {"perplexity": {str(native): perplexity(model, tokenizer)}}
    lambada = lambada_hits(model, tokenizer)
    hellaswag = choice_hits(model, tokenizer, hellaswag_questions())
    record.detach()  # the three scored data sets are the evaluation text
    arc = choice_hits(model, tokenizer, arc_questions())
    for k in top_ks:
        set_top_k(model, k)
        figures["perplexity"][str(k)] = perplexity(model, tokenizer)
    set_top_k(model, native)
    figures["lambada_accuracy"] = sum(lambada) / len(lambada)
    figures["hellaswag_accuracy"] = sum(hellaswag) / len(hellaswag)
    figures["arc_accuracy"] = sum(arc) / len(arc)
    figures["tokens"] = int(record.counts[0].sum()) // native
    figures["experts_used_min"] = (record.counts > 0).float().mean(1).min().item()
    figures["gini_by_layer"] = [round(gini(counts), 3) for counts in record.counts]
    figures["gini_max"] = max(figures["gini_by_layer"])
    logits = [torch.cat(parts) for parts in record.logits]  # per layer: (tokens, experts)
    figures["router_logit_std_by_layer"] = [round(x.std().item(), 2) for x in logits]
    mass = [torch.cat(parts) for parts in record.mass]
    figures["native_mass_by_layer"] = [round(x.mean().item(), 2) for x in mass]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model = model.to(args.device).eval()
    figures = evaluate(model, AutoTokenizer.from_pretrained(args.model))
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
