"""Train cross-lingual retrievers in JAX: from any English retriever and any bitext.

Axis letters, everywhere: ``B`` batch (queries or pairs), ``N`` passages a query, ``Q`` and ``P``
queries and passages scored all against all, ``R`` rows (any of these, flattened), ``T`` tokens,
``D`` model width, ``H`` heads, ``K`` head size, ``E`` embedding size, ``L`` layers, ``V``
vocabulary.
"""
