"""The names of what is compared at the same compute, and of what comes of it.

An adaptive configuration and its controls (`settings/configurations.py`) are set against each other in
`CONTRASTS`; every comparison has a verdict on the first of the two.
"""

ADAPTIVE, FIXED, LAYERWISE, SHUFFLED = "adaptive", "fixed", "layerwise", "shuffled"
ANSWER, TOKEN, SPREAD, LAYERS = "answer", "token", "spread", "layers"
CONTRASTS = {
    ANSWER: (ADAPTIVE, FIXED),
    TOKEN: (ADAPTIVE, SHUFFLED),
    SPREAD: (SHUFFLED, LAYERWISE),
    LAYERS: (LAYERWISE, FIXED),
}
PARTS = (TOKEN, SPREAD, LAYERS)  # their sum is the answer
BETTER, WORSE, SAME, OPEN = "better", "worse", "same", "open"
