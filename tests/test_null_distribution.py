"""p-values against the exact kernel mixture and NumPy's interpolation; refusals of bad input."""

import pickle
import runpy
import signal
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import torch
from adaptive_routing.figures.null_distribution import critical_logit, density_curve
from adaptive_routing.null_distribution import NullDistribution
from adaptive_routing.null_distribution.estimate import fit, fit_null_distribution, trim_logits
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.json_files import write_json
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy import stats

REPOSITORY = Path(__file__).parents[1]
OLMOE_TABLE = REPOSITORY / ".." / "shared" / "data" / "olmoe_1b_7b_null_cdf.npz"
KERNELS = ["gaussian", "epanechnikov", "tophat", "linear"]

# Each kernel as a distribution of SciPy's: an independent implementation of its survival function.
KERNEL_DISTRIBUTIONS = {
    "gaussian": stats.norm(),
    "epanechnikov": stats.beta(2, 2, loc=-1, scale=2),
    "tophat": stats.uniform(-1, 2),
    "linear": stats.triang(0.5, loc=-1, scale=2),
}


def exact_mixture(x, values, kernel, h):
    """mean_i S_K((x − z_i)/h), evaluated one pair at a time."""
    return KERNEL_DISTRIBUTIONS[kernel].sf((x[:, None] - values) / h).mean(axis=1)


def probe_points(null, values, h, rng):
    """Where interpolation can err: knots, cell middles, anywhere, and beyond both ends of the grid."""
    x0, dx, points = null.x0[0], null.dx[0], null.survival.shape[1]
    last = x0 + dx * (points - 1)
    some = rng.choice(values, min(len(values), 40), replace=False)
    return np.concatenate(
        [
            *(some + knot * h for knot in (-1, 0, 1)),
            x0 + dx * (rng.integers(0, points - 1, 150) + 0.5),
            # Where the values are: a single cell there matters more than one in an empty stretch.
            x0 + dx * (np.floor((some + rng.uniform(-1, 1, len(some)) * h - x0) / dx) + 0.5),
            rng.uniform(x0, last, 150),
            [x0 - 1, x0 - 1e6, last + 1e-3, last + 1e6],
        ]
    )


def assert_matches_mixture(values, kernel, bandwidth="silverman"):
    null = fit_null_distribution([values.reshape(1, -1)], kernel, bandwidth)
    h = null.metadata["bandwidth"][0]
    x = probe_points(null, values, h, np.random.default_rng(0))
    p = null.p_values(torch.from_numpy(x), 0).numpy()
    error = np.abs(p - exact_mixture(x, values, kernel, h)).max()
    # The recorded bound holds, and is within the promise; 1e-12 for rounding.
    assert error <= null.metadata["interpolation_error"][0] + 1e-12
    assert null.metadata["interpolation_error"][0] <= 1e-5


def sample(name):
    rng = np.random.default_rng(1)
    return {
        "normal": lambda: rng.normal(-1, 1.3, 2000),
        "clustered": lambda: np.concatenate([rng.normal(c, 0.01, 300) for c in (-3, 0, 0.5, 4)]),
        "heavy-tailed": lambda: rng.standard_t(2, 2000),
        "tied": lambda: np.repeat([-1.0, 0.0, 0.125, 3.0], [60, 200, 20, 100]),
        "bfloat16": lambda: torch.from_numpy(rng.normal(0, 1, 2000)).bfloat16().double().numpy(),
        "one outlier": lambda: np.append(rng.normal(0, 1, 1999), 40.0),
        "two": lambda: np.array([0.1, 0.7]),
        "large offset": lambda: 1e4 + rng.normal(0, 1, 500),
    }[name]()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "name",
    ["normal", "clustered", "heavy-tailed", "tied", "bfloat16", "one outlier", "two", "large offset"],
)
def test_p_values_are_the_mixture_survival_function(name, kernel):
    assert_matches_mixture(sample(name), kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@given(
    values=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=12),
    bandwidth=st.floats(0.5, 3),
)
@settings(max_examples=12, deadline=None)
def test_any_small_sample_is_within_the_bound(kernel, values, bandwidth):
    # The tophat's corners need so fine a grid that few values must lie within few bandwidths.
    spread = 1.5 if kernel == "tophat" else 20
    assert_matches_mixture(spread * np.array(values), kernel, bandwidth)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_single_value_gives_the_kernel_itself(kernel):
    assert_matches_mixture(np.full(5, 1.7), kernel, bandwidth=0.3)


