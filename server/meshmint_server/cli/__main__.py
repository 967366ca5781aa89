"""`python -m meshmint_server.cli` is `meshmintd`."""

from meshmint_server.cli.program import main

main()
