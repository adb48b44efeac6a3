"""Runtimes a student is deployed to, one file each; a new file is a new target."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
