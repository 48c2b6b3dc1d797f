"""The config file: its schema, the configurations that its grids describe, and the checks on loading it.

Imports `system`.
"""
