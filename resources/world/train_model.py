"""Train the embedded model: an OLMoE of 16 layers x 64 experts and about 7 million parameters.

``python -m resources.world.train_model --minutes 6`` trains on one GPU for that long and writes
``resources/embedded_model`` (bfloat16). The tokenizer must be there already.

With experts this small, sorting tokens by expert costs more than running all experts. So training
runs every expert on every token in two matrix products and multiplies what the router did not
select by zero: the same function as transformers' ``OlmoeForCausalLM``, which
``assert_same_function`` checks before the first step.

The router is trained as OLMoE's (arXiv:2409.02060, section 2): top-8 of a softmax over all experts
without renormalisation, a load-balancing loss and a router z-loss. Unlike transformers' own
load-balancing loss, which pools all layers, it is computed per layer and averaged, so that no
layer may be unbalanced. Two things are not OLMoE's: a cost on selected experts that hold nearly all
of the router's probability, and a hinge that asks for a worse loss when all experts run, so that
this small model depends on its own top-8 as OLMoE-1B-7B is measured to do.
"""

import argparse
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, OlmoeConfig, OlmoeForCausalLM

from .generate import SEED, build_datasets, training_documents
from .train_tokenizer import MAX_LENGTH, MODEL

SEQUENCE_LENGTH = 256
ANSWER_WEIGHT = 4.0  # of a scored token in the loss; one token in ten is one
DOCUMENTS_PER_SHARD = 20_000
LOAD_BALANCING_COEF = 0.15  # times the mean over 16 layers: about 0.01 a layer
Z_LOSS_COEF = 0.001
# The share of router probability that the selected experts may have before it costs something: what
# is left over is the residual mass of the others, which a sharp router would not leave.
MASS_LIMIT = 0.45
MASS_COEF = 1.0
# How much worse the loss with all experts must be than with the top 8 before the hinge is silent.
ALL_EXPERTS_MARGIN = 0.5  # nats per token
ALL_EXPERTS_COEF = 0.5
ALL_EXPERTS_SHARE = 4  # one sequence in so many is also run with all experts


@dataclass(frozen=True)
class Recipe:
    minutes: float
    max_steps: int
    batch_size: int  # sequences
    learning_rate: float
    seed: int
    warmup: float = 0.02  # shares of the run
    decay: float = 0.4
    weight_decay: float = 0.1


def make_config(vocab_size: int, eos_token_id: int, pad_token_id: int) -> OlmoeConfig:
    return OlmoeConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=16,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=64,
        num_experts_per_tok=8,
        norm_topk_prob=False,
        hidden_act="silu",
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=False,
        router_aux_loss_coef=LOAD_BALANCING_COEF,
        bos_token_id=eos_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )


@torch.no_grad()
def init_model(config: OlmoeConfig, seed: int) -> OlmoeForCausalLM:
    """Random weights with unit-scale activations; the default 0.02 is meant for wider models.

    Queries and keys are normalised, so their gains set how sharp attention can be: at 1 a head of
    16 dimensions cannot single out one token, and learning to look up a binding starts late.
    """
    torch.manual_seed(seed)
    model = OlmoeForCausalLM(config).float()
    width = config.hidden_size**-0.5
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.fill_(1.7 if "q_norm" in name or "k_norm" in name else 1.0)
            continue
        std = width
        if "embed_tokens" in name:
            std = 0.5
        elif "lm_head" in name:
            std = 0.25 * width
        elif "o_proj" in name:
            std = width * (2 * config.num_hidden_layers) ** -0.5
        elif "down_proj" in name:
            std = config.intermediate_size**-0.5  # the routing weights make it small already
        weight.normal_(0.0, std)
    return model


# --- the model's forward pass, all experts on all tokens -----------------------------------------


