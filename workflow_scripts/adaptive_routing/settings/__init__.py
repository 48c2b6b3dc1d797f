"""The config file: its schema, the configurations that its grids describe, and the checks when it is loaded.

Imports `system`.
"""
