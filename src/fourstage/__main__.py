"""`python -m fourstage`, which is also what torchrun starts."""

from fourstage.cli.app import main

if __name__ == "__main__":
    main()
