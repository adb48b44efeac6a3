"""The bundle of a run: the models with all that proves and describes them, checkable anywhere."""
