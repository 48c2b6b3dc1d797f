"""Tokens a second of every configuration: this project's pass, with and without its logs, against two others.

    python benchmarks/forward_speed.py --configfile benchmarks/olmoe_shape.yaml

- `plain loop`: one sequence at a time, transformers' eager experts, and every layer's routing turned into
  Python lists as it happens.
- `harness`: lm-evaluation-harness's HFLM on the same model object with the routing patched in, on LAMBADA and
  HellaSwag; it scores and logs nothing else. Left out where lm_eval is not installed.
- `of the ceiling`: arithmetic of the pass over what a large matrix product reaches in this run.

All on the same samples in the same run; the slow loop on the first few sequences.
"""

import os
import time

import torch
from adaptive_routing.analysis.metrics.efficiency import flops_per_token
from adaptive_routing.evaluation.scoring import score_samples
from adaptive_routing.model.patching import RouterPatcher
from adaptive_routing.routing_log.workers import LogWorkers
from setting import load_setting, matrix_tflops, parser, print_table, run_logged


def packed(setting, configuration, prepared):
    """This project's pass: (tokens/s, average experts)."""
    model = setting.loaded.model
    with RouterPatcher(model, setting.strategy(configuration)) as patcher:
        seconds = tokens = experts = 0
        for samples in prepared.values():
            batch_tokens = setting.settings["evaluation"]["batch_tokens"]
            for batch in score_samples(model, patcher, samples, batch_tokens, 0):
                seconds += batch.seconds
                tokens += len(batch.token_ids)
                experts += float(batch.routing.counts.double().mean()) * len(batch.token_ids)
    return tokens / seconds, experts / tokens


def logged(setting, configuration, prepared, workers):
    """The same with full logging, from the first batch to the last byte: tokens/s of wall time."""
    runs = [
        run_logged(setting, configuration, dataset, samples, workers) for dataset, samples in prepared.items()
    ]
    tokens = sum(summary["summary"]["total_tokens"] for summary, _ in runs)
    return tokens / sum(seconds for _, seconds in runs)


@torch.inference_mode()
def plain_loop(setting, configuration, sequences):
    """One sequence at a time, eager experts, Python lists: tokens/s."""
    model, log = setting.loaded.model, []
    with RouterPatcher(model, setting.strategy(configuration)) as patcher:
        model.set_experts_implementation("eager")

        def to_lists(router, args, output):
            logits, weights, experts = output
            log.append([one.float().tolist() for one in (logits, weights)] + [experts.tolist()])
            # Not every version's eager experts know unused slots; expert 0 with weight 0 stands in for them.
            return logits, weights, torch.where(experts < logits.shape[-1], experts, 0)

        handles = [router.register_forward_hook(to_lists) for router in patcher.routers]
        try:
            for warm_up in (True, False):
                started = time.perf_counter()
                for sequence in sequences[:1] if warm_up else sequences:
                    inputs = torch.tensor([sequence.token_ids[: sequence.num_inputs]], device=model.device)
                    logits = model(inputs, use_cache=False).logits[0].float().log_softmax(-1)
                    targets = inputs[0, sequence.num_context_tokens :, None]
                    own = logits[sequence.num_context_tokens - 1 : -1].gather(-1, targets)
                    float(own.sum())
                    log.clear()
                seconds = time.perf_counter() - started
        finally:
            for handle in handles:
                handle.remove()
    return sum(sequence.num_inputs for sequence in sequences) / seconds


def harness(setting, configuration, prepared, batch_size):
    """lm-evaluation-harness's HFLM under the same routing: tokens/s of wall time, None without lm_eval."""
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        return None
    model = setting.loaded.model
    lm = HFLM(pretrained=model, tokenizer=setting.tokenizer, batch_size=batch_size, max_length=2048)
    requests, tokens = [], 0
    for dataset in ("lambada", "hellaswag"):
        for one in prepared.get(dataset, []):
            for sequence in one.sequences:
                split = sequence.num_context_tokens
                requests.append((None, sequence.token_ids[:split], sequence.token_ids[split:]))
                tokens += sequence.num_inputs
    with RouterPatcher(model, setting.strategy(configuration)):
        lm._loglikelihood_tokens(requests[:batch_size], disable_tqdm=True)
        started = time.perf_counter()
        lm._loglikelihood_tokens(requests, disable_tqdm=True)
        seconds = time.perf_counter() - started
    return tokens / seconds


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--plain-sequences", type=int, default=6, help="sequences of the plain loop")
    arguments.add_argument("--harness-batch", type=int, default=64, help="batch size of the harness")
    arguments = arguments.parse_args()
    setting = load_setting(arguments.configfile)
    model, prepared = setting.loaded.model, setting.prepared
    ceiling = matrix_tflops(setting.device, model.dtype)
    few = [sequence for one in next(iter(prepared.values())) for sequence in one.sequences]
    few = few[: arguments.plain_sequences]
    tokens = sum(
        sequence.num_inputs for samples in prepared.values() for one in samples for sequence in one.sequences
    )
    sequences = sum(len(one.sequences) for samples in prepared.values() for one in samples)
    rows = []
    packed(setting, setting.settings["configurations"][0], prepared)  # code is loaded, memory claimed
    with LogWorkers() as workers:
        for configuration in setting.settings["configurations"]:
            ours, experts = packed(setting, configuration, prepared)
            with_logs = logged(setting, configuration, prepared, workers)
            plain = plain_loop(setting, configuration, few)
            theirs = harness(setting, configuration, prepared, arguments.harness_batch)
            flops = flops_per_token(experts, setting.loaded.info["shapes"], tokens / sequences)
            rows.append(
                [
                    configuration.name,
                    f"{experts:.2f}",
                    ours,
                    with_logs,
                    plain,
                    f"{ours / plain:.0f}",
                    "-" if theirs is None else theirs,
                    "-" if theirs is None else f"{ours / theirs:.1f}",
                    f"{100 * ours * flops / 1e12 / ceiling:.0f} %",
                ]
            )
            print(f"{configuration.name}: {ours:,.0f} tokens/s, plain loop {plain:,.0f}", flush=True)
    print(f"\n{setting.loaded.device_name}, {model.dtype}, {tokens:,} tokens in {sequences} sequences;")
    print(f"matrix product {ceiling:,.1f} TFLOP/s; {os.cpu_count()} cores, {workers.count} log workers\n")
    print_table(
        ["configuration", "experts", "pass", "with logs and files", "plain loop", "times", "harness", "times",
         "of the ceiling"],
        rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
