"""The routing atlas's interactive page: `page` makes it (script and style: `page/`), `tokens` decodes tokens.

Imports the summaries of `analysis`, and `system`.
"""
