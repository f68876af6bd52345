"""`python -m sfpp_cli`, for torchrun."""

from sfpp_cli.app import main

main()
