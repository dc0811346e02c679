"""`python -m service.cli`: the `attend` command where its script is not on the path."""

from service.cli.main import main

main()
