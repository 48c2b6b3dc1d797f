"""The routing atlas: its summaries against plain loops, its page in a browser, its pictures."""

import base64
import json
import math
import tempfile
import zlib
from collections import defaultdict
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import results_tables
import synthetic
from adaptive_routing.analysis import routing_summary
from adaptive_routing.analysis.metrics import HEAD, compute_metrics
from adaptive_routing.analysis.routing_curves import (
    COUNT_STARTS,
    HALF_STARTS,
    loss_correlations,
    loss_curves,
    mean_count,
)
from adaptive_routing.atlas.page import chosen_first, lift_codes, make_page, page_data
from adaptive_routing.atlas.tokens import token_texts
from adaptive_routing.figures.atlas import draw_atlas, shown_configurations
from adaptive_routing.figures.style import save
from adaptive_routing.routing_log import RoutingLog
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.json_files import read_json
from adaptive_routing.system.tensor_files import TensorFile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from legibility import illegible
from safetensors.numpy import load, save_file
from synthetic import PLAIN
from tokenizers import Tokenizer, decoders, models

ROOT = Path(__file__).parents[1]
EMBEDDED = {"name": "resources/embedded_model", "folder": str(ROOT / "resources/embedded_model")}
BASELINE = "8experts_topk_baseline"
MISSING = ("16experts_bh_a060", "hellaswag")  # an experiment without a result

# --- summaries ---


def plain_summary(log):
    """What a summary's sums are, from a `RoutingLog`, a token at a time: name to dict of sums."""
    sums = {
        name: defaultdict(float) for name in ("histogram", "together", "position", "type", "loss", "mean")
    }
    starts = set(log.sequence_offsets.tolist())
    for sample in map(log.sample, range(len(log))):
        counts, ids, losses = sample.expert_counts.tolist(), sample.token_ids.tolist(), sample.token_losses
        chosen = [sample.selected(layer) for layer in range(len(counts[0]))]
        place = 0
        for t, of_token in enumerate(counts):
            at = sample.start + t
            place = 0 if at in starts else place + 1
            after = math.nan if at + 1 in starts else float(losses[t + 1])
            # The nearest half; of two as near, the even number of halves.
            half = round(2 * sum(of_token) / len(of_token))
            for which, loss in enumerate((float(losses[t]), after)):
                if math.isfinite(loss):
                    for power in range(3):
                        sums["mean"][which, power, half] += loss**power
            for layer, count in enumerate(of_token):
                sums["histogram"][layer, count] += 1
                sums["position"][place, layer] += count
                sums["type"][ids[t], layer] += count
                experts = np.flatnonzero(chosen[layer][t]).tolist()
                for i in experts:
                    for j in experts:
                        sums["together"][layer, i, j] += 1
                for which, loss in enumerate((float(losses[t]), after)):
                    if math.isfinite(loss):
                        for power in range(3):
                            sums["loss"][which, power, layer, count] += loss**power
    return sums


def dense(sums, shape):
    array = np.zeros(shape)
    for index, value in sums.items():
        array[index] = value
    return array


@st.composite
def experiments(draw):
    """Draw (selection mask (T, L, E), token ids, losses, sample offsets, sequence offsets)."""
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    num_tokens, experts = sum(lengths), draw(st.integers(1, 18))
    mask = draw(hnp.arrays(bool, (num_tokens, draw(st.integers(1, 3)), experts)))
    ids = draw(hnp.arrays(np.int32, num_tokens, elements=st.integers(0, 2)))
    values = st.one_of(st.just(math.nan), st.floats(0, 20, width=32))
    losses = draw(hnp.arrays(np.float32, num_tokens, elements=values))
    sequences = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    samples = sequences if draw(st.booleans()) else sequences[[0, -1]]
    return mask, ids, losses, samples, sequences


@settings(max_examples=60, deadline=None)
@given(experiments(), st.integers(1, 200))
def test_a_summary_is_what_a_plain_loop_finds(experiment, block):
    mask, ids, losses, sample_offsets, sequence_offsets = experiment
    _, num_layers, num_experts = mask.shape
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run_internal_routing.safetensors"
        tensors = {
            "router_logits": np.zeros(mask.shape, np.float32), "expert_counts": mask.sum(-1).astype(np.uint8),
            "selected_experts": synthetic.pack(mask), "token_ids": ids, "token_losses": losses,
            "sample_offsets": sample_offsets, "sequence_offsets": sequence_offsets,
        }  # fmt: skip
        save_file(tensors, path, metadata={"head": "{}"})
        samples = [
            {"sample_id": f"s{i}", "num_tokens": int(n)} for i, n in enumerate(np.diff(sample_offsets))
        ]
        with mock.patch.object(routing_summary, "BLOCK_ELEMENTS", block), TensorFile(path) as file:
            arrays, _ = routing_summary.summarize_routing(file, samples)
        with RoutingLog(path) as log:
            plain = plain_summary(log)
    counts_shape = (num_layers, num_experts + 1)
    assert np.array_equal(arrays["count_histogram"], dense(plain["histogram"], counts_shape))
    together = dense(plain["together"], (num_layers, num_experts, num_experts))
    assert np.array_equal(arrays["co_selection"], together)
    assert np.all(arrays["position_tokens"].sum() == len(ids))
    edges = arrays["position_edges"]
    position = dense(plain["position"], (8, num_layers))
    for low, high, sums in zip(edges[:-1], edges[1:], arrays["position_count_sums"], strict=True):
        assert np.array_equal(sums, position[low:high].sum(axis=0))
    frequent = [i for i in range(3) if np.sum(ids == i) >= routing_summary.FEWEST_OCCURRENCES]
    assert sorted(arrays["type_ids"].tolist()) == frequent
    assert np.all(np.diff(arrays["type_tokens"]) <= 0)
    for i, tokens, sums in zip(*(arrays[f"type_{n}"] for n in ("ids", "tokens", "count_sums")), strict=True):
        assert tokens == np.sum(ids == i)
        assert sums.tolist() == [plain["type"][i, layer] for layer in range(num_layers)]
    assert_typical(arrays, mask, ids)
    loss = dense(plain["loss"], (2, 3, num_layers, num_experts + 1))
    mean = dense(plain["mean"], (2, 3, 2 * num_experts + 1))
    for power, name in enumerate(("tokens", "sums", "square_sums")):
        assert arrays[f"loss_{name}"] == pytest.approx(loss[:, power])
        assert arrays[f"mean_loss_{name}"] == pytest.approx(mean[:, power])


