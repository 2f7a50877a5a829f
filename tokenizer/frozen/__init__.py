"""Frozen pretrained networks: LPIPS, vision transformers, EfficientNet-Lite0."""
