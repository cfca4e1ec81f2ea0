"""`python -m stma` is the command `stma`."""

from stma.cli import main

main()
