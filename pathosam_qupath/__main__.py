"""``python -m pathosam_qupath`` is the command ``pathosam-qupath``."""

from pathosam_qupath.cli import main

if __name__ == "__main__":
    main()
