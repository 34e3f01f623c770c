"""`python -m consent_service.cli`: the same command."""

from consent_service.cli import main

main()
