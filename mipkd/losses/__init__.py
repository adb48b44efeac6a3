"""Losses of distillation, one file each; a new file is a new loss and a new method.

Not built: CSD (Wang et al., IJCAI 2021), whose contrastive term needs the weights of VGG19.
"""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