@pytest.mark.parametrize("rule", ["silverman", "scott"])
def test_bandwidth_rules_are_scipys(rule):
    values = np.random.default_rng(2).gamma(2, size=777)
    info = fit(values.reshape(7, 111), bandwidth=rule)[3]
    assert info["bandwidth"] == pytest.approx(
        np.sqrt(stats.gaussian_kde(values, rule).covariance[0, 0]), rel=1e-12
    )
    assert info["num_values"] == 777


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_trim_drops_each_tokens_extremes(data):
    num_experts = data.draw(st.integers(1, 12))
    trim = data.draw(st.integers(0, (num_experts - 1) // 2))
    element = st.floats(-5, 5, width=16)
    rows = data.draw(
        st.lists(st.lists(element, min_size=num_experts, max_size=num_experts), min_size=1, max_size=6)
    )
    expected = []
    for row in rows:
        kept = list(row)
        for _ in range(trim):
            kept.remove(max(kept))
            kept.remove(min(kept))
        expected += kept
    np.testing.assert_array_equal(np.sort(trim_logits(np.array(rows), trim)), np.sort(expected))


def test_trim_narrows_the_fitted_null_distribution():
    logits = np.random.default_rng(3).normal(size=(200, 16))
    full, trimmed = (fit_null_distribution([logits], trim=t) for t in (0, 4))
    two = torch.tensor([2.0])
    assert trimmed.p_values(two, 0) < 0.2 * full.p_values(two, 0)
    assert trimmed.metadata["num_values"] == [200 * 8]


@pytest.fixture(scope="module")
def two_layers():
    """Two layers whose grids differ in length."""
    rng = np.random.default_rng(4)
    return fit_null_distribution([rng.normal(0, 1, (300, 8)), rng.standard_t(2, (300, 8)) - 3])


def test_layers_of_different_extent_share_one_table(two_layers):
    rng = np.random.default_rng(4)
    for layer, logits in enumerate([rng.normal(0, 1, (300, 8)), rng.standard_t(2, (300, 8)) - 3]):
        x = np.linspace(-30, 30, 500)
        expected = exact_mixture(x, logits.ravel(), "gaussian", two_layers.metadata["bandwidth"][layer])
        np.testing.assert_allclose(
            two_layers.p_values(torch.from_numpy(x), layer), expected, atol=1e-5, rtol=0
        )


@given(st.lists(st.floats(-12, 12), min_size=2, max_size=60), st.integers(0, 1))
@settings(max_examples=100, deadline=None)
def test_p_values_never_rise_with_the_logit(two_layers, logits, layer):
    # Besides the drawn logits: both sides of a cell's edge, where rounding would show.
    logits = np.array(logits)
    edges = two_layers.x0[layer] + two_layers.dx[layer] * np.round(
        (logits - two_layers.x0[layer]) / two_layers.dx[layer]
    )
    logits = np.sort(np.concatenate([logits, edges, np.nextafter(edges, -99), np.nextafter(edges, 99)]))
    p = two_layers.p_values(torch.from_numpy(logits), layer)
    assert (p.diff() <= 0).all()
    assert ((p >= 0) & (p <= 1)).all()


def test_p_values_do_not_dip_before_a_steep_cells_end():
    # Where a cell falls by more than half, right − left is rounded: left + (right − left) can miss right.
    survival = np.sort(10 ** np.random.default_rng(8).uniform(-4, 0, (300, 3)))[:, ::-1].copy()
    null = NullDistribution(np.zeros(300), np.ones(300), survival)
    logits = torch.tensor(
        [0.0, 0.3, np.nextafter(1, 0), 1.0, np.nextafter(2, 0), 2.0, 9.0], dtype=torch.float64
    )
    for layer in range(300):
        p = null.p_values(logits, layer).numpy()
        assert (np.diff(p) <= 0).all()
        expected = np.interp(logits, [0, 1, 2], survival[layer])
        np.testing.assert_allclose(p, expected, atol=1e-15, rtol=0)


def test_p_values_leave_the_logits_as_they_are(two_layers):
    logits = torch.randn(20, 8, dtype=torch.float64)
    before = logits.clone()
    two_layers.p_values(logits, 0)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_logits_give_the_p_values_of_their_exact_values(two_layers, dtype):
    logits = (torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * 2).to(dtype)
    p = two_layers.p_values(logits, 1)
    assert p.dtype == torch.float64
    assert p.shape == (50, 8)
    assert torch.equal(p, two_layers.p_values(logits.double(), 1))


def test_non_finite_logits_do_not_crash(two_layers):
    p = two_layers.p_values(torch.tensor([-torch.inf, torch.inf, torch.nan]), 0)
    assert p[0] == two_layers.survival[0, 0]
    assert p[1] == two_layers.survival[0, -1]
    assert p[2].isnan()


def test_save_and_load(two_layers, tmp_path):
    two_layers.save(tmp_path / "null.safetensors")
    loaded = NullDistribution.load(tmp_path / "null.safetensors")
    for name in ("x0", "dx", "survival"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(two_layers, name))
    assert loaded.metadata == two_layers.metadata
    two_layers.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "null.safetensors").read_bytes()


@pytest.mark.skipif(not OLMOE_TABLE.exists(), reason="needs the OLMoE-1B-7B table in ../shared/data")
def test_olmoe_table_equals_numpy_interpolation():
    null = NullDistribution.from_cdf_table(OLMOE_TABLE)
    null.expect_layers(16)
    with np.load(OLMOE_TABLE) as table:
        x, cdf = table["x"], table["cdf"]
    logits = np.random.default_rng(5).uniform(-11, 8, (16, 4000)).astype(np.float32)
    for layer in range(16):
        p = null.p_values(torch.from_numpy(logits[layer]), layer).numpy()
        np.testing.assert_allclose(p, np.interp(logits[layer], x[layer], 1 - cdf[layer]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cdf_table_in_either_precision(tmp_path, dtype):
    x = np.stack([np.linspace(-9.4875, 4.06, 5000), np.linspace(-1.1, 7.3, 5000)])
    cdf = stats.norm.cdf(x)
    cdf[0, 2500] = cdf[0, 2499] - 1e-12  # rounding is repaired
    np.savez(tmp_path / "table.npz", x=x.astype(dtype), cdf=cdf.astype(dtype))
    null = NullDistribution.from_cdf_table(tmp_path / "table.npz")
    assert (np.diff(null.survival) <= 0).all()
    logits = np.linspace(-12, 9, 3000)
    for layer in range(2):
        expected = np.interp(logits, x[layer], 1 - cdf[layer])
        np.testing.assert_allclose(
            null.p_values(torch.from_numpy(logits), layer), expected, atol=1e-6, rtol=0
        )


GRID = np.linspace(-1, 1, 101)[None].repeat(2, axis=0)
CDF = np.linspace(0, 1, 101)[None].repeat(2, axis=0)


def changed(array, index, value):
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": GRID}, r"needed are x and cdf"),
        ({"x": GRID[:, :50], "cdf": CDF}, r"shape \(2, 50\)"),
        ({"x": GRID[0], "cdf": CDF[0]}, r"\(layers, grid points\)"),
        ({"x": GRID[:, :1], "cdf": CDF[:, :1]}, r"2 grid points at least"),
        ({"x": GRID**3, "cdf": CDF}, r"layer 0 is not an ascending grid of equal steps"),
        ({"x": changed(GRID, (1, 50), 0.001), "cdf": CDF}, r"layer 1 is not an ascending grid"),
        ({"x": -GRID, "cdf": CDF}, r"not an ascending grid"),
        ({"x": np.zeros_like(GRID), "cdf": CDF}, r"not an ascending grid"),
        ({"x": GRID, "cdf": CDF + 0.01}, r"cdf of layer 0 leaves \[0, 1\]"),
        ({"x": GRID, "cdf": changed(CDF, (1, 0), -0.01)}, r"cdf of layer 1 leaves \[0, 1\]"),
        ({"x": GRID, "cdf": changed(CDF, (1, 50), 0.3)}, r"cdf of layer 1 decreases"),
        ({"x": GRID, "cdf": changed(CDF, (1, 50), np.nan)}, r"cdf of layer 1 has NaN"),
        ({"x": changed(GRID, (0, 100), np.inf), "cdf": CDF}, r"x of layer 0 has NaN or infinity"),
        ({"x": GRID, "cdf": (CDF * 100).astype(int)}, r"cdf is int64; it must be float32 or float64"),
        ({"x": GRID, "cdf": CDF.astype(object)}, r"pickled.*numpy\.savez\(path, x=\.\.\., cdf=\.\.\.\)"),
    ],
)
def test_bad_cdf_tables_are_refused(tmp_path, arrays, sentence):
    np.savez(tmp_path / "table.npz", **arrays)
    with pytest.raises(InputError, match=r"table\.npz.*" + sentence):
        NullDistribution.from_cdf_table(tmp_path / "table.npz")


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("the pickle was read",)


@pytest.mark.parametrize("name", ["table.pkl", "table.pickle", "table.pt", "table.npz"])
@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_pickles_are_refused_unread_with_how_to_convert_them(tmp_path, name, writer):
    path = tmp_path / name
    if writer == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save({"x": Bomb(), "cdf": Bomb()}, path)
    with pytest.raises(InputError, match=rf"{name}.*numpy\.savez\(path, x=\.\.\., cdf=\.\.\.\)"):
        NullDistribution.from_cdf_table(path)


def test_missing_and_damaged_tables_are_refused(tmp_path):
    path = tmp_path / "table.npz"
    with pytest.raises(InputError, match="does not exist"):
        NullDistribution.from_cdf_table(path)
    np.savez(path, x=GRID, cdf=CDF)
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    with pytest.raises(InputError, match=r"not a \.npz file"):
        NullDistribution.from_cdf_table(path)
    path.write_bytes(whole[:300] + b"\xff" * 64 + whole[364:])
    with pytest.raises(InputError, match=r"cannot be read as a \.npz file"):
        NullDistribution.from_cdf_table(path)
    np.save(tmp_path / "table.npy", CDF)
    with pytest.raises(InputError, match=r"not a \.npz file"):
        NullDistribution.from_cdf_table(tmp_path / "table.npy")


def test_bad_stored_null_distributions_are_refused(two_layers, tmp_path):
    path = tmp_path / "null.safetensors"
    with pytest.raises(InputError, match=r"null\.safetensors"):
        NullDistribution.load(path)
    two_layers.save(path)
    whole = path.read_bytes()
    for damaged in (whole[:4], whole[:50], whole[:-8], b"not safetensors at all"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"null\.safetensors"):
            NullDistribution.load(path)
    save_file({"router_logits": torch.zeros(3, 2, 4)}, path)
    with pytest.raises(InputError, match=r"needed are dx, survival and x0"):
        NullDistribution.load(path)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"survival": np.ones((2, 5), np.float32)}, "must be float64"),
        ({"x0": np.zeros(3)}, r"must be \(layers,\)"),
        ({"dx": np.array([0.1, 0.0])}, "dx above 0"),
        ({"survival": np.linspace(0, 1, 10).reshape(2, 5)}, "non-increasing"),
        ({"survival": np.full((2, 5), np.nan)}, "non-increasing"),
        ({"survival": np.full((2, 5), 1.5)}, "non-increasing"),
    ],
)
def test_wrong_stored_tensors_are_refused(tmp_path, fault, sentence):
    tensors = {"x0": np.zeros(2), "dx": np.ones(2), "survival": np.zeros((2, 5))} | fault
    NullDistribution(**tensors).save(tmp_path / "null.safetensors")
    with pytest.raises(InputError, match=sentence):
        NullDistribution.load(tmp_path / "null.safetensors")


