"""Paired losses by bins of tokens, on made-up routing logs in which one bin differs."""

from types import SimpleNamespace

import numpy as np
import pytest
from adaptive_routing.analysis.statistics import corrected_p_values
from adaptive_routing.analysis.where import (
    BASELINE_LOSS,
    BY,
    EXPERTS,
    FREQUENCY,
    POSITION,
    WHERE_COLUMNS,
    WORD_START,
    begins_word,
    token_differences,
    where_table,
)
from adaptive_routing.atlas.tokens import token_texts
from adaptive_routing.data.tasks.uncertainty import ratio_with_stderr
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.tensor_files import TensorFile
from conftest import ROOT
from safetensors.numpy import save_file

SAMPLES, LENGTH, LAYERS = 60, 96, 3
WORD_STARTS = np.arange(50) % 3 == 0


@pytest.fixture
def log(tmp_path):
    """A function that writes a log and opens it: losses are the text's own, plus `change(text)` and noise."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(LENGTH // 2, LENGTH, size=SAMPLES)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = int(offsets[-1])
    position = np.arange(tokens) - np.repeat(offsets[:-1], lengths)
    ids = np.minimum(rng.geometric(0.1, size=tokens) - 1, 49).astype(np.int32)
    text = SimpleNamespace(
        offsets=offsets,
        position=position,
        ids=ids,
        difficulty=rng.gamma(2, 1, size=tokens),
        counts=rng.integers(1, 9, size=(tokens, LAYERS)).astype(np.uint8),
        clusters=(np.arange(SAMPLES) // 2).tolist(),
    )
    opened = []

    def write(name, change=lambda text: 0.0, noise=0.05, token_ids=ids, unscored=position == 0):
        losses = text.difficulty + change(text) + rng.normal(0, noise, size=tokens)
        tensors = {
            "token_ids": token_ids,
            "token_losses": np.where(unscored, np.nan, losses).astype(np.float32),
            "sample_offsets": offsets,
            "sequence_offsets": offsets,
            "expert_counts": text.counts,
        }
        save_file(tensors, tmp_path / f"{name}.safetensors", metadata={"head": "{}"})
        opened.append(TensorFile(tmp_path / f"{name}.safetensors"))
        return opened[-1]

    yield SimpleNamespace(write=write, text=text)
    for one in opened:
        one.close()


def table_of(log, change, clusters=None):
    own, control, baseline = log.write("own", change), log.write("control"), log.write("baseline", noise=0)
    tokens = token_differences(own, control, baseline, clusters or log.text.clusters)
    return where_table([("16experts_bh_a030", "wikitext", tokens)], WORD_STARTS)


def mean_experts_before(text):
    """The mean count at the position before each token."""
    return np.roll(text.counts.mean(axis=1), 1)


def test_every_bin_is_there_and_each_kind_covers_all_tokens(log):
    table = table_of(log, lambda text: 0.0)
    assert list(table.columns) == WHERE_COLUMNS
    assert table["by"].unique().tolist() == [POSITION, FREQUENCY, BASELINE_LOSS, EXPERTS, WORD_START]
    assert set(table["by"]) == set(BY)
    scored = np.count_nonzero(log.text.position > 0)
    assert table.groupby("by")["tokens"].sum().eq(scored).all()
    assert table["p_holm"].tolist() == pytest.approx(corrected_p_values(table["p_value"].tolist(), "holm"))
    assert (table["p_holm"] >= 0.05).all()
    assert ((table["ci_low"] <= 0) & (table["ci_high"] >= 0)).all()
    assert table["clusters"].max() == SAMPLES // 2
    positions = table[table["by"] == POSITION]
    assert positions["label"].tolist()[:4] == ["1", "2", "3", "4 to 5"]
    for by in (FREQUENCY, BASELINE_LOSS, EXPERTS):
        assert 2 <= (table["by"] == by).sum() <= 4
    assert table.loc[table["by"] == WORD_START, "label"].tolist() == ["inside a word", "begins a word"]


@pytest.mark.parametrize(
    "by, change, label",
    [
        (POSITION, lambda text: 0.3 * ((text.position >= 12) & (text.position < 16)), "12 to 15"),
        (WORD_START, lambda text: 0.3 * WORD_STARTS[text.ids], "begins a word"),
        (BASELINE_LOSS, lambda text: 0.3 * (text.difficulty > 3), None),
        (EXPERTS, lambda text: -0.3 * (mean_experts_before(text) < 3.3), None),
        (FREQUENCY, lambda text: 0.3 * (np.bincount(text.ids)[text.ids] < 100), None),
    ],
)
def test_the_bin_that_differs_is_found(log, by, change, label):
    table = table_of(log, change)
    of_kind = table[table["by"] == by]
    found = of_kind.loc[of_kind["difference"].abs().idxmax()]
    assert found["p_holm"] < 0.001
    assert abs(found["difference"]) > 0.2
    assert found["ci_low"] >= 0 or found["ci_high"] <= 0
    if label:
        assert found["label"] == label
        assert found["difference"] == pytest.approx(0.3, abs=0.02)
        others = of_kind[of_kind["label"] != label]
        assert (others["difference"].abs() < 0.05).all()
        assert (others["p_holm"] >= 0.05).all()
    else:
        ends = of_kind["difference"].iloc[[0, -1]].abs()
        assert found["label"] == of_kind["label"].iloc[0 if ends.iloc[0] > ends.iloc[1] else -1]


def test_a_bins_numbers_by_hand(log):
    own, control, baseline = log.write("own"), log.write("control"), log.write("baseline")
    text = log.text
    tokens = token_differences(own, control, baseline, text.clusters)
    table = where_table([("c", "d", tokens)])
    assert WORD_START not in set(table["by"])
    row = table[(table["by"] == POSITION) & (table["bin_low"] == 6)].iloc[0]
    assert row["bin_high"] == 8
    chosen = (text.position >= 6) & (text.position < 8)
    difference = own.read("token_losses").astype(float) - control.read("token_losses").astype(float)
    samples = np.repeat(np.arange(SAMPLES), np.diff(text.offsets))
    sums = np.bincount(samples[chosen] // 2, difference[chosen])
    sizes = np.bincount(samples[chosen] // 2)
    assert (row["difference"], row["stderr"]) == pytest.approx(ratio_with_stderr(sums, sizes))
    assert row["tokens"] == chosen.sum()


def test_the_count_is_that_of_the_position_that_predicts_the_token(log):
    own, control, baseline = log.write("own"), log.write("control"), log.write("baseline")
    tokens = token_differences(own, control, baseline)
    scored = log.text.position > 0
    np.testing.assert_allclose(tokens.experts, mean_experts_before(log.text)[scored])
    np.testing.assert_array_equal(tokens.position, log.text.position[scored])
    np.testing.assert_array_equal(tokens.frequency, np.bincount(log.text.ids)[log.text.ids][scored])
    assert len(np.unique(tokens.clusters)) == SAMPLES


def test_all_configurations_are_one_family(log):
    own, control, baseline = log.write("own"), log.write("control"), log.write("baseline")
    tokens = token_differences(own, control, baseline)
    one = where_table([("a", "d", tokens)])
    two = where_table(iter([("a", "d", tokens), ("b", "d", tokens)]))
    assert len(two) == 2 * len(one)
    assert (two["ci_high"] - two["ci_low"]).iloc[0] > (one["ci_high"] - one["ci_low"]).iloc[0]
    assert where_table([]).empty


def test_equal_counts_are_no_bins(log):
    own, control, baseline = log.write("own"), log.write("control"), log.write("baseline")
    tokens = token_differences(own, control, baseline)
    tokens.experts[:] = 8.0
    assert EXPERTS not in set(where_table([("a", "d", tokens)])["by"])


def test_logs_of_different_tokens_are_refused(log):
    own = log.write("own")
    other = log.write("other", token_ids=log.text.ids[::-1].copy())
    with pytest.raises(InputError, match=r"own\.safetensors and .*other\.safetensors hold different tokens"):
        token_differences(own, other, own)
    unscored = log.write("unscored", unscored=log.text.position <= 1)
    with pytest.raises(InputError, match="different tokens"):
        token_differences(own, own, unscored)
    with pytest.raises(InputError, match="60 samples, its summary 2"):
        token_differences(own, own, own, [0, 1])


def test_the_embedded_vocabulary_says_which_tokens_begin_a_word():
    texts = token_texts(ROOT / "resources/embedded_model", range(300))
    starts = begins_word(texts)
    assert len(starts) == 300 and 10 < starts.sum() < 290
    assert all(
        texts[i].startswith((" ", "\n", "\t", "\r")) == starts[i] for i in range(300) if texts[i].strip()
    )
    assert not begins_word({}).any()
