"""Complete scripts to start from: ``python -m examples.start.plain_loop`` and so on."""