def test_another_models_null_distribution_is_refused(two_layers):
    two_layers.expect_layers(2)
    with pytest.raises(InputError, match=r"table\.npz has 2 layers but the model has 16"):
        two_layers.expect_layers(16, "table.npz")


NORMAL = np.random.default_rng(6).normal(size=(50, 8))


@pytest.mark.parametrize(
    ("layer", "arguments", "sentence"),
    [
        (NORMAL, {"kernel": "cosine"}, "'cosine'; allowed are gaussian, epanechnikov, tophat, linear"),
        (NORMAL, {"bandwidth": "isj"}, "'isj'; allowed are silverman, scott or a number above 0"),
        (NORMAL, {"bandwidth": 0}, "a number above 0"),
        (NORMAL, {"bandwidth": -0.1}, "a number above 0"),
        (NORMAL, {"bandwidth": float("nan")}, "a number above 0"),
        (NORMAL, {"bandwidth": True}, "a number above 0"),
        (NORMAL, {"trim": 4}, "layer 1 has 8 experts, so it must be from 0 to 3"),
        (np.full((50, 8), 0.1), {}, "layer 1 are all 0.1, .* set it to a number"),
        (np.full((50, 8), 0.1), {"bandwidth": "scott"}, "layer 1 are all 0.1"),
        (np.zeros((0, 8)), {}, "layer 1 has 0 calibration logits"),
        (np.zeros((0, 8)), {"bandwidth": 0.5}, "Layer 1 has no calibration router logits"),
        (changed(NORMAL, (3, 2), np.nan), {"trim": 2}, "layer 1 contain NaN or infinity"),
        (changed(NORMAL, (3, 2), np.inf), {"trim": 2}, "layer 1 contain NaN or infinity"),
        (
            NORMAL,
            {"bandwidth": 1e-5},
            "layer 1 cannot be tabulated .* set a larger null_distribution.bandwidth",
        ),
        (np.full((5, 8), 0.1), {"bandwidth": 1e-20}, "layer 1 cannot be tabulated"),
    ],
)
def test_what_cannot_be_estimated_is_refused(layer, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        fit(layer, layer=1, **arguments)


class Named(dict):
    """Like Snakemake's lists: entries by attribute and by keys()."""

    __getattr__ = dict.__getitem__


def run_script(folder, num_layers, **inputs):
    """Run the rule's script with what Snakemake would give it."""
    write_json(
        folder / "model.json",
        {
            "name": "a_model",
            "folder": "a_model",
            "max_position_embeddings": 64,
            "shapes": {"num_moe_layers": num_layers, "num_experts": 8, "vocab_size": 96},
            "fingerprint": "f00d",
        },
    )
    fit = SimpleNamespace(
        input=Named(model=folder / "model.json", **inputs),
        params=Named(kernel="linear", bandwidth="scott", trim=2, center="none"),
        output=[folder / "null.safetensors"],
        log=[folder / "log.txt"],
    )
    plot = SimpleNamespace(input=fit.output, output=[folder / "null.png"], log=fit.log)
    previous = signal.getsignal(signal.SIGTERM)
    try:
        for script, snakemake in (("fit_null_distribution", fit), ("plot_null_distribution", plot)):
            path = REPOSITORY / "workflow_scripts" / f"{script}.py"
            runpy.run_path(str(path), init_globals={"snakemake": snakemake})
    finally:
        signal.signal(signal.SIGTERM, previous)  # a job catches it


def save_calibration(path):
    logits = torch.randn(60, 5, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"router_logits": logits}, path, metadata={"calibration": '{"max_tokens": 1}'})
    return logits