def assert_typical(arrays, mask, ids):
    """Each expert's typical tokens are those with the largest standardised residual, and counted right."""
    types = arrays["type_ids"].tolist()
    for layer, expert in np.ndindex(mask.shape[1:]):
        chosen, usual = mask[:, layer, expert], mask[:, layer, expert].mean()
        excess = {}
        for one in types if 0 < usual < 1 else ():
            own = ids == one
            spread = math.sqrt(own.sum() * usual * (1 - usual))
            excess[one] = (chosen[own].sum() - own.sum() * usual) / spread
        expected = sorted((one for one in types if excess.get(one, 0) > 1e-9), key=lambda one: -excess[one])
        listed = [one for one in arrays["typical_ids"][layer, expert].tolist() if one >= 0]
        assert set(listed) == set(expected)  # at most three types are drawn
        assert [excess[one] for one in listed] == pytest.approx([excess[one] for one in expected])
        tokens, totals = (arrays[f"typical_{name}"][layer, expert] for name in ("tokens", "occurrences"))
        for one, count, total in zip(listed, tokens.tolist(), totals.tolist(), strict=False):
            assert (count, total) == (chosen[ids == one].sum(), (ids == one).sum())


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """A made-up study with all summaries but one: (study, paths of the summaries)."""
    folder = tmp_path_factory.mktemp("atlas")
    study = synthetic.write_study(
        folder, datasets=("lambada", "hellaswag"), max_ks=(8, 16), alphas=(0.3, 0.6), num_experts=20,
        num_layers=3, num_samples=20,
    )  # fmt: skip
    paths = []
    for json_path, tensors_path in zip(study.summaries, study.tensors, strict=True):
        run = read_json(json_path)
        if (run["config"], run["dataset"]) != MISSING:
            with TensorFile(tensors_path) as tensors:
                arrays, shown = routing_summary.summarize_routing(tensors, run["samples"])
            paths.append(folder / "atlas" / f"{json_path.stem}.safetensors")
            routing_summary.write_routing_summary(paths[-1], {key: run[key] for key in HEAD}, arrays, shown)
    return study, paths


def summary_of(made_up, config, dataset):
    (path,) = [path for path in made_up[1] if path.stem == f"{config}_{dataset}"]
    return routing_summary.read_routing_summary(path)


def run_of(made_up, config, dataset):
    """The run's summary and an open log of it."""
    stem = made_up[0].folder / "logs" / f"{config}_{dataset}"
    return read_json(f"{stem}.json"), RoutingLog(f"{stem}_internal_routing.safetensors")


def test_a_summary_agrees_with_the_metrics(made_up):
    study, _ = made_up
    for json_path, tensors_path in zip(study.summaries, study.tensors, strict=True):
        run = read_json(json_path)
        if (run["config"], run["dataset"]) == MISSING:
            continue
        head, arrays, _ = summary_of(made_up, run["config"], run["dataset"])
        assert head == {key: run[key] for key in HEAD}
        with TensorFile(tensors_path) as tensors:
            per_layer = compute_metrics(run, tensors)["per_layer"]
        assert arrays["count_histogram"].tolist() == per_layer["expert_count_histogram"]
        assert np.einsum("lee->le", arrays["co_selection"]).tolist() == per_layer["expert_usage"]
        assert mean_count(arrays["count_histogram"]) == pytest.approx(per_layer["avg_experts"])


def test_the_kept_samples_are_long_ones_and_whole(made_up):
    run, log = run_of(made_up, "16experts_bh_a030", "hellaswag")
    _, arrays, sample_ids = summary_of(made_up, "16experts_bh_a030", "hellaswag")
    lengths = {one["sample_id"]: one["num_tokens"] for one in run["samples"]}
    parts = np.array_split(list(lengths), routing_summary.SHOWN_SAMPLES)
    assert sample_ids == [max(part, key=lengths.get) for part in parts]
    offsets, starts = arrays["sample_offsets"], set(arrays["sequence_starts"].tolist())
    for i, sample_id in enumerate(sample_ids):
        sample = log.sample(list(lengths).index(sample_id))
        kept = slice(offsets[i], offsets[i + 1])
        assert arrays["sample_sizes"][i] == len(sample.token_ids) == offsets[i + 1] - offsets[i]
        assert np.array_equal(arrays["token_ids"][kept], sample.token_ids)
        assert np.array_equal(arrays["token_losses"][kept], sample.token_losses, equal_nan=True)
        assert np.array_equal(arrays["expert_counts"][kept], sample.expert_counts)
        own = {n - sample.start for n in log.sequence_offsets if sample.start <= n < sample.stop}
        assert {n - offsets[i] for n in starts if offsets[i] <= n < offsets[i + 1]} == own
        assert len(own) == synthetic.NUM_ENDINGS


