"""Parts of the input taken away, and what the model makes of the rest."""

from lvlm_probe.ablation.impute import noisy_linear_impute

__all__ = ["noisy_linear_impute"]
