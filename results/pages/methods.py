"""What a page says of a pretraining method: one line, the paper, how to cite it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A method of `EncoderCard.method`, or of a model's name in published.csv before the slash."""

    description: str
    paper: str
    link: str
    bibtex: str


METHODS = {
    "MoCo v1": Method(
        "Contrasts two views of an image against a queue of keys from a slowly moving average of the encoder.",
        "Momentum Contrast for Unsupervised Visual Representation Learning",
        "https://arxiv.org/abs/1911.05722",
        """@article{he2019moco,
  title   = {Momentum Contrast for Unsupervised Visual Representation Learning},
  author  = {He, Kaiming and Fan, Haoqi and Wu, Yuxin and Xie, Saining and Girshick, Ross},
  journal = {arXiv preprint arXiv:1911.05722},
  year    = {2019}
}""",
    ),
    "MoCo v2": Method(
        "MoCo with a two-layer projection head, stronger augmentation and a cosine schedule: a queue of negatives "
        "instead of a large batch.",
        "Improved Baselines with Momentum Contrastive Learning",
        "https://arxiv.org/abs/2003.04297",
        """@article{chen2020improved,
  title   = {Improved Baselines with Momentum Contrastive Learning},
  author  = {Chen, Xinlei and Fan, Haoqi and Girshick, Ross and He, Kaiming},
  journal = {arXiv preprint arXiv:2003.04297},
  year    = {2020}
}""",
    ),
}