def test_script_fits_router_logits(tmp_path):
    logits = save_calibration(tmp_path / "logits.safetensors")
    run_script(tmp_path, 5, router_logits=tmp_path / "logits.safetensors")
    null = NullDistribution.load(tmp_path / "null.safetensors")
    expected = fit_null_distribution(logits.double().transpose(0, 1).numpy(), "linear", "scott", 2)
    np.testing.assert_array_equal(null.survival, expected.survival)
    assert null.metadata["model_fingerprint"] == "f00d"
    assert null.metadata["calibration"] == {"max_tokens": 1}
    assert matplotlib.image.imread(tmp_path / "null.png").std() > 0.05  # drawn on


def test_script_reads_a_table(tmp_path):
    np.savez(tmp_path / "table.npz", x=GRID, cdf=CDF)
    run_script(tmp_path, 2, table=tmp_path / "table.npz")
    null = NullDistribution.load(tmp_path / "null.safetensors")
    np.testing.assert_allclose(null.survival, 1 - CDF)
    made = {"method": "table", "table": "table.npz", "center": "none", "model_fingerprint": "f00d"}
    assert null.metadata == made
    assert (tmp_path / "null.png").exists()


@pytest.mark.parametrize("kind", ["router_logits", "table"])
def test_script_refuses_another_models_input(tmp_path, capsys, kind):
    save_calibration(tmp_path / "router_logits")
    np.savez(tmp_path / "table.npz", x=GRID, cdf=CDF)
    path = tmp_path / {"router_logits": "router_logits", "table": "table.npz"}[kind]
    with pytest.raises(SystemExit) as exit_:
        run_script(tmp_path, 3, **{kind: path})
    assert exit_.value.code == 1
    assert path.name in capsys.readouterr().err
    assert not (tmp_path / "null.safetensors").exists()


