"""`python -m loadtest.peers`."""

from loadtest.peers.cli import main

main()
