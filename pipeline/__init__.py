"""The command line, the flow of stages, the bench and the report."""

from pkgutil import extend_path

# A folder `pipeline/machine/` elsewhere on the path adds its files to ours.
__path__ = extend_path(__path__, __name__)