def test_figure_shows_the_density_and_its_critical_logits():
    logits = np.random.default_rng(7).normal(2, 0.5, (4000, 8))
    null = fit_null_distribution([logits])
    x, density = density_curve(null, 0, 0.0, 4.0)
    np.testing.assert_allclose(density, stats.gaussian_kde(logits.ravel(), "silverman")(x), atol=2e-3)
    critical = critical_logit(null, 0, 0.05)
    assert (
        null.p_values(torch.tensor([critical]), 0) <= 0.05 < null.p_values(torch.tensor([critical - 0.01]), 0)
    )


# Centring


@pytest.fixture(scope="module")
def centred_null():
    """Two layers, fitted to centred logits."""
    logits = np.random.default_rng(10).normal(1, 1.5, (2, 400, 16))
    return fit_null_distribution(logits, center="mean")


def test_centring_fits_each_logit_less_its_tokens_mean():
    logits = np.random.default_rng(11).normal(3, 1, (300, 16))
    null = fit_null_distribution([logits], center="mean")
    values = (logits - logits.mean(axis=1, keepdims=True)).ravel()
    assert null.metadata["center"] == "mean" and null.center == "mean"
    h = null.metadata["bandwidth"][0]
    x = np.linspace(-4, 4, 300)
    found = null.survival_at(torch.from_numpy(x), 0)
    np.testing.assert_allclose(found, exact_mixture(x, values, "gaussian", h), atol=1e-5, rtol=0)
    assert fit_null_distribution([logits]).center == "none"


