"""`python -m musubi_cli` is `musubi`; launchers of several processes start it so."""

from musubi_cli.cli import main

main()
