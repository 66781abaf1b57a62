"""`python -m everlearn`, as `accelerate launch -m everlearn` needs it."""

from everlearn.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
