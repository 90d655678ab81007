"""The command line: `tritonq COMMAND`, or `python3 -m tritonq COMMAND` if the console script is not on the path.

    main.py      runs a command; exit codes, and errors in one sentence
    options.py   options that several commands share
    others       one command a file: the function's signature is its arguments, its docstring its help

typer and rich come with `pip install "tritonq[demo]"`. Only `main` imports them, when it is called.
"""

from tritonq.cli.main import main

__all__ = ["main"]
