"""The numbers: metrics of each experiment, tables, tests, recommendations.

Imports the standard errors of `data.tasks`, and `system`; no model.
"""
