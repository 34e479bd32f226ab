"""Tensor parallelism: one model over several processes, each with its share of every layer. Knows no Ray.

plans.py says which layers are split and how, sharding.py splits a model by its
plan, layers.py has the layers that add up over the ranks; group.py is rank 0's
side of the step protocol, rank.py that of the others, ring.py and links.py
what lies between them, local.py one way to start ranks: as processes of this
machine.
"""
