"""``python -m connpool``: see ``connpool.cli``."""

import sys

from connpool.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
