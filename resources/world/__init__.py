"""A small written world: seeded texts, a tokenizer and a mixture-of-experts model that learns it.

Rooms, in the order in which things are made:

* ``lexicon``          the words the world is built from
* ``facts``            people, villages, rivers, ... with consistent facts, drawn from a seed
* ``articles``         encyclopaedia rows, in the layout of WikiText
* ``stories``          passages whose last word follows only from the whole, as in LAMBADA
* ``activities``       a context and four endings, as in HellaSwag
* ``questions``        a question and four choices, as in ARC
* ``generate``         evaluation and calibration files, and the endless training text beside them
* ``train_tokenizer``  the byte-level BPE tokenizer
* ``train_model``      the OLMoE model
* ``evaluate``         the figures that the model card states
"""