def test_a_long_sample_is_cut_and_generated_tokens_choose_no_sample(made_up):
    _, log = run_of(made_up, "16experts_bh_a030", "lambada")
    with mock.patch.object(routing_summary, "SHOWN_TOKENS", 7):
        arrays, _ = routing_summary.summarize_routing(
            log.tensors, run_of(made_up, *("16experts_bh_a030", "lambada"))[0]["samples"]
        )
    assert np.diff(arrays["sample_offsets"]).tolist() == [7] * routing_summary.SHOWN_SAMPLES
    assert (arrays["sample_sizes"] > 7).all()
    prompts = [{"num_tokens": n, "num_prompt_tokens": p} for n, p in ((90, 5), (10, 9), (80, 6))]
    with mock.patch.object(routing_summary, "SHOWN_SAMPLES", 1):
        assert routing_summary.shown_samples(prompts) == [1]
    assert routing_summary.shown_samples(prompts) == [0, 1, 2]


def test_equal_experiments_give_equal_files(made_up, tmp_path):
    path = made_up[1][0]
    for i in range(8):
        head, arrays, sample_ids = routing_summary.read_routing_summary(path)
        routing_summary.write_routing_summary(tmp_path / str(i), head, arrays, sample_ids)
    assert {(tmp_path / str(i)).read_bytes() for i in range(8)} == {path.read_bytes()}
    assert make_page(made_up[1], EMBEDDED, BASELINE) == make_page(made_up[1], EMBEDDED, BASELINE)


def test_a_file_that_is_no_summary_is_refused(made_up):
    tensors = made_up[0].tensors[0]
    with pytest.raises(InputError, match=f"{tensors.name} is not a summary of the routing atlas"):
        routing_summary.read_routing_summary(tensors)


# --- curves and codes ---


def range_of(value, starts):
    return max(i for i, start in enumerate(starts) if start <= value)


@pytest.mark.parametrize("which", [0, 1])
def test_curves_are_means_of_the_tokens_themselves(made_up, which):
    config = ("16experts_bh_a060", "lambada") if which == 0 else ("16experts_bh_a030", "hellaswag")
    _, arrays, _ = summary_of(made_up, *config)
    _, log = run_of(made_up, *config)
    counts, losses = (
        log.tensors.read("expert_counts").astype(float),
        log.tensors.read("token_losses").astype(float),
    )
    if which == 1:  # of the token after it
        losses = np.append(losses[1:], np.nan)
        losses[log.sequence_offsets[1:] - 1] = np.nan
    scored = np.isfinite(losses)
    halves = np.rint(2 * counts.mean(axis=1))
    columns = [(halves, 0.5, HALF_STARTS, "mean_loss", ())]
    columns += [(counts[:, layer], 1.0, COUNT_STARTS, "loss", (layer,)) for layer in range(3)]
    correlations = loss_correlations(arrays)[which]
    for row, (values, unit, starts, name, where) in enumerate(columns):
        tokens, centres, means, errors = (part[which][where] for part in loss_curves(arrays, name))
        bins = np.array([range_of(value, starts) for value in values])
        for i in range(len(tokens)):
            own = losses[scored & (bins == i)]
            assert tokens[i] == len(own)
            if len(own):
                assert centres[i] == pytest.approx(unit * values[scored & (bins == i)].mean())
                assert means[i] == pytest.approx(own.mean())
            if len(own) > 1:
                assert errors[i] == pytest.approx(own.std(ddof=1) / math.sqrt(len(own)))
        assert np.isnan(means[tokens == 0]).all() and np.isnan(errors[tokens < 2]).all()
        expected = np.corrcoef(values[scored], losses[scored])[0, 1]
        assert correlations[row] == pytest.approx(expected, abs=1e-6)
    _, constant, _ = summary_of(made_up, BASELINE, "lambada")
    assert np.isnan(loss_correlations(constant)).all()  # every token has the same count


def test_ranges_begin_where_the_page_says():
    assert COUNT_STARTS[:15] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17, 25, 33, 49]
    assert HALF_STARTS[:9] == [0, 2, 3, 4, 6, 8, 12, 16, 24]


@settings(deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 30), st.integers(2, 9))))
def test_lift_is_coded_to_a_few_per_cent(chosen):
    together = (chosen.T.astype(int) @ chosen.astype(int))[None].astype(np.uint32)
    codes = lift_codes(together, len(chosen))[0]
    pairs = [(i, j) for i in range(chosen.shape[1]) for j in range(i + 1, chosen.shape[1])]
    for (i, j), code in zip(pairs, codes.tolist(), strict=True):
        both, first, second = (
            float(np.mean(x)) for x in (chosen[:, i] & chosen[:, j], chosen[:, i], chosen[:, j])
        )
        if not first or not second:
            assert code == 0
        elif not both:
            assert code == 1
        else:
            assert 2 ** ((code - 128) / 10) == pytest.approx(both / (first * second), rel=0.036)


# --- tokens ---


def test_tokens_have_the_text_that_they_add():
    tokenizer = Tokenizer.from_file(str(ROOT / "resources/embedded_model/tokenizer.json"))
    text = "Osric bought a key .\n It's 1834, \t“dark” 🙂."
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    texts = token_texts(EMBEDDED["folder"], ids)
    shown = "".join(texts[i] for i in ids)
    assert shown.startswith("Osric bought a key .\n It's 1834, \t⟨E2")
    assert "⟨F0" in shown and "\ufffd" not in shown
    assert token_texts(EMBEDDED["folder"], [0, 99_999]) == {0: "<|endoftext|>", 99_999: "⟨#99999⟩"}


