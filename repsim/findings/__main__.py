"""`python -m repsim.findings similarity.h5 "[last third](a:clean, a:pgd)"`: one number again."""

from __future__ import annotations

import sys

from repsim.errors import UserError
from repsim.findings.again import again


def main(arguments: list[str]) -> int:
    """Print a number with its interval; exit status 2 for a user's mistake."""
    if len(arguments) < 2 or "--help" in arguments:
        print(
            'usage: python -m repsim.findings FILE "NUMBER"\n'
            '       python -m repsim.findings similarity.h5 accuracy.csv:CONDITION "RANKS"\n'
            "FILE: similarity.h5, within.h5, predictions.csv or probe_predictions.csv of a study\n"
            "NUMBER: 0.5 [last third](NETWORK:CONDITION, NETWORK:CONDITION) - ...",
            file=sys.stderr,
        )
        return 0 if "--help" in arguments else 2
    try:
        value, found = again(*arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{value:.6f}" + (f" [{found[0]:.6f}, {found[1]:.6f}]" if found else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
