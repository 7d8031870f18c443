"""`python -m app.cli`: the `tunery` command of a checkout that is not installed."""

from app.cli.main import main

main()