def test_spaces_stay_with_other_decoders_and_no_tokenizer_gives_numbers(tmp_path):
    vocabulary = {"▁the": 0, "<0xE2>": 1, "re": 2, "▁\u202e": 3, "<unk>": 4, "<0x0A>": 5}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    expected = {0: " the", 1: "⟨E2⟩", 2: "re", 3: " ⟨U+202E⟩", 5: "\n"}
    assert token_texts(tmp_path, [0, 1, 2, 3, 5]) == expected
    assert token_texts(tmp_path / "gone", [3]) == {3: "⟨#3⟩"}


# --- the page ---

ODD_TOKENS = [
    "<b>bold</b>",
    "</script><script>document.title='!'</script>",
    "\n",
    "🙂",
    " a",
    "&amp;",
    "\u2028",
    '"',
]


@pytest.fixture(scope="module")
def odd_model(tmp_path_factory):
    """A model whose tokens are text that a careless page would trip over."""
    folder = tmp_path_factory.mktemp("model")
    vocabulary = {ODD_TOKENS[i] if i < len(ODD_TOKENS) else f" w{i}": i for i in range(1000)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=" w999"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    return {"name": "a/<i>model</i>", "folder": str(folder)}


@pytest.fixture(scope="module")
def odd_paths(made_up, tmp_path_factory):
    """The summaries with the first tokens of every sample replaced by the odd ones."""
    folder = tmp_path_factory.mktemp("odd")
    for path in made_up[1]:
        head, arrays, sample_ids = routing_summary.read_routing_summary(path)
        for start in arrays["sample_offsets"][:-1]:
            arrays["token_ids"][start : start + len(ODD_TOKENS)] = range(len(ODD_TOKENS))
        routing_summary.write_routing_summary(folder / path.name, head, arrays, sample_ids)
    return [folder / path.name for path in made_up[1]]


@pytest.fixture(scope="module")
def page(odd_paths, odd_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "routing atlas.html"
    path.write_text(make_page(odd_paths, odd_model, BASELINE), encoding="utf-8")
    return path


def shown(browser, path, **state):
    """Open the page in a state; wait until it is drawn."""
    browser.problems.clear()
    browser.requests.clear()
    browser.open(path, "&".join(f"{key}={value}" for key, value in state.items()))
    browser.wait_for("document.body?.dataset.shown")
    return browser


def choose(browser, control, value):
    """Choose in a control as a person does, and wait for it."""
    browser.run(
        f"(() => {{ const one = document.querySelector('[data-state={control}]');"
        f"one.value = {json.dumps(value)};"
        "one.dispatchEvent(new Event('change')); })()"
    )
    browser.wait_for(f"JSON.parse(document.body.dataset.shown).{control} === {json.dumps(value)}")


def text_of(browser, selector):
    return browser.run(f"document.querySelector({json.dumps(selector)}).innerText")


def drawn(browser, plot, trace, key):
    """An array of a plot's trace, as plotly has it."""
    values = browser.run(f"Array.from(document.getElementById('{plot}').data[{trace}].{key})")
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def assert_quiet(browser):
    assert browser.problems == []
    assert {url.partition(":")[0] for url in browser.requests} <= {"file", "data", "blob"}
    assert sum(url.startswith("file:") for url in browser.requests) == 1


def test_the_page_opens_with_baseline_and_bh_without_a_request(browser, page, made_up):
    shown(browser, page)
    assert_quiet(browser)
    state = json.loads(browser.run("document.body.dataset.shown"))
    means = {}
    for config, strategy, _, _ in synthetic.configurations((8, 16), (0.3, 0.6)):
        of_config = [path.stem for path in made_up[1] if path.stem.startswith(config)]
        histograms = [summary_of(made_up, *stem.rsplit("_", 1))[1]["count_histogram"] for stem in of_config]
        if strategy == "bh":
            means[config] = np.mean([mean_count(histogram.sum(axis=0)) for histogram in histograms])
    assert state["a"] == BASELINE and state["layer"] == "all"
    assert state["b"] == min(means, key=lambda config: abs(means[config] - 8))
    assert text_of(browser, "h1") == "Routing atlas of a/<i>model</i>"
    assert browser.run("document.title") == "Routing atlas of a/<i>model</i>"
    assert "6 configurations, 2 data sets; 3 MoE layers of 20 experts" in text_of(browser, "header")
    controls = browser.run("[...document.querySelectorAll('select')].map((one) => one.labels.length)")
    assert len(controls) == 9 and set(controls) == {1}


@pytest.mark.parametrize("layer", ["all", "2"])
def test_what_is_drawn_are_the_runs_own_numbers(browser, page, made_up, layer):
    config, dataset = "16experts_bh_a030", "hellaswag"
    shown(browser, page, dataset=dataset, b=config, layer=layer)
    _, log = run_of(made_up, config, dataset)
    counts = log.tensors.read("expert_counts").astype(float)  # (T, L)
    own = counts if layer == "all" else counts[:, [2]]
    findings = text_of(browser, "#findings")
    assert f"{own.mean():.2f} experts per token on average" in findings
    assert "every token gets 8 experts" in findings
    ranges = np.array([range_of(count, COUNT_STARTS) for count in own.ravel()])
    assert drawn(browser, "histogram", 1, "y") == pytest.approx(
        100 * np.bincount(ranges, minlength=12) / len(ranges)
    )
    shares = browser.run("document.getElementById('counts-b').data[0].z")
    for of_layer in range(3):
        found = np.array([np.nan if row[of_layer] is None else 10 ** row[of_layer] for row in shares])
        ranges = [range_of(count, COUNT_STARTS) for count in counts[:, of_layer]]
        assert np.nan_to_num(found) == pytest.approx(100 * np.bincount(ranges, minlength=12) / len(ranges))
    assert drawn(browser, "counts-b", 1, "customdata") == pytest.approx(counts.mean(axis=0))
    _, arrays, _ = summary_of(made_up, config, dataset)
    usage = np.einsum("lee->le", arrays["co_selection"])
    assert np.array(browser.run("document.getElementById('usage-b').data[0].z")) == pytest.approx(
        100 * usage / len(counts)
    )
    first_place = counts[log.sequence_offsets[:-1]]
    first_place = first_place if layer == "all" else first_place[:, [2]]
    assert drawn(browser, "position", 1, "y")[0] == pytest.approx(first_place.mean(), rel=1e-6)
    for which, name in enumerate(("0", "1")):
        choose(browser, "loss", name)
        where = ("mean_loss", (which,)) if layer == "all" else ("loss", (which, 2))
        tokens, _, means, _ = (part[where[1]] for part in loss_curves(arrays, where[0]))
        assert drawn(browser, "loss", 1, "y") == pytest.approx(means[tokens >= 10], abs=5.1e-4)
    assert_quiet(browser)


def test_pairs_of_a_layer_are_compared_as_chosen(browser, page, made_up):
    config, dataset = "16experts_bh_a060", "lambada"
    shown(browser, page, dataset=dataset, a=config, layer=1, reference="independence")
    _, arrays, _ = summary_of(made_up, config, dataset)
    together, tokens = arrays["co_selection"][1].astype(float), arrays["count_histogram"][1].sum()
    lift = together * tokens / np.outer(np.diag(together), np.diag(together))

    def ratios():
        rows = browser.run("document.getElementById('pairs-a').data[0].z")
        return 2 ** np.array([[np.nan if value is None else value for value in row] for row in rows])

    others = ~np.eye(20, dtype=bool) & (together > 0)
    found = ratios()
    assert found[others] == pytest.approx(np.maximum(lift[others], 1 / 16), rel=0.04)
    assert np.isnan(np.diag(found)).all()
    choose(browser, "reference", "chance")
    counts = np.arange(21)
    histogram = arrays["count_histogram"][1] / tokens
    chance = (histogram @ (counts * (counts - 1))) / (histogram @ counts) ** 2 * 20 / 19
    assert ratios()[others] == pytest.approx(np.maximum(lift[others] / chance, 1 / 16), rel=0.04)
    choose(browser, "order", "usage")
    order = np.argsort(-np.diag(together), kind="stable")
    assert ratios()[others[np.ix_(order, order)]] == pytest.approx(
        np.maximum(lift[np.ix_(order, order)][others[np.ix_(order, order)]] / chance, 1 / 16), rel=0.04
    )
    choose(browser, "order", "partners")
    assert np.sort(ratios()[~np.eye(20, dtype=bool)]) == pytest.approx(
        np.sort(found[~np.eye(20, dtype=bool)] / chance)
    )
    choose(browser, "layer", "all")
    assert len(drawn(browser, "pairs-a", 2, "y")) == 3
    assert_quiet(browser)


def test_tokens_are_listed_with_their_numbers(browser, page, made_up, odd_model):
    config, dataset = "16experts_bh_a030", "hellaswag"
    shown(browser, page, dataset=dataset, b=config, layer=1)
    assert "All get the same: 8.00 experts." in text_of(browser, "#types-a")
    _, arrays, _ = summary_of(made_up, config, dataset)
    texts = token_texts(odd_model["folder"], range(1000))
    means = arrays["type_count_sums"][:, 1] / arrays["type_tokens"]
    rows = browser.run(
        "[...document.querySelectorAll('#types-b table')]"
        ".map((table) => [...table.querySelectorAll('tr')].slice(1)"
        ".map((row) => [...row.cells].map((cell) => cell.textContent)))"
    )
    listed = min(15, len(means) // 2)
    assert [len(table) for table in rows] == [listed, listed]
    visible = {texts[i].replace(" ", "␣"): i for i in arrays["type_ids"].tolist()}
    for table, extreme in zip(rows, (np.sort(means)[::-1], np.sort(means)), strict=True):
        assert [row[1] for row in table] == [f"{mean:.2f}" for mean in extreme[:listed]]
        for token, mean, occurrences in table:
            place = arrays["type_ids"].tolist().index(visible[token])
            assert (mean, occurrences) == (f"{means[place]:.2f}", str(arrays["type_tokens"][place]))


def test_an_experts_typical_tokens_are_listed(browser, page, made_up, odd_model):
    config, dataset = "16experts_bh_a030", "hellaswag"
    shown(browser, page, dataset=dataset, b=config, layer=1)
    _, arrays, _ = summary_of(made_up, config, dataset)
    texts, usage = token_texts(odd_model["folder"], range(1000)), arrays["co_selection"][1].diagonal()
    read = (
        "[...document.querySelectorAll('#typical-b tr')].slice(1)"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    rows = browser.run(read)
    with_any = [e for e in range(20) if arrays["typical_ids"][1, e, 0] >= 0]
    assert [int(row[0]) for row in rows] == with_any != []
    for expert, (_, share, tokens) in zip(with_any, rows, strict=True):
        assert share == f"{100 * usage[expert] / arrays['count_histogram'][1].sum():.1f}"
        ids, chosen, total = (
            arrays[f"typical_{name}"][1, expert] for name in ("ids", "tokens", "occurrences")
        )
        shares = np.rint(100 * chosen / np.maximum(total, 1))
        named = [texts[i].replace(" ", "␣").replace("\n", "↵") for i in ids.tolist() if i >= 0]
        assert tokens == "  ".join(f"{name} {int(s)}\u00a0%" for name, s in zip(named, shares, strict=False))
    choose(browser, "layer", "all")
    assert [row[0].split(" / ")[0] for row in browser.run(read)] == ["0", "1", "2"]
    assert "No token stands out." not in text_of(browser, "#typical-b")
    assert_quiet(browser)


def test_the_text_is_shaded_and_read_with_the_keyboard(browser, page, made_up):
    config, dataset = "16experts_bh_a030", "hellaswag"
    shown(browser, page, dataset=dataset, b=config, sample=3)
    _, arrays, sample_ids = summary_of(made_up, config, dataset)
    start, stop = arrays["sample_offsets"][3:5]
    assert (
        browser.run("document.querySelector('[data-state=sample]').selectedOptions[0].text") == sample_ids[3]
    )
    tokens = browser.run("[...document.querySelectorAll('#text-b .token')].map((one) => one.textContent)")
    assert len(tokens) == stop - start
    assert tokens[:8] == ["↵\n" if one == "\n" else one for one in ODD_TOKENS]  # shown, and not obeyed
    assert browser.run("document.querySelectorAll('#text-b b, #text-b script').length") == 0
    assert (
        browser.run("document.querySelectorAll('#text-b p').length") == 1 + synthetic.NUM_ENDINGS
    )  # and a heading
    colours = browser.run(
        "[...document.querySelectorAll('#text-b .token')].map((one) => getComputedStyle(one).backgroundColor)"
    )
    means = arrays["expert_counts"][start:stop].mean(axis=1)
    darkness = [-sum(map(int, colour[4:-1].split(", "))) for colour in colours]
    assert np.corrcoef(darkness, means)[0, 1] > 0.9
    for equal in (means == means.min(), means == means.max()):
        assert len({colour for colour, same in zip(colours, equal, strict=True) if same}) == 1
    browser.run("document.querySelector('#text-b .text').focus()")
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    said = text_of(browser, "#token")
    assert said.startswith("Token 3, “↵”") and f"B: {means[2]:.2f} experts" in said
    assert drawn(browser, "token-plot", 1, "y").tolist() == arrays["expert_counts"][start + 2].tolist()
    browser.press("End")
    assert text_of(browser, "#token").startswith(f"Token {stop - start},")
    choose(browser, "shade", "loss")
    unscored = browser.run("document.querySelectorAll('#text-b .unscored').length")
    assert unscored == np.isnan(arrays["token_losses"][start:stop]).sum() > 0
    assert "Hatched: not scored." in text_of(browser, "#scale")
    assert_quiet(browser)


def test_the_text_is_shaded_by_who_was_better(browser, odd_paths, odd_model, tmp_path):
    config, dataset = "16experts_bh_a030", "hellaswag"
    (path,) = [path for path in odd_paths if path.stem == f"{config}_{dataset}"]
    head, arrays, sample_ids = routing_summary.read_routing_summary(path)
    gains = np.resize([0.5, -0.25, 0.0], len(arrays["token_losses"])).astype(np.float32)
    control = arrays | {"token_losses": arrays["token_losses"] + gains}
    fixed = tmp_path / "fixed.safetensors"
    head = head | {"config": f"{config}_fixed", "control": "fixed", "control_of": config}
    routing_summary.write_routing_summary(fixed, head, control, sample_ids)
    page = tmp_path / "atlas.html"
    page.write_text(make_page(odd_paths, odd_model, BASELINE, config, [fixed]), encoding="utf-8")

    shown(browser, page, dataset=dataset, sample=3, shade="gain")
    start, stop = arrays["sample_offsets"][3:5]
    looks = browser.run(
        "[...document.querySelectorAll('#text-b .token')].map((one) => "
        "one.classList.contains('unscored') ? null : one.style.backgroundColor)"
    )
    expected = [
        None if np.isnan(loss) else {0.5: "rgb(0, 114, 178)", 0.0: "rgb(255, 255, 255)"}.get(gain, "orange")
        for loss, gain in zip(arrays["token_losses"][start:stop], gains[start:stop].tolist(), strict=True)
    ]
    for look, wanted in zip(looks, expected, strict=True):
        if wanted == "orange":
            red, _, blue = map(int, look[4:-1].split(", "))
            assert red > blue
        else:
            assert look == wanted
    scale = text_of(browser, "#scale")
    assert "blue: better than its fixed control, orange: worse" in scale
    assert "Hatched: not scored, or without a fixed control." in scale  # as all tokens of A
    first = next(i for i, wanted in enumerate(expected) if wanted == "orange")
    browser.run("document.querySelector('#text-b .text').focus()")
    for _ in range(first):
        browser.press("ArrowRight")
    assert "(0.25 worse than fixed)" in text_of(browser, "#token")
    tooltips = browser.run("[...document.querySelectorAll('#text-b .token')].map((one) => one.title)")
    for tooltip, wanted, gain in zip(tooltips, expected, gains[start:stop].tolist(), strict=True):
        said = f"({abs(gain):.2f} {'worse' if gain < 0 else 'better'} than fixed)"
        assert tooltip.endswith(said) == (wanted is not None)
    choose(browser, "b", "none")
    assert text_of(browser, "#scale").startswith("Neither configuration has a fixed control here.")
    assert_quiet(browser)


def test_a_click_on_a_layer_chooses_it_and_the_address_keeps_it(browser, page):
    browser.size(1400, 1000)
    shown(browser, page, dataset="hellaswag", b="16experts_bh_a030")
    x, y = browser.run(
        "(() => { const plot = document.getElementById('counts-b'), box = plot.getBoundingClientRect();"
        "const { xaxis, yaxis } = plot._fullLayout;"
        "return [box.x + xaxis._offset + xaxis.l2p(1), box.y + yaxis._offset + yaxis.l2p(1)]; })()"
    )
    browser.point(x, y)
    browser.wait_for(
        "Boolean(document.getElementById('counts-b')._hoverdata)"
    )  # plotly's own, after a moment
    browser.click(x, y)
    browser.wait_for("JSON.parse(document.body.dataset.shown).layer === '1'")
    address = browser.run("location.hash")
    assert "layer=1" in address and "dataset=hellaswag" in address
    assert "layer 1" in text_of(browser, "#findings")
    choose(browser, "layer", "all")
    assert "layer=" not in browser.run("location.hash")
    assert_quiet(browser)


def test_a_link_to_one_configuration_shows_it_beside_the_baseline(browser, page):
    shown(browser, page, config="16experts_bh_a060", dataset="lambada")
    state = json.loads(browser.run("document.body.dataset.shown"))
    assert (state["a"], state["b"], state["dataset"]) == (BASELINE, "16experts_bh_a060", "lambada")
    assert "BH max_k 16, α 0.6 (16experts_bh_a060), lambada" in text_of(browser, "#findings")
    shown(browser, page, config=BASELINE)
    assert json.loads(browser.run("document.body.dataset.shown"))["a"] == BASELINE
    assert_quiet(browser)


def test_the_page_opens_on_the_configuration_that_the_report_names(browser, made_up, tmp_path):
    named = "8experts_bh_a060"
    (tmp_path / "page.html").write_text(make_page(made_up[1], EMBEDDED, BASELINE, named), encoding="utf-8")
    shown(browser, tmp_path / "page.html")
    state = json.loads(browser.run("document.body.dataset.shown"))
    assert (state["a"], state["b"]) == (BASELINE, named)


def test_nonsense_in_the_address_is_ignored(browser, page):
    shown(browser, page, dataset="nowhere", layer=99, a="<b>", sample=77, order="%22")
    state = json.loads(browser.run("document.body.dataset.shown"))
    assert (state["dataset"], state["layer"], state["a"], state["sample"]) == (
        "lambada",
        "all",
        BASELINE,
        "0",
    )
    assert_quiet(browser)


def test_a_missing_experiment_and_one_configuration_alone(browser, page):
    shown(browser, page, dataset=MISSING[1], b=MISSING[0], layer=1)
    said = "no result for BH max_k 16, α 0.6 on hellaswag"
    assert "no result." in text_of(browser, "#findings")
    for plot in ("counts-b", "usage-b", "pairs-b"):
        assert browser.run(f"document.getElementById('{plot}').layout.annotations[0].text") == said
    assert said in text_of(browser, "#types-b") and said in text_of(browser, "#text-b")
    choose(browser, "a", MISSING[0])
    assert text_of(browser, "#findings").count("no result.") == 2
    choose(browser, "b", "none")
    assert browser.run("getComputedStyle(document.getElementById('counts-b')).display") == "none"
    choose(browser, "dataset", "lambada")  # where it has a result
    assert "experts per token on average" in text_of(browser, "#findings")
    assert_quiet(browser)


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_the_page_fits_its_width(browser, page, width):
    browser.size(width, 900)
    shown(browser, page, layer=1)
    assert browser.run("document.documentElement.scrollWidth") <= width
    columns = browser.run(
        "getComputedStyle(document.querySelector('.pair')).gridTemplateColumns.split(' ').length"
    )
    assert columns == (1 if width < 832 else 2)
    assert_quiet(browser)


def test_one_configuration_on_one_data_set_is_a_page(browser, made_up, tmp_path):
    (path,) = [path for path in made_up[1] if path.stem == "8experts_bh_a030_lambada"]
    (tmp_path / "page.html").write_text(make_page([path], EMBEDDED, BASELINE), encoding="utf-8")
    shown(browser, tmp_path / "page.html")
    assert json.loads(browser.run("document.body.dataset.shown"))["b"] == "none"
    assert text_of(browser, "#findings").count("experts per token on average") == 1
    assert_quiet(browser)


def test_a_study_without_experiments_is_an_error():
    with pytest.raises(InputError, match="there is no summary of an experiment"):
        make_page([], EMBEDDED, BASELINE)


def test_the_configuration_beside_the_baseline_is_the_most_like_it():
    heads = [{"config": name, "strategy": name[:-1]} for name in ("topk1", "topk2", "bh1", "bh2")]
    means = {"topk1": [8, 8], "topk2": [9, 9], "bh1": [3, 9], "bh2": [8, 5]}
    assert chosen_first(heads, means, "topk1") == ("topk1", "bh2")
    assert chosen_first(heads[:2], means, "topk1") == ("topk1", "topk2")
    assert chosen_first(heads[2:], means, "topk1") == ("bh1", "bh2")
    assert chosen_first(heads[:1], means, "topk1") == ("topk1", None)


def hardest_experiment(path, num_layers=16, num_experts=64, num_samples=200, length=500):
    """Write the summary of a run whose routing has no pattern, so that it cannot be compressed."""
    rng = np.random.default_rng(0)
    num_tokens, shape = num_samples * length, (num_samples * length, num_layers)
    selected = rng.integers(0, 256, size=(*shape, num_experts // 8), dtype=np.uint8)
    offsets = np.arange(0, num_tokens + 1, length)
    tensors = {
        "router_logits": np.zeros((1, num_layers, num_experts), np.float16), "selected_experts": selected,
        "expert_counts": np.bitwise_count(selected).sum(-1).astype(np.uint8), "sample_offsets": offsets,
        "token_ids": rng.integers(0, 5000, size=num_tokens, dtype=np.int32), "sequence_offsets": offsets,
        "token_losses": rng.gamma(1.0, 2.0, size=num_tokens).astype(np.float32),
    }  # fmt: skip
    save_file(tensors, path / "tensors.safetensors")
    samples = [{"sample_id": f"wikitext_{i}", "num_tokens": length} for i in range(num_samples)]
    with TensorFile(path / "tensors.safetensors") as file:
        return routing_summary.summarize_routing(file, samples)


def test_sixty_experiments_without_a_pattern_make_a_page_of_the_size_allowed(tmp_path):
    arrays, sample_ids = hardest_experiment(tmp_path)
    head = {"config": "64experts_bh_a030", "strategy": "bh", "k_or_max_k": 64, "alpha": 0.3}
    head |= PLAIN | {"num_experts": 64, "dataset": "wikitext"}
    path = tmp_path / "64experts_bh_a030_wikitext.safetensors"
    routing_summary.write_routing_summary(path, head, arrays, sample_ids)
    assert path.stat().st_size < 1e6
    # Of each experiment the page holds as many bytes; all that is theirs alike comes once.
    page = make_page([path], EMBEDDED, BASELINE)
    data = json.loads(page.partition('id="atlas">')[2].partition("</script>")[0])
    packed = data["experiments"][head["config"]]["wikitext"]
    assert len(page.encode()) + 59 * len(packed) < 15e6
    assert set(load(zlib.decompress(base64.b64decode(packed)))) == set(page_data(arrays, with_pairs=True))


def test_too_many_pairs_are_left_out_and_the_page_says_so(browser, made_up, tmp_path):
    with mock.patch("adaptive_routing.atlas.page.MOST_PAIRS", 100):
        page = make_page(made_up[1], EMBEDDED, BASELINE)
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    for layer in ("all", "1"):
        shown(browser, tmp_path / "page.html", layer=layer)
        said = browser.run("document.getElementById('pairs-a').layout.annotations[0].text")
        assert said.startswith("Too many pairs for this page")
        assert_quiet(browser)


# --- the pictures ---


@pytest.fixture(scope="module")
def pictured(made_up):
    """A study's tables with the made-up summaries: (study, summaries)."""
    study = results_tables.study(
        max_ks=(8, 16), alphas=(0.3, 0.6), ks=(8, 16), datasets=("lambada", "hellaswag")
    )
    read = map(routing_summary.read_routing_summary, made_up[1])
    return study, {(head["config"], head["dataset"]): arrays for head, arrays, _ in read}


def test_the_pictures_show_the_summaries(pictured, tmp_path):
    study, summaries = pictured
    figures = draw_atlas(study, summaries)
    assert list(figures) == ["atlas_counts", "atlas_usage", "atlas_position_loss"]
    counts = figures["atlas_counts"].axes[0]
    arrays = summaries["16experts_bh_a030", "lambada"]
    (image,) = counts.get_images()
    shares = arrays["count_histogram"] / arrays["count_histogram"].sum(axis=1, keepdims=True)
    assert image.get_array()[1].filled(0) == pytest.approx(100 * shares[:, 1])  # row: one expert
    assert image.get_array()[-1].filled(0) == pytest.approx(100 * shares[:, 13:17].sum(axis=1))
    usage = figures["atlas_usage"].axes[1].get_images()[0].get_array()
    assert np.asarray(usage) == pytest.approx(
        100 * np.einsum("lee->le", arrays["co_selection"]) / arrays["count_histogram"][0].sum()
    )
    position = figures["atlas_position_loss"].axes[0].lines
    expected = arrays["position_count_sums"].sum(axis=1) / arrays["position_tokens"] / 3
    assert position[0].get_ydata() == pytest.approx(expected[arrays["position_tokens"] >= 10])
    assert set(position[-1].get_ydata()) == {8}  # the baseline
    # One experiment has no result: two maps of it are missing, and say so.
    for name, missing in (("atlas_counts", 1), ("atlas_usage", 1)):
        texts = [text.get_text() for axes in figures[name].axes for text in axes.texts]
        assert texts == ["no results"] * missing
    for name, figure in figures.items():
        assert illegible(figure) == []
        for suffix in ("png", "svg"):
            save(figure, tmp_path / f"{name}.{suffix}")
            assert (tmp_path / f"{name}.{suffix}").stat().st_size > 10_000


def test_pictures_take_up_to_four_alphas_at_the_largest_max_k():
    alphas = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    rows = shown_configurations(results_tables.study(max_ks=(8, 32), alphas=alphas))
    assert [row["config"] for row in rows] == [f"32experts_bh_a{a:03d}" for a in (10, 30, 50, 70)]
    rows = shown_configurations(results_tables.study(max_ks=(8, 32), alphas=alphas), "8experts_bh_a020")
    assert [row["config"] for row in rows] == [
        "8experts_bh_a020",
        *(f"32experts_bh_a{a:03d}" for a in (10, 40, 70)),
    ]
    rows = shown_configurations(results_tables.study(max_ks=(8,), alphas=(0.3,)))
    assert [row["config"] for row in rows] == ["8experts_bh_a030"]


def test_pictures_of_a_study_without_bh_or_without_baseline(pictured):
    _, summaries = pictured
    only_topk = results_tables.study(max_ks=(), ks=(8, 16), datasets=("lambada", "hellaswag"))
    figures = draw_atlas(only_topk, summaries)
    assert [text.get_text() for text in figures["atlas_counts"].texts[1:]] == [
        "no adaptive configuration has results"
    ]
    assert len(figures["atlas_usage"].axes) == 2 + 1  # the baseline on two data sets, and the scale
    no_baseline = results_tables.study(
        max_ks=(8, 16), alphas=(0.3, 0.6), ks=(), datasets=("lambada", "hellaswag")
    )
    figures = draw_atlas(no_baseline, summaries)
    assert len(figures["atlas_usage"].axes) == 4 + 1
    for figure in figures.values():
        assert illegible(figure) == []