def rms_norm(x: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    return gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding; x: (B, heads, T, head_dim)."""
    one, two = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-two, one), dim=-1) * sin


def layer_forward(x, cos, sin, mask, weights, num_heads: int, top_k: int, eps: float, dtype: torch.dtype):
    """One decoder layer. x: (B, T, H) in float32; mask: (B, 1, T, T); matrix products in ``dtype``.

    Returns the layer's output and its router losses: load balancing (1 when balanced), z-loss and
    the excess of the selected experts' mass over ``MASS_LIMIT``, squared.
    """
    (q, k, v, o, q_gain, k_gain, router, gate_up, down, attention_gain, expert_gain) = weights
    B, T, H = x.shape
    E, two_i, _ = gate_up.shape

    h = rms_norm(x, attention_gain, eps).to(dtype)
    query = rms_norm((h @ q.to(dtype).T).float(), q_gain, eps)
    key = rms_norm((h @ k.to(dtype).T).float(), k_gain, eps)
    value = h @ v.to(dtype).T
    split = (B, T, num_heads, H // num_heads)
    query = rotate(query.view(split).transpose(1, 2), cos, sin).to(dtype)
    key = rotate(key.view(split).transpose(1, 2), cos, sin).to(dtype)
    mixed = F.scaled_dot_product_attention(query, key, value.view(split).transpose(1, 2), attn_mask=mask)
    x = x + (mixed.transpose(1, 2).reshape(B, T, H) @ o.to(dtype).T).float()

    h = rms_norm(x, expert_gain, eps).view(B * T, H)
    # The router stays in float32, as it is evaluated: near-ties must fall the same way.
    logits = h @ router.T  # (B * T, E)
    probabilities = logits.softmax(-1)
    threshold = probabilities.detach().topk(top_k, dim=-1).values[:, -1:]
    selected = (probabilities >= threshold).float()
    routing_weights = probabilities * selected

    hidden = (h.to(dtype) @ gate_up.to(dtype).view(E * two_i, H).T).view(B * T, E, two_i)
    gate, up = hidden.chunk(2, dim=-1)
    hidden = F.silu(gate) * up * routing_weights.to(dtype)[..., None]  # (B * T, E, I)
    down = down.to(dtype).transpose(1, 2).reshape(E * two_i // 2, H)
    out = hidden.view(B * T, -1) @ down
    x = x + out.float().view(B, T, H)

    balance = E * (selected.mean(0) / top_k * probabilities.mean(0)).sum()
    z_loss = logits.logsumexp(-1).pow(2).mean()
    excess = (routing_weights.sum(-1) - MASS_LIMIT).relu().pow(2).mean()
    return x, torch.stack([balance, z_loss, excess])


def head_forward(x, gain, head, target, eps: float, dtype: torch.dtype) -> torch.Tensor:
    """Negative log-likelihood of ``target``, (B, T)."""
    logits = (rms_norm(x, gain, eps).to(dtype) @ head.to(dtype).T).float()
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)


def layer_weights(layer) -> tuple[torch.Tensor, ...]:
    attention, moe = layer.self_attn, layer.mlp
    return (
        attention.q_proj.weight,
        attention.k_proj.weight,
        attention.v_proj.weight,
        attention.o_proj.weight,
        attention.q_norm.weight,
        attention.k_norm.weight,
        moe.gate.weight,
        moe.experts.gate_up_proj,
        moe.experts.down_proj,
        layer.input_layernorm.weight,
        layer.post_attention_layernorm.weight,
    )


class DenseTrainer:
    """The training loss of an ``OlmoeForCausalLM``, computed with all experts on all tokens."""

    def __init__(self, model: OlmoeForCausalLM, dtype: torch.dtype, compiled: bool) -> None:
        self.model, self.dtype = model, dtype
        # One layer is compiled once and serves all sixteen: its weights are arguments.
        self.layer = torch.compile(layer_forward, dynamic=False) if compiled else layer_forward
        self.head = torch.compile(head_forward, dynamic=False) if compiled else head_forward

    def loss(
        self, ids: torch.Tensor, target: torch.Tensor, top_k: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(negative log-likelihood of each target (B, T), the router losses' means over layers)

        ``top_k`` experts are selected, the model's own number by default.
        """
        model, config = self.model.model, self.model.config
        top_k = top_k or config.num_experts_per_tok
        x = F.embedding(ids, model.embed_tokens.weight)
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        cos, sin = model.rotary_emb(x, positions)
        cos, sin = cos[:, None], sin[:, None]  # (1, 1, T, head_dim)
        mask = document_mask(ids, config.eos_token_id, self.dtype)
        router_losses = []
        for layer in model.layers:
            x, losses = self.layer(
                x,
                cos,
                sin,
                mask,
                layer_weights(layer),
                config.num_attention_heads,
                top_k,
                config.rms_norm_eps,
                self.dtype,
            )
            router_losses.append(losses)
        head = self.model.lm_head.weight
        nll = self.head(x, model.norm.weight, head, target, config.rms_norm_eps, self.dtype)
        return nll, torch.stack(router_losses).mean(0)


def document_mask(ids: torch.Tensor, eos_token_id: int, dtype: torch.dtype) -> torch.Tensor:
    """Additive causal mask (B, 1, T, T) within documents: each is read alone, as a scored text is.

    A document ends with its end-of-text token; rotary positions are relative and need no reset.
    """
    ends = (ids == eos_token_id).int()
    document = ends.cumsum(1) - ends  # (B, T)
    same = document[:, :, None] == document[:, None, :]
    position = torch.arange(ids.shape[1], device=ids.device)
    visible = same & (position[:, None] >= position[None, :])
    return torch.where(visible, 0.0, -1e4).to(dtype)[:, None]


@torch.no_grad()
def assert_same_function(model: OlmoeForCausalLM) -> None:
    """The dense forward gives the losses of transformers' own forward, in float32 on the CPU."""
    ids = torch.randint(2, model.config.vocab_size, (2, 65))  # no end-of-text within
    ours, _ = DenseTrainer(model, torch.float32, compiled=False).loss(ids[:, :-1], ids[:, 1:])
    logits = model(ids[:, :-1]).logits
    theirs = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    assert (ours.flatten() - theirs).abs().max() < 1e-4, "the dense forward is another function"


# --- training text -------------------------------------------------------------------------------


def _start_worker(seed: int, tokenizer_path: Path) -> None:
    global _worker_state
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    world, _, held_out = build_datasets(seed)
    _worker_state = (world, held_out, seed, AutoTokenizer.from_pretrained(tokenizer_path))


def _make_shard(shard: int) -> np.ndarray:
    """One shard of the training text as packed sequences, (n, SEQUENCE_LENGTH + 1) of int16.

    Every sequence begins with a new document; one that does not fit at the end is cut there. Tokens
    of answers are stored as their negative (no id of an answer is 0).
    """
    world, held_out, seed, tokenizer = _worker_state
    documents = list(training_documents(world, held_out, seed, shard, DOCUMENTS_PER_SHARD))
    ids = iter(tokenizer([piece for document in documents for piece in document])["input_ids"])
    length = SEQUENCE_LENGTH + 1
    sequences, current = [], []
    for document in documents:
        for i in range(len(document)):
            current += [-token for token in next(ids)] if i % 2 else next(ids)
        current.append(tokenizer.eos_token_id)
        if len(current) >= length:
            sequences.append(current[:length])
            current = []
    return np.array(sequences, dtype=np.int16)


def batches(
    recipe: Recipe, tokenizer_path: Path, num_shards: int, num_workers: int
) -> Iterator[torch.Tensor]:
    """Batches (batch_size, SEQUENCE_LENGTH + 1) until the shards are used up.

    The order does not depend on how fast the workers are.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(num_workers, _start_worker, (recipe.seed, tokenizer_path)) as pool:
        left = np.zeros((0, SEQUENCE_LENGTH + 1), dtype=np.int16)
        for shard in pool.imap(_make_shard, range(num_shards)):
            left = np.concatenate([left, shard])
            while len(left) >= recipe.batch_size:
                yield torch.from_numpy(left[: recipe.batch_size].astype(np.int64))
                left = left[recipe.batch_size :]


# --- the run -------------------------------------------------------------------------------------


def learning_rate_share(progress: float, recipe: Recipe) -> float:
    """Warm-up, plateau, then a decay to zero along 1 - sqrt (arXiv:2405.18392)."""
    if progress < recipe.warmup:
        return progress / recipe.warmup
    if progress < 1 - recipe.decay:
        return 1.0
    return 1 - math.sqrt((progress - (1 - recipe.decay)) / recipe.decay)


def make_optimizer(model: OlmoeForCausalLM, recipe: Recipe, fused: bool) -> torch.optim.AdamW:
    """AdamW; norms, the embedding and the routers are not decayed."""
    decayed, others = [], []
    for name, weight in model.named_parameters():
        free = weight.ndim == 1 or "embed_tokens" in name or "mlp.gate." in name
        (others if free else decayed).append(weight)
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=fused)


@dataclass
class StepResult:
    """What one step was, still on the device."""

    nll: torch.Tensor  # mean over all tokens
    answer_nll: torch.Tensor  # mean over the tokens of answers
    all_experts_excess: torch.Tensor  # loss with all experts - loss with the top 8
    router_losses: torch.Tensor  # (3,): load balancing, z-loss, excess mass
    gradient_norm: torch.Tensor  # before clipping


class GradientStep:
    """Batch -> gradients in the parameters; on a GPU as one CUDA graph.

    A step of this model is hundreds of short kernels, which the CPU launches more slowly than the
    GPU runs them. Where the capture fails or does not reproduce the plain step, the plain step is
    used.
    """

    def __init__(self, trainer: DenseTrainer) -> None:
        self.trainer = trainer
        self.parameters = list(trainer.model.parameters())
        self.coefficients = torch.tensor(
            [LOAD_BALANCING_COEF, Z_LOSS_COEF, MASS_COEF], device=self.parameters[0].device
        )
        self.graph: torch.cuda.CUDAGraph | None = None

    def plain(self, batch: torch.Tensor) -> StepResult:
        ids, answer = batch.abs(), batch[:, 1:] < 0
        nll, router_losses = self.trainer.loss(ids[:, :-1], ids[:, 1:])
        weight = torch.where(answer, ANSWER_WEIGHT, 1.0)
        loss = (nll * weight).sum() / weight.sum()
        part = len(batch) // ALL_EXPERTS_SHARE
        num_experts = self.trainer.model.config.num_experts
        all_nll, _ = self.trainer.loss(ids[:part, :-1], ids[:part, 1:], top_k=num_experts)
        excess = all_nll.mean() - nll[:part].detach().mean()
        hinge = ALL_EXPERTS_COEF * (ALL_EXPERTS_MARGIN - excess).relu()
        (loss + hinge + (router_losses * self.coefficients).sum()).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        nll, router_losses = nll.detach(), router_losses.detach()
        answer_nll = (nll * answer).sum() / answer.sum()
        return StepResult(nll.mean(), answer_nll, excess.detach(), router_losses, norm)

    def forget_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def capture(self, batch: torch.Tensor) -> None:
        """Compile on ``batch`` and record the step; the parameters' values do not change."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # capture needs a warm-up on a stream of its own
            for _ in range(3):
                self.forget_gradients()
                expected = self.plain(batch)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self.forget_gradients()
        try:
            graph = torch.cuda.CUDAGraph()
            static_batch = batch.clone()
            with torch.cuda.graph(graph):
                static_result = self.plain(static_batch)
            graph.replay()
            graph.replay()  # twice: gradients must be replaced, not added up
            for name, value in vars(expected).items():
                torch.testing.assert_close(getattr(static_result, name), value, rtol=0.02, atol=0.02)
            self.graph, self.static_batch, self.static_result = graph, static_batch, static_result
        except (RuntimeError, AssertionError) as error:
            print(f"no CUDA graph: {error}", flush=True)
            torch.cuda.synchronize()
            self.forget_gradients()

    def __call__(self, batch: torch.Tensor) -> StepResult:
        if self.graph is None:
            self.forget_gradients()
            return self.plain(batch)
        self.static_batch.copy_(batch)
        self.graph.replay()
        return self.static_result


def train(model: OlmoeForCausalLM, data: Iterator[torch.Tensor], recipe: Recipe) -> dict:
    """Train in place until the minutes or the steps are over; returns what the run was."""
    device = next(model.parameters()).device
    cuda = device.type == "cuda"
    begin = time.monotonic()
    trainer = DenseTrainer(model, torch.bfloat16 if cuda else torch.float32, compiled=cuda)
    gradient_step = GradientStep(trainer)
    optimizer = make_optimizer(model, recipe, fused=cuda)
    if cuda:
        gradient_step.capture(next(data).to(device))
    start, step, tokens = time.monotonic(), 0, 0  # compiling is no part of the schedule
    while True:
        elapsed = (time.monotonic() - start) / 60
        progress = max(elapsed / recipe.minutes, step / recipe.max_steps)
        if progress >= 1:
            break
        batch = next(data).to(device)
        result = gradient_step(batch)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * learning_rate_share(progress, recipe)
        optimizer.step()
        step += 1
        tokens += batch[:, 1:].numel()
        if step % 50 == 0:
            result.nll.item()  # the clock of the schedule must not run ahead of the GPU
        if step % 100 == 0 or step <= 3:
            balance, z_loss, excess = result.router_losses.tolist()
            print(
                f"step {step} minutes {elapsed:.2f} nll {result.nll.item():.4f} "
                f"answers {result.answer_nll.item():.4f} balance {balance:.3f} z {z_loss:.2f} "
                f"mass {excess:.4f} all experts {result.all_experts_excess.item():+.3f} "
                f"gradient {result.gradient_norm.item():.3f}",
                flush=True,
            )
    return {
        "steps": step,
        "tokens": tokens,
        "minutes": round(elapsed, 2),
        "startup_seconds": round(start - begin, 1),
        "device": torch.cuda.get_device_name() if cuda else "CPU",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--max-steps", type=int, default=10**9, help="for a trial")
    parser.add_argument("--batch-size", type=int, default=64, help="sequences of 256 tokens")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--shards", type=int, default=1500, help="of about 600,000 tokens")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--tokenizer", type=Path, default=MODEL)
    parser.add_argument("--out", type=Path, default=MODEL)
    args = parser.parse_args()
    recipe = Recipe(args.minutes, args.max_steps, args.batch_size, args.learning_rate, args.seed)

    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    config = make_config(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    model = init_model(config, args.seed)
    assert_same_function(model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run: dict = {"parameters": sum(p.numel() for p in model.parameters())}
    if args.max_steps > 0:
        data = batches(recipe, args.tokenizer, args.shards, args.workers)
        run |= train(model.to(device), data, recipe)
        data.close()
    model.to("cpu", torch.bfloat16).save_pretrained(args.out)
    if args.out != args.tokenizer:
        tokenizer.save_pretrained(args.out)
    print(json.dumps(run, indent=2))


if __name__ == "__main__":
    main()