def test_centring_comes_before_trimming():
    logits = np.random.default_rng(12).normal(size=(200, 16)) + np.arange(200)[:, None]
    null = fit_null_distribution([logits], trim=4, center="mean")
    expected = fit_null_distribution([logits - logits.mean(axis=1, keepdims=True)], trim=4)
    np.testing.assert_array_equal(null.survival, expected.survival)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_p_values_of_centred_logits_do_not_see_a_shift(centred_null, dtype):
    logits = torch.randn(60, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    p = centred_null.p_values(logits, 1)
    shifts = torch.arange(60, dtype=torch.float64)[:, None] - 30
    np.testing.assert_allclose(centred_null.p_values(logits.double() + shifts, 1), p, atol=1e-12)
    raw = NullDistribution(centred_null.x0, centred_null.dx, centred_null.survival)
    assert (raw.p_values(logits.double() + shifts, 1) - p).abs().max() > 0.5


def test_p_values_of_centred_logits_are_numpys(centred_null):
    logits = np.random.default_rng(13).normal(2, 2, (50, 16))
    grid = centred_null.x0[0] + centred_null.dx[0] * np.arange(centred_null.survival.shape[1])
    expected = np.interp(logits - logits.mean(axis=1, keepdims=True), grid, centred_null.survival[0])
    found = centred_null.p_values(torch.from_numpy(logits), 0)
    np.testing.assert_allclose(found, expected, atol=1e-12, rtol=0)


def test_a_score_of_minus_infinity_enters_no_mean(centred_null):
    logits = torch.randn(20, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    masked = logits.clone()
    masked[:, ::2] = -torch.inf
    p = centred_null.p_values(masked, 0)
    assert (p[:, ::2] == centred_null.survival[0, 0]).all()  # as large as any
    # Another order of summation rounds otherwise.
    np.testing.assert_allclose(p[:, 1::2], centred_null.p_values(logits[:, 1::2], 0), atol=1e-12)


def test_centring_is_stored_with_the_null_distribution(centred_null, tmp_path):
    centred_null.save(tmp_path / "null.safetensors")
    loaded = NullDistribution.load(tmp_path / "null.safetensors")
    logits = torch.randn(30, 16, generator=torch.Generator().manual_seed(3))
    assert loaded.center == "mean"
    assert torch.equal(loaded.p_values(logits, 0), centred_null.p_values(logits, 0))


def test_a_wrong_centring_is_refused():
    with pytest.raises(InputError, match="center is 'median'; allowed are none, mean"):
        fit_null_distribution([NORMAL], center="median")
