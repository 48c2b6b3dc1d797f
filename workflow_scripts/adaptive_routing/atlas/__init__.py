"""The routing atlas's interactive page: `page` makes it (script and looks: `page/`), `tokens` gives text.

Imports the summaries of `analysis`, and `system`.
"""
