"""Distillation losses, one file each; a new file is a new loss."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
