"""Whether a model may be shipped, and whether it is worse than an earlier one."""
