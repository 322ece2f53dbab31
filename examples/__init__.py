"""Small scripts to start from; not part of the package."""
