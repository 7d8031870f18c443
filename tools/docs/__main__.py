"""`python -m tools.docs`: build the site."""

from tools.docs.site import build

if __name__ == "__main__":
    build()
