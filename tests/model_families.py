"""Tiny random models of every mixture-of-experts family that transformers has for text, for the tests.

Biases, scales and groups are not zero, one or absent, so that leaving one out shows. As a program, with
--write, it puts the table of families into docs/models.md.
"""

import contextlib
import io
import sys
from pathlib import Path

import torch
from adaptive_routing.model.experts import check_experts
from adaptive_routing.model.packing import runs_unpacked
from adaptive_routing.model.parity import check_parity
from adaptive_routing.model.routers import find_routers, find_rule
from adaptive_routing.system.errors import InputError
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 97
PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
# One setting under all names that families have for it; a family takes those that its configuration knows.
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
    "moe_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "moe_num_experts": 8,
    "num_experts_per_tok": 3,
    "num_experts_per_token": 3,
    "moe_topk": 3,
    "moe_k": 3,
    "max_position_embeddings": 128,
    "first_k_dense_replace": 0,
    "num_dense_layers": 0,
    "moe_layer_start_index": 0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPS = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.7}
LATENT = {
    "q_lora_rank": 12, "kv_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6,
    "num_key_value_heads": 4, "head_dim": 4,
}  # fmt: skip
WINDOWS = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
# Family: (settings of its own). The names are transformers' model types.
FAMILIES = {
    "afmoe": {"route_scale": 1.7, **WINDOWS},
    "aria_text": {"moe_num_shared_experts": 1},
    "axk1": {**GROUPS, **LATENT},
    "bailing_hybrid": {**GROUPS, **LATENT, "layer_types": ["linear_attention", "full_attention"]},
    "cohere2_moe": {"logit_scale": 0.25, **WINDOWS},
    "deepseek_v2": {**GROUPS, **LATENT, "topk_method": "group_limited_greedy", "n_shared_experts": 1},
    "deepseek_v3": {**GROUPS, **LATENT, "n_shared_experts": 1, "norm_topk_prob": True},
    "deepseek_v32": {**GROUPS, **LATENT, "n_shared_experts": 1, "index_topk": 8},
    "deepseek_v4": {},
    "dots1": {**GROUPS, "n_shared_experts": 1},
    "ernie4_5_moe": {"moe_num_shared_experts": 1},
    "exaone_moe": {**GROUPS, **WINDOWS},
    "flex_olmo": {},
    "flint": {"mlp_only_layers": [], **WINDOWS},
    "glm4_moe": {**GROUPS, "n_shared_experts": 1},
    "glm4_moe_lite": {**GROUPS, **LATENT, "n_shared_experts": 1},
    "glm_moe_dsa": {**GROUPS, **LATENT, "n_shared_experts": 1, "index_topk": 8},
    "gpt_oss": WINDOWS,
    "granitemoe": {"logits_scaling": 4.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.7},
    "granitemoe_swa": {"logits_scaling": 4.0},
    "granitemoehybrid": {
        "logits_scaling": 4.0,
        "shared_intermediate_size": 24,
        "mamba_n_heads": 4,
        "mamba_d_state": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "granitemoeshared": {"logits_scaling": 4.0, "shared_intermediate_size": 24},
    "hunyuan_v1_moe": {},
    "hy_v3": {"router_scaling_factor": 1.7},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 0, "mamba_d_state": 8},
    "jetmoe": {},
    "kolibri1": {},
    "laguna": {"mlp_layer_types": ["sparse", "sparse"]},
    "lfm2_moe": {"routed_scaling_factor": 1.7, "layer_types": ["conv", "full_attention"]},
    "llama4_text": {},
    "longcat_flash": {**LATENT, "num_layers": 1},
    "mellum": {},
    "mimo_v2_flash": {},
    "minimax": {},
    "minimax_m2": {"rotary_dim": 4},
    "mixtral": {"sliding_window": 6},
    "nemotron_h": {},
    "olmoe": {},
    "phimoe": {},
    "qwen2_moe": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen3_moe": {},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_moe_text": {"layer_types": ["linear_attention", "full_attention"]},
    "solar_open": {**GROUPS, "n_shared_experts": 1},
}


def tiny_model(family, dtype=torch.float32, seed=0, **settings_of_its_own):
    """A random model of a family, on the CPU, in a dtype and with settings besides those above."""
    known = AutoConfig.for_model(family)
    settings = {name: value for name, value in COMMON.items() if hasattr(known, name)}
    config = AutoConfig.for_model(family, **{**settings, **FAMILIES[family], **settings_of_its_own})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not tensor.is_floating_point() or "inv_freq" in name or "rotary" in name:
                continue
            with torch.no_grad():
                if "bias" in name or "sinks" in name:
                    tensor.normal_(0, 0.3)
                elif tensor.dim() > 1 and "A_log" not in name and "embed" not in name:
                    tensor.normal_(0, 1.5 / tensor.shape[-1] ** 0.5)
                elif "embed" in name and tensor.dim() > 1:
                    tensor.normal_(0, 1)
    return model.eval().requires_grad_(False).to(dtype)


# The table of docs/models.md


def describe(family):
    """A family's row: (how experts are ranked, how weighted, how sequences run), or (the refusal,)."""
    model = tiny_model(family)
    said = io.StringIO()
    try:
        rule = find_rule(model)
        check_experts(model, len(find_routers(model)))
        with contextlib.redirect_stderr(said):
            check_parity(model)
    except InputError as error:
        return (str(error).removeprefix("model: ").partition("; allowed are")[0],)
    ranked = "logits" if rule.bias is None or rule.bias_on_logits else rule.scores
    if rule.bias is not None:
        ranked += " + bias"
    if rule.masks_groups:
        ranked += f", groups by their {rule.group_score}"
    weighted = rule.scores + (", sum 1" if rule.normalized else "") + (", scaled" if rule.scale != 1 else "")
    how = "packed"
    if runs_unpacked(model):
        how = "one at a time: " + said.getvalue().strip().partition("slower: ")[2]
    return ranked, weighted, how


def table():
    """The families' table, in Markdown."""
    rows = {family: describe(family) for family in sorted(FAMILIES)}
    lines = ["| family | experts ranked by | weights | sequences |", "| --- | --- | --- | --- |"]
    lines += [f"| `{family}` | {' | '.join(row)} |" for family, row in rows.items() if len(row) > 1]
    lines += ["", "| refused family | because |", "| --- | --- |"]
    lines += [f"| `{family}` | {row[0]} |" for family, row in rows.items() if len(row) == 1]
    return "\n".join(lines)


def written():
    """docs/models.md as it should be: with the table between its marks."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("python tests/model_families.py --write puts the families' table into docs/models.md")
    PAGE.write_text(written(), encoding="utf-8")
