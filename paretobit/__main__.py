"""`python -m paretobit` is the command line; torchrun starts it this way."""

from paretobit.cli import main

if __name__ == "__main__":
    main()
