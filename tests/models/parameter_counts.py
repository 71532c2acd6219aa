"""Published numbers of parameters of the registered models."""

import re


def projection(width, bottleneck, prototypes, hidden=2048):
    """Head of DINO: three layers with biases, and prototypes."""
    layers = (width + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * bottleneck
    return layers + bottleneck * prototypes


# Counts of timm and open_clip. DINOv2 with registers has a position of the class token, which timm
# adds to the token itself. MAE is counted without its fixed positions. Running statistics of batch
# norms do not count, though the models store them among the parameters.
PARAMETER_COUNTS = {
    "clip_vit_emoji": None,  # counted below
    # ViT-B/16 and L/14 without class token, six blocks of two attentions and an MLP without biases,
    # tables of tokens and positions, head.
    **{
        f"cappa_{name}": patch * patch * 3 * w
        + 2 * w
        + grid * grid * w
        + depth * (12 * w * w + 13 * w)
        + w
        + 6 * (16 * w * w + 3 * w)
        + w
        + (32_001 + 64) * w
        + (w + 1) * 32_000
        for name, patch, grid, w, depth in (("b16", 16, 14, 768, 12), ("l14", 14, 16, 1024, 24))
    },
    # open_clip.
    "coca_vit_b32": 253_560_065,
    "coca_vit_l14": 638_450_177,
    "cappa_emoji": None,  # the encoder of clip_vit_emoji
    "clip_vit_emoji_captioner": None,  # towers of clip_vit_emoji
    "clip_rn50": 102_007_137,
    "clip_rn101": 119_688_033,
    "clip_rn50x4": 178_300_601,
    "clip_rn50x16": 290_979_217,
    "clip_rn50x64": 623_258_305,
    "clip_vit_b16": 149_620_737,
    "clip_vit_b32": 151_277_313,
    "clip_vit_l14": 427_616_513,
    "clip_vit_l14_336": 427_944_193,
    "deit3_b16": 86_585_320,
    "deit3_h14": 632_126_440,
    "deit3_l16": 304_374_760,
    "deit3_m16": 38_849_512,
    "deit3_s16": 22_059_496,
    "deit_b16": 86_567_656,
    "deit_b16_384": 86_859_496,
    "deit_b16_distilled": 87_338_192,
    "deit_b16_distilled_384": 87_630_032,
    "deit_s16": 22_050_664,
    "deit_s16_distilled": 22_436_432,
    "deit_ti16": 5_717_416,
    "deit_ti16_distilled": 5_910_800,
    "dinov2_b14": 86_579_712,
    "dinov2_b14_registers": 86_582_784,
    "dinov2_l14": 304_367_616,
    "dinov2_l14_registers": 304_371_712,
    "dinov2_s14": 22_056_192,
    "dinov2_s14_registers": 22_057_728,
    "dinov2_g14": 1_136_479_232,
    "dinov2_g14_registers": 1_136_483_840 + 1536,
    "dinov3_s16": 21_596_160,
    "dinov3_s16plus": 28_692_480,
    "dinov3_b16": 85_659_648,
    "dinov3_l16": 303_128_576,
    "dinov3_h16plus": 840_591_360,
    "timm_dinov3_s16": 21_586_944,
    "timm_dinov3_s16plus": 28_683_264,
    "timm_dinov3_b16": 85_641_216,
    "timm_dinov3_l16": 303_079_424,
    "timm_dinov3_h16plus": 840_509_440,
    # Backbones with positions of 224 px, a mask token, and the heads of DINOv2's configs.
    "dinov2_s14_pretraining": 22_056_192 - 1112 * 384 + projection(384, 256, 65_536),
    "dinov2_b14_pretraining": 86_579_712 - 1112 * 768 + projection(768, 256, 65_536),
    "dinov2_l14_pretraining": 304_367_616
    - 1112 * 1024
    + projection(1024, 384, 131_072)
    + projection(1024, 256, 131_072),
    "mae_vit_b16": 111_907_840 - 197 * (768 + 512),
    "mae_vit_h14": 657_074_508 - 257 * (1280 + 512),
    "mae_vit_l16": 329_541_888 - 197 * (1024 + 512),
    # timm's vit_*_224.mae, without positions.
    "mae_vit_b16_encoder": 85_798_656 - 197 * 768,
    "mae_vit_h14_encoder": 630_764_800 - 257 * 1280,
    "mae_vit_l16_encoder": 303_301_632 - 197 * 1024,
    "openclip_rn50": 102_007_137,
    "openclip_rn101": 119_688_033,
    "openclip_vit_b16": 149_620_737,
    "openclip_vit_b32": 151_277_313,
    "openclip_vit_bigg14": 2_539_567_105,
    "openclip_vit_g14": 1_366_678_273,
    "openclip_vit_h14": 986_109_441,
    "openclip_vit_l14": 427_616_513,
    "regionclip_rn50": 102_007_137,
    "regionclip_rn50x4": 178_300_601,
    "sam_vit_b": 93_735_472,
    "sam_vit_h": 641_090_608,
    "sam_vit_l": 312_342_832,
    "siglip_b16": 203_155_970,
    "siglip_b16_256": 203_202_050,
    "siglip_b16_384": 203_447_810,
    "siglip_b16_512": 203_791_874,
    "siglip_l16_256": 652_150_786,
    "siglip_l16_384": 652_478_466,
    "siglip_so400m14": 877_360_306,
    "siglip_so400m14_384": 877_960_498,
    # transformers.
    # transformers, with positions of 352 px.
    "clipseg_rd16": 150_105_602,
    "clipseg_rd64": 150_915_074,
    "clipseg_rd64_refined": 150_968_930,
    "clipseg_emoji": None,  # towers of clip_vit_emoji
    # transformers, without the norm after the backbone, which is not used.
    "grounding_dino_tiny": 172_250_626 - 2 * 768,
    "grounding_dino_base": 232_315_264 - 2 * 1024,
    # Swin-T without head and norm, BERT without pooler, fusion, layers of BERT, dynamic blocks,
    # pyramid, predictions. Grounding DINO's appendix (Liu et al. 2023) states 232 million.
    "glip_tiny": 28_288_354
    - 770_536
    + 109_482_240
    - 590_592
    + 6 * (3 * 2048 * 1024 + 4 * 2048 + 4 * 1024)
    + 6 * 7_087_872
    + 6 * (3 * (9 * 256**2 + 3 * 256) + 27 * (9 * 256 + 1) + 257 + 257 * 64 + 65 * 1024)
    + 5 * (9 * 256**2 + 256)
    + 258 * 1344
    + 768
    + 769 * 256
    + 5 * 257
    + 775,
    "owlvit_base_patch32": 153_231_879,
    "owlvit_base_patch16": 152_789_511,
    "owlvit_large_patch14": 433_888_519,
    "owlv2_base_patch16": 154_966_792,
    "owlv2_large_patch14": 437_610_760,
    "owl_emoji": None,  # towers of clip_vit_emoji
    # CLIP's tower without its projection of 1024 x 768, and two linear layers.
    "llava_1_5_7b": 303_507_456 + (1024 + 1) * 4096 + (4096 + 1) * 4096,
    "llava_1_5_13b": 303_507_456 + (1024 + 1) * 5120 + (5120 + 1) * 5120,
    # 48 blocks, patches, positions, a norm; queries and positions, attention, three norms, two
    # projections.
    "qwen_vl": 48 * (4 * 1664**2 + 2 * 1664 * 8192 + 8192 + 9 * 1664)
    + (14 * 14 * 3 + 256 + 2) * 1664
    + (2 * 256 + 1664 + 4 * (4096 + 1) + 3 * 2 + 4096) * 4096,
    # CLIP's text towers, the second one without its last block, the last one with a projection.
    "stable_diffusion_1_text": (49408 + 77) * 768 + 12 * 12 * 768**2 + 12 * 13 * 768 + 2 * 768,
    "stable_diffusion_2_text": (49408 + 77) * 1024 + 23 * (12 * 1024**2 + 13 * 1024) + 2 * 1024,
    "stable_diffusion_xl_text": 123_060_480,
    "stable_diffusion_xl_text_2": 694_659_840,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "swin_t": 28_288_354,
    "swin_s": 49_606_258,
    "swin_b": 87_768_224,
    "swin_b_384": 87_903_584,
    "swin_l": 196_532_476,
    "swin_l_384": 196_735_516,
    "vit_b16": 86_567_656,
    "vit_b16_384": 86_859_496,
    "vit_b32": 88_224_232,
    "vit_b8": 86_576_872,
    "vit_giant14": 1_012_611_432,
    "vit_gigantic14": 1_844_440_680,
    "vit_h14": 632_045_800,
    "vit_l14": 304_203_752,
    "vit_l16": 304_326_632,
    "vit_l16_384": 304_715_752,
    "vit_l32": 306_535_400,
    "vit_s16": 22_050_664,
    "vit_s32": 22_878_952,
    "vit_s8": 22_055_272,
    "vit_so400m14": 428_833_704,
    "vit_ti16": 5_717_416,
}
# DINOv2's classifiers read 2 D features.
PARAMETER_COUNTS |= {
    f"{name}_classifier": PARAMETER_COUNTS[name] + (2 * width + 1) * 1000
    for size, width in {"s14": 384, "b14": 768, "l14": 1024, "g14": 1536}.items()
    for name in (f"dinov2_{size}", f"dinov2_{size}_registers")
}

# open_clip's SigLIP differs from big_vision's only in the activation.
PARAMETER_COUNTS |= {
    "siglip_b16_256_i18n": 370_626_050,
    "siglip_so400m16_256_i18n": 1_127_430_706,
    "siglip2_b32_256": 376_856_066,
    "siglip2_b16": 375_187_970,
    "siglip2_b16_256": 375_234_050,
    "siglip2_b16_384": 375_479_810,
    "siglip2_b16_512": 375_823_874,
    "siglip2_l16_256": 881_526_786,
    "siglip2_l16_384": 881_854_466,
    "siglip2_l16_512": 882_313_218,
    "siglip2_so400m14": 1_135_463_602,
    "siglip2_so400m14_384": 1_136_008_498,
    "siglip2_so400m16_256": 1_135_670_962,
    "siglip2_so400m16_384": 1_136_039_602,
    "siglip2_so400m16_512": 1_136_555_698,
    "siglip2_gopt16_256": 1_871_393_906,
    "siglip2_gopt16_384": 1_871_885_426,
}
PARAMETER_COUNTS |= {
    f"openclip_{name.replace('14_384', '14_378')}": count
    for name, count in PARAMETER_COUNTS.items()
    if name.startswith("siglip")
} | {
    "openclip_siglip_so400m14_384": 877_960_498,
    "timm_siglip_b32_256": 94_552_320,
    "timm_siglip_b16": 92_884_224,
    "timm_siglip_b16_256": 92_930_304,
    "timm_siglip_b16_384": 93_176_064,
    "timm_siglip_b16_512": 93_520_128,
    "timm_siglip_l16_256": 315_956_224,
    "timm_siglip_l16_384": 316_283_904,
    "timm_siglip_l16_512": 316_742_656,
    "timm_siglip_so400m14": 427_680_704,
    "timm_siglip_so400m14_378": 428_225_600,
    "timm_siglip_so400m14_384": 428_225_600,
    "timm_siglip_so400m16_256": 427_888_064,
    "timm_siglip_so400m16_384": 428_256_704,
    "timm_siglip_so400m16_512": 428_772_800,
    "timm_siglip_gopt16_256": 1_163_168_256,
    "timm_siglip_gopt16_384": 1_163_659_776,
}
PARAMETER_COUNTS |= {
    "openclip_vit_b32_256": 151_288_833,
    "openclip_vit_b32_plus_256": 210_297_473,
    "openclip_vit_b16_plus": 208_351_361,
    "openclip_vit_b16_plus_240": 208_377_345,
    "openclip_vit_l16": 427_739_393,
    "openclip_vit_l16_320": 427_948_289,
    "openclip_vit_l14_280": 427_763_969,
    "openclip_vit_l14_336": 427_944_193,
    "openclip_vit_h16": 986_263_041,
    "openclip_vit_h14_quickgelu": 986_109_441,
    "openclip_vit_h14_378": 986_714_881,
    "openclip_vit_h14_378_quickgelu": 986_714_881,
    "openclip_vit_bigg14_quickgelu": 2_539_567_105,
    "openclip_vit_e14": 4_581_086_465,
    "openclip_vit_m32": 103_119_873,
    "openclip_vit_m32_alt": 80_070_273,
    "openclip_vit_m16": 102_015_489,
    "openclip_vit_m16_alt": 78_978_177,
    "openclip_vit_s32": 63_085_825,
    "openclip_vit_s32_alt": 43_224_449,
    "openclip_vit_s16": 62_257_537,
    "openclip_vit_s16_alt": 42_396_161,
    "openclip_vit_l14_worldwide": 581_747_969,
    "openclip_vit_l14_worldwide_quickgelu": 581_747_969,
    "openclip_vit_h14_worldwide": 1_858_783_745,
    "openclip_vit_h14_worldwide_quickgelu": 1_858_783_745,
    "openclip_vit_h14_worldwide_378": 1_859_389_185,
    "openclip_vit_bigg14_worldwide": 3_630_409_985,
    "openclip_vit_bigg14_worldwide_378": 3_631_197_057,
    "dfn5b_vit_h14": 986_109_441,
    "dfn5b_vit_h14_378": 986_714_881,
    "aimv2_l14_native": 308_935_680,  # without the positions of aimv2_l14
    "aimv2_l14": 309_197_824,
    "aimv2_l14_336": 309_525_504,
    "aimv2_l14_448": 309_984_256,
    "aimv2_h14": 680_851_968,
    "aimv2_h14_336": 681_343_488,
    "aimv2_h14_448": 682_031_616,
    "aimv2_1b14": 1_234_958_336,
    "aimv2_1b14_336": 1_235_613_696,
    "aimv2_1b14_448": 1_236_531_200,
    "aimv2_3b14": 2_720_658_432,
    "aimv2_3b14_336": 2_721_641_472,
    "aimv2_3b14_448": 2_723_017_728,
}
# The tower of aimv2_l14 with its pooling, a text tower and projections.
PARAMETER_COUNTS["aimv2_l14_lit"] = (
    309_197_824
    + (1024 + 3 * 1024**2 + 1024)
    + ((49_408 + 77) * 768 + 12 * (4 * 768**2 + 3 * 768 * 2048 + 2 * 768) + 768)
    + (1024 + 768) * 768
    + 1
)
# Families whose models differ in sizes only: one of each is counted by default.
FAMILIES = re.compile(
    "(openclip_|timm_)?siglip.*|(timm_)?dinov[23]_(?!.*pretraining).*|aimv2_.*|openclip_vit_.*"
)
COUNTED = ("siglip_so400m14", "aimv2_h14", "openclip_vit_m16_alt", "openclip_vit_e14",
           "dinov2_g14_classifier", "dinov3_h16plus", "timm_dinov3_s16",
           "openclip_siglip2_gopt16_256", "timm_siglip_so400m14_378")  # fmt: skip

# SigLIP 2 B/16, that is SigLIP B/16 with a larger vocabulary, and a decoder as that of CapPa.
PARAMETER_COUNTS["siglip2_b16_captioner"] = (
    203_155_970
    + 224_000 * 768
    + 6 * (16 * 768**2 + 3 * 768)
    + 768
    + (256_001 + 64) * 768
    + (768 + 1) * 256_000
)
# SigLIP 2 NaFlex has the layers, and the table of positions, of 256 px.
PARAMETER_COUNTS |= {
    "siglip2_b16_naflex": PARAMETER_COUNTS["siglip2_b16_256"],
    "siglip2_so400m16_naflex": PARAMETER_COUNTS["siglip2_so400m16_256"],
    "timm_siglip2_b16_naflex": PARAMETER_COUNTS["timm_siglip_b16_256"],
    "timm_siglip2_so400m16_naflex": PARAMETER_COUNTS["timm_siglip_so400m16_256"],
}
# The same with DINO's head and a mask token.
PARAMETER_COUNTS["siglip2_b16_pretraining"] = (
    PARAMETER_COUNTS["siglip2_b16_captioner"] + 768 + projection(768, 256, 65_536)
)
