"""A target that repeats each pixel."""

import shutil

from targets.base import Session, Target


class RepeatSession(Session):
    """Each pixel, as a square of the scale."""

    def __init__(self, scale):
        self.scale = scale

    def run(self, lr_NCHW):
        return lr_NCHW.repeat(self.scale, 2).repeat(self.scale, 3)


class Repeat(Target):
    """Needs numpy alone."""

    name = "repeat"

    def precisions(self):
        return ("fp32",)

    def why_not(self):
        return ""

    def versions(self):
        return {"numpy": "any"}

    def build(self, request):
        self.check(request)
        request.out.mkdir(parents=True, exist_ok=True)
        file = request.out / "model.onnx"
        shutil.copyfile(request.graph.file, file)
        return self.describe(request, file)

    def open(self, built):
        return RepeatSession(built.scale)


REPEAT = Repeat()
