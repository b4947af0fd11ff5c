"""`python -m musubi_cli`, for launchers that start modules."""

from musubi_cli.cli import main

main()
