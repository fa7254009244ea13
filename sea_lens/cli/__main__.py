"""`python -m sea_lens.cli` is `sea-lens`."""

from sea_lens.cli import main

if __name__ == "__main__":
    main()
