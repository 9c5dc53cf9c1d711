"""What words changed in the masks and outside, as `paint` tells it."""

import torch

from directions.paint.regions import changed
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide_files import load_guide
from flowgrad.guidance.text import log_odds
from flowgrad.painting.objective import Words
from flowgrad.painting.regions import Region


def test_a_change_is_told_by_where_it_is():
    guide, smiling = load_guide("faces64-guide"), Contrast("a smiling face", "a serious face")
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 40:, :] = 1
    mask[..., 39, :] = 0.5  # of a row that is half in either region, three quarters are in both together
    before = torch.linspace(-0.5, 0.5, 2 * 3 * 64 * 64).view(2, 3, 64, 64)
    after = before.clone()
    after[..., 39, :] += 0.4
    told = changed(before, after, (Region(mask, Words(guide, smiling)),) * 2)
    assert abs(told.inside - 0.2 * 0.75 / 24.75) < 1e-6
    assert abs(told.outside - 0.2 * 0.25 / 39.25) < 1e-6
    gain = float((log_odds(guide, after, [smiling]) - log_odds(guide, before, [smiling])).mean())
    assert gain != 0 and told.gains == (gain, gain)


def test_where_masks_cover_everything_nothing_is_outside():
    images = torch.zeros(1, 3, 64, 64)
    words = Words(load_guide("faces64-guide"), Contrast("a smiling face", "a serious face"))
    assert changed(images, images + 0.2, (Region(torch.ones(1, 1, 64, 64), words),)).outside == 0
