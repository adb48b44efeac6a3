"""The squared error against the truth."""

from mipkd.losses.base import Loss


class Squared(Loss):
    """Its weight is its only setting."""

    def __call__(self, seen, helper):
        error = (seen.student_image - seen.hr_NCHW).pow(2).mean()
        return {"squared": self.weight * error}
