"""Attend beside other LLM servers: same weights, same CPU, same client, same prompts.

`python -m loadtest.peers install`, then `prepare`, `run`, `quality`, `tables`, `plot`. Imports nothing: the shims
below it run inside the peers' own virtual environments.
"""
