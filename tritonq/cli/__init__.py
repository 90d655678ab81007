"""The command line: `tritonq COMMAND`, and `python3 -m tritonq COMMAND` where the console script is not on the path.

    main.py      runs a command: exit codes, and errors in one sentence
    options.py   options that several commands share
    others       one command a file: a function whose signature is its arguments, whose docstring is its help

typer and rich come with `pip install "tritonq[demo]"`, and only `main` imports them, when it is called.
"""

from tritonq.cli.main import main

__all__ = ["main"]
