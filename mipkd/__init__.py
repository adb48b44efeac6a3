"""Distil super-resolution networks with multi-granularity mixtures of priors."""

from pkgutil import extend_path

# A folder `mipkd/archs/` or `mipkd/losses/` elsewhere on the path adds its files to ours.
__path__ = extend_path(__path__, __name__)
