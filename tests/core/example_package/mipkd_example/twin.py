"""EDSR under another name."""

from mipkd.archs.edsr import Family


class Twin(Family):
    """Checkpoints of nobody else."""

    name = "twin"

    def canonical(self, state):
        return None


TWIN = Twin()
