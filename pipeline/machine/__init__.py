"""Where models run: this machine, one elsewhere, one that a kit was carried to."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
