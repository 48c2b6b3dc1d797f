"""Names and order of the routing configurations."""

import pickle
from decimal import Decimal

import pytest
from adaptive_routing.settings.configurations import Configuration, grid
from adaptive_routing.system.errors import InputError
from hypothesis import given
from hypothesis import strategies as st

ALPHAS = st.integers(1, 10**6 - 1).map(lambda millionths: Decimal(millionths) / 10**6)


def names(strategies):
    return [configuration.name for configuration in grid(strategies)]


@pytest.mark.parametrize(
    ("alpha", "digits"),
    [
        (0.30, "030"),
        (0.57, "057"),  # 57.00000000000001 percent in binary
        (0.29, "029"),  # 28.999999999999996 percent
        (0.05, "005"),
        (0.01, "001"),
        (0.305, "0305"),
        (0.005, "0005"),
        (0.000001, "0000001"),
    ],
)
def test_name_holds_the_decimal_of_the_config_file(alpha, digits):
    assert names({"bh": {"max_k": [8], "alpha": [alpha]}}) == [f"8experts_bh_a{digits}"]


@given(st.lists(ALPHAS, unique=True, min_size=1), st.lists(st.integers(1, 300), unique=True, min_size=1))
def test_name_tells_the_parameters(alphas, max_ks):
    """From a name alone its parameters can be read back, so that no two configurations share one."""
    configurations = grid({"bh": {"max_k": max_ks, "alpha": [float(alpha) for alpha in alphas]}})
    assert len(configurations) == len(alphas) * len(max_ks)
    for configuration, (max_k, alpha) in zip(
        configurations, [(max_k, alpha) for max_k in max_ks for alpha in alphas], strict=True
    ):
        count, digits = configuration.name.split("experts_bh_a")
        assert (int(count), Decimal(f"{digits[0]}.{digits[1:]}")) == (max_k, alpha)
        assert len(digits) >= 3


def test_grid_has_the_config_files_order():
    strategies = {"topk": {"k": [16, 8]}, "bh": {"alpha": [0.4, 0.3], "max_k": [8, 4]}}
    assert grid(strategies) == [
        Configuration("16experts_topk_baseline", "topk", 16, {"k": 16}),
        Configuration("8experts_topk_baseline", "topk", 8, {"k": 8}),
        Configuration("8experts_bh_a040", "bh", 8, {"max_k": 8, "alpha": 0.4}),
        Configuration("8experts_bh_a030", "bh", 8, {"max_k": 8, "alpha": 0.3}),
        Configuration("4experts_bh_a040", "bh", 4, {"max_k": 4, "alpha": 0.4}),
        Configuration("4experts_bh_a030", "bh", 4, {"max_k": 4, "alpha": 0.3}),
    ]
    assert [configuration.alpha for configuration in grid(strategies)] == [None, None, 0.4, 0.3, 0.4, 0.3]


def test_a_new_strategy_is_named_by_the_same_rule():
    strategies = {"threshold": {"max_k": [8], "probability": [0.1, 2.5], "quantile": [0.255]}}
    assert names(strategies) == ["8experts_threshold_p010_q0255", "8experts_threshold_p250_q0255"]


@pytest.mark.parametrize(
    ("lists", "key", "value"),
    [
        ({"max_k": [8, 16, 8], "alpha": [0.3]}, "strategies.bh.max_k[2]", "8"),
        ({"max_k": [8], "alpha": [0.3, 0.30]}, "strategies.bh.alpha[1]", "0.3"),
    ],
)
def test_a_duplicate_value_is_refused(lists, key, value):
    with pytest.raises(InputError) as error:
        grid({"bh": lists})
    assert f"{key} is {value}," in str(error.value)


def test_two_values_that_give_one_name_are_refused():
    with pytest.raises(InputError, match=r"8experts_threshold_p1001.*probability 10\.01"):
        grid({"threshold": {"max_k": [8], "probability": [1.001, 10.01]}})


def test_weights_and_null_distributions_are_named_where_they_are_not_the_default():
    lists = {"max_k": [8], "alpha": [0.6], "null": ["default", "centred"], "weights": ["native", "uniform"]}
    assert names({"bh": lists}) == [
        "8experts_bh_a060",
        "8experts_bh_a060_wuniform",
        "8experts_bh_a060_ncentred",
        "8experts_bh_a060_ncentred_wuniform",
    ]
    assert [one.null for one in grid({"bh": lists})] == ["default", "default", "centred", "centred"]
    assert names({"topk": {"k": [8], "weights": ["native", "renormalized"]}}) == [
        "8experts_topk_baseline",
        "8experts_topk_wrenormalized",
    ]


def test_a_null_distribution_twice_in_a_list_is_refused():
    with pytest.raises(
        InputError, match=r"strategies\.bh\.null\[1\] is centred, which the list already holds"
    ):
        grid({"bh": {"max_k": [8], "alpha": [0.6], "null": ["centred", "centred"]}})


def test_a_control_keeps_limits_and_weights_and_needs_no_null_distribution():
    lists = {"max_k": [8], "alpha": [0.6], "null": ["centred"], "weights": ["uniform"]}
    control = grid({"bh": lists})[0].control("fixed")
    assert control.name == "8experts_bh_a060_ncentred_wuniform_fixed"
    assert control.parameters == {"max_k": 8, "weights": "uniform", "control": "fixed"}


def test_configurations_travel_between_processes_and_into_sets():
    configurations = grid({"topk": {"k": [8, 16]}, "bh": {"max_k": [8], "alpha": [0.3]}})
    assert pickle.loads(pickle.dumps(configurations)) == configurations
    assert len(set(configurations + configurations)) == 3
