"""HTTP servers for peers that are libraries. Each runs in its peer's virtual environment: standard library only."""
