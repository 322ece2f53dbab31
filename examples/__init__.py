"""Small programs that show one thing each; not part of the package."""
