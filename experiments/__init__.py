"""The main job on real data and the experiments of the paper; not part of the package."""
