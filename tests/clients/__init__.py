"""Other people's clients, each a small program that tests/e2e/test_other_clients.py runs against a real server."""
