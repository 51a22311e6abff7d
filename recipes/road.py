"""ROAD."""

from lvlm_probe.ablation import noisy_linear_impute

__all__ = ["noisy_linear_impute"]
