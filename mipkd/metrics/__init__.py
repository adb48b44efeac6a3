"""Measures of an image against its reference, one file each; a new file is a new metric."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
