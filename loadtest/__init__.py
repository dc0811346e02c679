"""Measurements of a running service: locust's users, and the comparison with other servers."""
