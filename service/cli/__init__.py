"""The `attend` command, one module for each sub-command."""

from service.cli.main import main

__all__ = ["main"]
