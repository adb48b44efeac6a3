"""Small nets with random weights of every architecture that spandrel knows.

A net is named "FAMILY.CLASS", as in `spandrel.architectures.FAMILY.CLASS`.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mipkd.distill.spandrel_reader import import_spandrel

_SMALL: dict[str, Any] = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 2], "img_size": 32}
_DIRECT = {"upsampler": "pixelshuffledirect"}
# What makes each small. RealCUGAN's have no sizes.
SUPER_RESOLUTION: dict[str, dict[str, Any]] = {
    "ATD.ATD": _SMALL | _DIRECT | {"category_size": 16, "num_tokens": 8},
    # Its scale is the ratio of its style network's sizes.
    "AuraSR.AuraSR": {
        "dim": 8,
        "image_size": None,
        "input_image_size": None,
        "attn_depths": [1] * 5,
    }
    | {"mid_attn_depth": 1, "style_network": {"dim_in": 16, "dim_out": 64, "depth": 2}},
    "CRAFT.CRAFT": {"embed_dim": 48, "depths": [1, 1], "num_heads": [2, 2]},
    "Compact.Compact": {"num_feat": 8, "num_conv": 2},
    # Narrower ones have no channel at all in their position bias.
    "DAT.DAT": {"embed_dim": 64, "split_size": [2, 4], "depth": [2, 2], "num_heads": [2, 2]}
    | _DIRECT,
    "DCTLSA.DCTLSA": {"nf": 20, "num_head": 5},
    "DITN.DITN": {"dim": 12, "ITL_blocks": 1, "SAL_blocks": 1},
    "DRCT.DRCT": _SMALL | {"upsampler": "pixelshuffle", "gc": 8, "window_size": 8},
    "ESRGAN.ESRGAN": {"num_filters": 8, "num_blocks": 2},
    "FDAT.FDAT": {"embed_dim": 24, "num_groups": 1, "depth_per_group": 2, "num_heads": 2}
    | {"mid_dim": 16},
    "GRL.GRL": {"embed_dim": 12, "depths": [1, 1], "num_heads_window": [2, 2]}
    | {"num_heads_stripe": [2, 2]}
    | _DIRECT
    | {"img_size": 32},
    "HAT.HAT": _SMALL | {"window_size": 8, "squeeze_factor": 4},
    "IPT.IPT": {"patch_size": 12, "patch_dim": 3, "n_feats": 4, "num_heads": 12, "num_layers": 1},
    "MMRealSR.MMRealSR": {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1}
    | {"num_grow_ch": 4, "num_feats": [8, 8, 8, 8], "num_blocks": [1, 1, 1, 1]},
    "MoESR.MoESR": {"dim": 16, "n_blocks": 2, "n_block": 1},
    "MoSR.MoSR": {"n_block": 2, "dim": 16},
    "OmniSR.OmniSR": {"num_feat": 16},
    "PLKSR.PLKSR": {"dim": 16, "n_blocks": 2},
    "PLKSR.RealPLKSR": {"dim": 16, "n_blocks": 2},
    "RCAN.RCAN": {"n_resgroups": 2, "n_resblocks": 2, "n_feats": 16},
    "RGT.RGT": {"embed_dim": 64, "depth": [2, 2], "num_heads": [2, 2], "img_size": 32},
    "RealCUGAN.UpCunet2x": {},
    "RealCUGAN.UpCunet2x_fast": {},
    "RealCUGAN.UpCunet3x": {},
    "RealCUGAN.UpCunet4x": {},
    "SAFMN.SAFMN": {"dim": 12, "n_blocks": 2},
    "SPAN.SPAN": {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8},
    "SeemoRe.SeemoRe": {"num_experts": 3, "num_layers": 2, "embedding_dim": 12},
    "SwiftSRGAN.SwiftSRGAN": {"num_channels": 8, "num_blocks": 2},
    "Swin2SR.Swin2SR": _SMALL | _DIRECT | {"window_size": 8},
    "SwinIR.SwinIR": _SMALL | _DIRECT | {"window_size": 8},
}
# They take an image and give one of the same size: no teachers of super-resolution.
RESTORERS: dict[str, dict[str, Any]] = {
    "DRUNet.DRUNet": {"in_nc": 4, "out_nc": 3, "nc": [8, 16, 32, 64], "nb": 2},
    "DnCNN.DnCNN": {"in_nc": 3, "out_nc": 3, "nc": 8, "nb": 4},
    "FBCNN.FBCNN": {"nc": [8, 16, 32, 64], "nb": 2},
    "FFTformer.FFTformer": {"dim": 8, "num_blocks": [1, 1, 1], "num_refinement_blocks": 1},
    "GFPGAN.GFPGAN": {},
    "HVICIDNet.HVICIDNet": {"channels": [8, 8, 16, 32]},
    "KBNet.KBNet_s": {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1], "dec_blk_nums": [1]},
    "LaMa.LaMa": {"in_nc": 4},
    "MixDehazeNet.MixDehazeNet": {"embed_dims": [8, 16, 32, 16, 8]},
    "NAFNet.NAFNet": {"width": 8, "enc_blk_nums": [1], "dec_blk_nums": [1]},
    "RestoreFormer.RestoreFormer": {},
    "RetinexFormer.RetinexFormer": {"n_feat": 8, "stage": 1},
    "SAFMNBCIE.SAFMNBCIE": {"dim": 12, "n_blocks": 2, "num_layers": 2},
    "SCUNet.SCUNet": {"config": [1] * 7},
    "Uformer.Uformer": {"embed_dim": 8, "depths": [1] * 9, "num_heads": [1] * 9},
}
SCALES = (1, 2, 3, 4, 8)
_BY_CLASS = {"UpCunet2x": 2, "UpCunet2x_fast": 2, "UpCunet3x": 3, "UpCunet4x": 4, "AuraSR": 4}
# What a constructor calls the scale where that is not "upscale".
_SCALE_ARGUMENT = {
    **dict.fromkeys(("ESRGAN", "FDAT", "IPT", "MMRealSR", "MoESR", "RCAN", "SeemoRe"), "scale"),
    **dict.fromkeys(("PLKSR", "SAFMN"), "upscaling_factor"),
    "OmniSR": "up_scale",
    "SwiftSRGAN": "upscale_factor",
}


def list_scales(name: str) -> tuple[int, ...]:
    """The scales to try: the one that the class is for, or all."""
    kind = name.partition(".")[2]
    return (_BY_CLASS[kind],) if kind in _BY_CLASS else SCALES


def make_net(name: str, scale: int) -> torch.nn.Module:
    """The small net with random weights, the same at each call.

    Raises:
        Exception: whatever the class raises for a scale that it does not have.
    """
    family, _, kind = name.partition(".")
    sizes = dict(SUPER_RESOLUTION.get(name) or RESTORERS.get(name) or {})
    if name in SUPER_RESOLUTION and kind not in _BY_CLASS:
        sizes[_SCALE_ARGUMENT.get(family, "upscale")] = [scale] if family == "IPT" else scale
    torch.manual_seed(0)
    import_spandrel()  # without torchvision, if need be
    made = getattr(importlib.import_module(f"spandrel.architectures.{family}"), kind)
    net: torch.nn.Module = made(**sizes)
    return net.eval()


def write_checkpoint(name: str, scale: int, file: Path) -> Path:
    """The net's state dict in a file."""
    torch.save(make_net(name, scale).state_dict(), file)
    return file


def rename_rrdb(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """ESRGAN's first key names as those of BasicSR, which newer files have (x4)."""
    last = max(int(key.split(".")[3]) for key in state if key.startswith("model.1.sub."))
    found = {}
    for key, value in state.items():
        key = re.sub(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0", r"body.\1.rdb\2.conv\3", key)
        key = key.replace(f"model.1.sub.{last}.", "conv_body.")
        for number, new in enumerate(("conv_first", "", "", "conv_up1", "", "", "conv_up2")):
            key = re.sub(rf"^model\.{number}\.", f"{new}.", key) if new else key
        key = re.sub(r"^model\.8\.", "conv_hr.", re.sub(r"^model\.10\.", "conv_last.", key))
        found[key] = value
    return found
