"""The command line, the flow of stages, the bench and the report."""
