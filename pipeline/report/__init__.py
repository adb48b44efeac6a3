"""Turn measurements and a verdict into pages for people and files for machines."""
