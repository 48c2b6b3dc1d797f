"""Routing configurations: every combination of a strategy's grid values, their controls, and their names.

Names are computed from the decimals in the config file, never from binary fractions: 0.57 is `a057`.

A control of an adaptive configuration C runs as many experts as C on the same data set and leaves something
out of how C distributes them (`CONTROLS`), so that their difference is what that is worth:

- `fixed`: every layer has C's mean count.
- `layerwise`: every layer has its own mean count.
- `shuffled`: every token has the count of another token of the same layer.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from adaptive_routing.system.errors import InputError

EXPERT_COUNTS = ("k", "max_k")  # every strategy has one of these grid lists, which bounds its experts
# Grid lists that any strategy may have, with the value that is not named: how selected experts are weighted,
# and for strategies with p-values the name of their null distribution.
DEFAULTS = {"weights": "native", "null": "default"}
CONTROLS = ("fixed", "layerwise", "shuffled")
CONTROL = "control"  # the strategy of all controls


@dataclass(frozen=True)
class Configuration:
    """One way to choose experts.

    `max_experts` is k for top-k and max_k for every other strategy. `parameters` has one value for each grid
    list of the strategy, for example `{"max_k": 8, "alpha": 0.3}`; a control has `control`, one of
    `CONTROLS`, and `control_of` is the name of its configuration.
    """

    name: str
    strategy: str
    max_experts: int
    parameters: Mapping[str, Any] = field(hash=False)
    control_of: str | None = None

    @property
    def alpha(self) -> float | None:
        """The level of the false discovery rate; None for a strategy that has none."""
        return self.parameters.get("alpha")

    @property
    def is_adaptive(self) -> bool:
        """Whether tokens may get different numbers of experts, `routing.min_k` to max_k."""
        return "max_k" in self.parameters

    @property
    def null(self) -> str:
        """The name of the null distribution that its p-values, if it needs any, come from."""
        return self.parameters.get("null", DEFAULTS["null"])

    def control(self, kind: str) -> Configuration:
        """Its control of one of the kinds `CONTROLS`, with the same limits and weights."""
        kept = {key: self.parameters[key] for key in ("max_k", "weights") if key in self.parameters}
        return Configuration(
            f"{self.name}_{kind}", CONTROL, self.max_experts, {**kept, "control": kind}, control_of=self.name
        )


def grid(strategies: Mapping[str, Mapping[str, list]]) -> list[Configuration]:
    """Return every configuration of `strategies`, a mapping {strategy: {parameter: list of values}}.

    They are in the order of `strategies`; within a strategy the number of experts varies slowest.

    Raises:
        InputError: a list holds a value twice, or two configurations would have the same name.
    """
    configurations = {}
    for strategy, lists in strategies.items():
        for parameter, values in lists.items():
            _refuse_duplicates(f"strategies.{strategy}.{parameter}", values)
        count = next(parameter for parameter in EXPERT_COUNTS if parameter in lists)
        others = [parameter for parameter in lists if parameter != count]
        names = (count, *others)
        for values in itertools.product(*(lists[parameter] for parameter in names)):
            parameters = dict(zip(names, values, strict=True))
            name = _name(strategy, values[0], {parameter: parameters[parameter] for parameter in others})
            if name in configurations:
                raise InputError(
                    f"strategies.{strategy} has two configurations with the name {name}, the second for "
                    + ", ".join(f"{key} {value}" for key, value in parameters.items())
                    + "; names must be unique"
                )
            configurations[name] = Configuration(name, strategy, values[0], parameters)
    return list(configurations.values())


def _name(strategy, max_experts, others):
    """Name a configuration: `8experts_topk_baseline`, `8experts_bh_a030`, `8experts_bh_a030_ncentred`."""
    named = {key: value for key, value in others.items() if value != DEFAULTS.get(key)}
    suffix = "_baseline" if strategy == "topk" and not named else ""
    return f"{max_experts}experts_{strategy}{suffix}" + "".join(
        f"_{parameter[0]}{value if isinstance(value, str) else _digits(value)}"
        for parameter, value in named.items()
    )


def _digits(value):
    """Write `value` in percent, with more than three digits where needed: 0.3 is 030, 0.305 is 0305.

    A whole number is a count and stays as it is.
    """
    if isinstance(value, int):
        return str(value)
    # repr is the shortest decimal that reads back as the same float: the one in the config file.
    whole, _, fraction = format(Decimal(repr(value)), "f").partition(".")
    return whole + fraction.rstrip("0").ljust(2, "0")


def _refuse_duplicates(key, values):
    for index, value in enumerate(values):
        if value in values[:index]:
            raise InputError(
                f"{key}[{index}] is {value}, which the list already holds; values must be unique"
            )


def family(config: str) -> str:
    """The rule that a configuration belongs to: its strategy, and what stands in its name beside numbers.

    `bh` for `8experts_bh_a030`, `bh_ncentred` for `8experts_bh_a030_ncentred`, `minp` for
    `16experts_minp_p010`, `hc_bauto` for `16experts_hc_bauto`.
    """
    return re.sub(r"_[a-z][0-9]+(?=_|$)", "", config.partition("experts_")[2] or config)
