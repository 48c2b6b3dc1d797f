"""Type hints: modules say the types of all that others may use; `make lint` checks that they are right."""

import ast
import json
import typing

import pytest
from adaptive_routing.evaluation.experiment import Summary
from adaptive_routing.jobs.fingerprint import code_modules
from adaptive_routing.model.description import ModelDescription, ModelShapes
from adaptive_routing.model.inspect import inspect_model
from adaptive_routing.settings.load import DatasetSettings, Settings
from adaptive_routing.settings.schema import resolved, schema
from study_folder import REPOSITORY

PACKAGE = REPOSITORY / "workflow_scripts/adaptive_routing"
MODULES = sorted(PACKAGE.rglob("*.py"))
UNSAID = {"list", "dict", "set", "tuple"}  # as the type of a field: what of?


def public_functions(tree):
    """(name, node) of a module's public functions, and of its public classes' public and special methods."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    is_special = method.name.startswith("__") and method.name.endswith("__")
                    if is_special or not method.name.startswith("_"):
                        yield f"{node.name}.{method.name}", method


def unannotated(name, function):
    """What of a function has no type, in words."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    named += filter(None, (arguments.vararg, arguments.kwarg))
    is_static = any(ast.unparse(one) == "staticmethod" for one in function.decorator_list)
    if "." in name and not is_static:
        named = named[1:]  # self or cls
    missing = [f"{name}: {argument.arg}" for argument in named if argument.annotation is None]
    return missing + [f"{name}: what it returns"] * (function.returns is None)


def fields_of_unsaid_types(tree):
    """The fields of public classes whose type says nothing of what is in them."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    return [
        f"{one.name}.{ast.unparse(field.target)}"
        for one in classes
        for field in one.body
        if isinstance(field, ast.AnnAssign)
        and not ast.unparse(field.target).startswith("_")
        and UNSAID & set(ast.unparse(field.annotation).split(" | "))
    ]


def named(path):
    """A module's path in the package."""
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_public_functions_and_fields_say_their_types(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    missing = [text for name, function in public_functions(tree) for text in unannotated(name, function)]
    assert not missing
    assert not fields_of_unsaid_types(tree)


def test_a_fingerprint_leaves_out_what_only_the_type_checker_imports():
    assert "adaptive_routing.evaluation.experiment" in (PACKAGE / "analysis/tables.py").read_text("utf-8")
    covered = code_modules("tabulate_results")
    assert "adaptive_routing.analysis.tables" in covered
    assert not [name for name in covered if name.startswith("adaptive_routing.evaluation")]


def disagreements(node, typed, where=""):
    """The keys that a schema's node has and a TypedDict lacks, by their places."""
    hints, found = typing.get_type_hints(typed), []
    for key, child in resolved(node).get("properties", {}).items():
        if key not in hints:
            found.append(f"{where}{key}")
        elif typing.is_typeddict(hints[key]):
            found += disagreements(child, hints[key], f"{where}{key}.")
    return found


def test_the_settings_and_the_summary_have_the_types_that_their_schemas_describe():
    assert not disagreements(schema(), Settings)
    for dataset in resolved(schema()["properties"]["datasets"])["properties"].values():
        assert not disagreements(dataset, DatasetSettings)
    summary = json.loads((REPOSITORY / "schemas/summary.schema.json").read_text(encoding="utf-8"))
    assert not disagreements(summary, Summary)


def test_the_description_of_a_model_has_the_type_that_it_says():
    description = inspect_model(REPOSITORY / "resources/embedded_model")
    assert set(description) == set(typing.get_type_hints(ModelDescription))
    assert set(description["shapes"]) == set(typing.get_type_hints(ModelShapes))
