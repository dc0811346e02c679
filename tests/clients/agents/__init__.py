"""One script per client, each written as a user of that library would; run by tests/clients/run.py."""
