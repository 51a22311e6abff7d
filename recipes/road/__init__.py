"""ROAD: does the answer go when the most relevant pixels go, and stay when they stay?

Rong et al., *A consistent and efficient evaluation strategy for attribution methods* (ICML 2022, arXiv:2202.00449).
Pixels are removed most relevant first (MoRF) or least relevant first (LeRF) and filled in by noisy linear imputation, so
that neither the gap's edge nor its colour tells the model where they were. Two published protocols go by that name; each
says what its abscissa is.
"""

from lvlm_probe.ablation import noisy_linear_impute
from lvlm_probe.recipes.road.curve import Road, RoadCurve, baselines, road, road_scores
from lvlm_probe.recipes.road.figure import draw_curves
from lvlm_probe.recipes.road.protocol import (
    PROTOCOLS,
    RONG_2022,
    ZHU_2025,
    Protocol,
    find_protocol,
)
from lvlm_probe.recipes.road.summary import MeanCurve, mean_curve

__all__ = [
    "PROTOCOLS",
    "RONG_2022",
    "ZHU_2025",
    "MeanCurve",
    "Protocol",
    "Road",
    "RoadCurve",
    "baselines",
    "draw_curves",
    "find_protocol",
    "mean_curve",
    "noisy_linear_impute",
    "road",
    "road_scores",
]
