"""`python -m groupfx`."""

from .cli import main

if __name__ == "__main__":
    main()
