"""Train a student from a teacher: read, choose, feed, train, resume."""
