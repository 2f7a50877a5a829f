"""Determinism mode: on while the run's world lives, put back afterwards, and without a trace on the CPU."""

import os

import pytest
import tiny
import torch

import tokenizer.train
from engine.world import distributed_world
from evaluations.fingerprint import digests


def test_the_mode_is_on_inside_and_put_back_after(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with distributed_world("cpu", deterministic=True):
        assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8" and not torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic
    with distributed_world("cpu"):
        assert not torch.are_deterministic_algorithms_enabled()


def test_a_setting_of_the_user_stays(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with distributed_world("cpu", deterministic=True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_the_mode_is_put_back_after_an_error():
    with pytest.raises(KeyError), distributed_world("cpu", deterministic=True):
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled()


def test_every_operation_of_a_tokenizer_run_has_a_deterministic_form(tmp_path, image_folder, entry):
    """GAN, EMA, entropy, k-means: the run ends, and on the CPU it is the run without the mode, bit for bit."""
    (tmp_path / "tiny.yaml").write_text(tiny.TOKENIZER)
    extra = [*tiny.GAN, "loss.entropy_weight=0.1", "model.quantizer.vq={warmup_steps: 3, init: kmeans}"]
    for mode in ("true", "false"):
        options = [*tiny.folder_data(image_folder), *extra, f"loop.deterministic={mode}"]
        code, _, err = entry(
            tokenizer.train.main, "--config", tmp_path / "tiny.yaml", *options, f"loop.run_dir={tmp_path / mode}"
        )
        assert code == 0, err
    assert digests(tmp_path / "true") == digests(tmp_path / "false")
