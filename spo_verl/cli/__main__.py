"""``python -m spo_verl.cli``: the same as ``spo-verl``."""

from spo_verl.cli import main

if __name__ == "__main__":
    main()
