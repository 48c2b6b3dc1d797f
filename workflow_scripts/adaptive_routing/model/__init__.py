"""A Hugging Face model: inspected, described, loaded, and patched so that a strategy chooses the experts.

Imports `routing_log`, `routing` and `system`.
"""
