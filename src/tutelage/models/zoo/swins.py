"""Two Swin Transformers smaller than timm's: the students of OFA-KD and PAT.

Source: OFAKD ``custom_model/swin_transformer.py``.
"""

from __future__ import annotations

from timm.models.swin_transformer import SwinTransformer

from tutelage.models.zoo.registration import IMAGENET, register_networks

_SHARED = {"patch_size": 4, "window_size": 7, "depths": (2, 2, 2, 2), "num_heads": (2, 4, 8, 16)}

register_networks(
    __name__,
    SwinTransformer,
    {
        "swin_nano_patch4_window7_224": {**_SHARED, "embed_dim": 64},
        "swin_pico_patch4_window7_224": {**_SHARED, "embed_dim": 48},
    },
    {
        **IMAGENET,
        "first_conv": "patch_embed.proj",
        "classifier": "head.fc",
        "pool_size": (7, 7),
        "fixed_input_size": True,
    },
    {"flatten_sequential": True, "out_indices": (0, 1, 2, 3)},
)
