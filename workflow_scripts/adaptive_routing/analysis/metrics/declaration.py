"""How a metric is declared: its function, and what a reader of a table or a figure must know of it."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

# What a value can be, by the function's annotation.
_TYPES = {
    int: "integer",
    float: "number",
    int | None: ["integer", "null"],
    float | None: ["number", "null"],
}
DECLARED = []  # every metric, in the order in which its module declares it


@dataclass(frozen=True)
class Metric:
    """A metric; `metric` declares one.

    Attributes:
        name: the function's own.
        category: quality, efficiency, speed, …
        unit: empty for a plain number.
        better: higher, lower or none.
        description: a few words for tables, report and schema.
        function: makes the value of `Quantities`: its parameters have their attributes' names. None stands
            for what a strategy or a data set cannot have.
        one_of_16: whether it is one of the study's 16; the others stand beside them.
        minimum, maximum: bounds of the value.
        per_layer: whether each layer has a value too.
        over_datasets: how the values of several data sets become a configuration's: mean, sum, min, max.
        timed: whether a clock decides it, so that it differs between equal runs.
    """

    name: str
    category: str
    unit: str
    better: str
    description: str
    function: Callable
    one_of_16: bool = False
    minimum: float | None = None
    maximum: float | None = None
    per_layer: bool = False
    over_datasets: str = "mean"
    timed: bool = False

    def of(self, quantities):
        """The metric's value."""
        return self.function(
            *(getattr(quantities, name) for name in inspect.signature(self.function).parameters)
        )

    def value_schema(self):
        """JSON schema of a value."""
        bounds = {"minimum": self.minimum, "maximum": self.maximum}
        return {"type": _TYPES[inspect.signature(self.function).return_annotation]} | {
            key: bound for key, bound in bounds.items() if bound is not None
        }

    def schema(self):
        """JSON schema of a value, with a description."""
        unit = f" ({self.unit})" if self.unit else ""
        return {"description": f"{self.description}{unit}", **self.value_schema()}


def metric(category, unit, better, description, **more):
    """Declare the decorated function a metric; the arguments are those of `Metric`."""

    def declare(function):
        DECLARED.append(Metric(function.__name__, category, unit, better, description, function, **more))
        return function

    return declare
