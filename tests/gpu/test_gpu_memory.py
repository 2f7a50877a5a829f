"""What `--plan` says against what a GPU holds."""

import pytest
import torch

from autoregressive.models.gpt import GPT, GPTConfig
from engine.devices import peak_memory, start_peak_memory
from engine.loop import TrainLoopConfig
from engine.memory_plan import MemoryModel, Setting
from engine.optim import OptimConfig
from engine.trained_model import TrainedModel
from engine.without_storage import without_storage

pytestmark = pytest.mark.gpu

CONFIG = GPTConfig(size="b", num_classes=10)
BATCH = 8
SLACK = 64 * 2**20  # bytes of libraries and of the allocator's blocks


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_needs_what_the_plan_says(precision, checkpointing, gpu_world):
    """State within 2 %; the peak of a step between 60 and 130 % of the plan, which sees no gradients of activations."""
    # The plan.
    with without_storage():
        described = GPT(CONFIG)

    def forward(batch: int) -> torch.Tensor:
        tokens = torch.zeros(batch, described.num_tokens, dtype=torch.long)
        return described.loss(described(torch.zeros(batch, dtype=torch.long), tokens), tokens)

    memory = MemoryModel.measure(described, forward, precision, BATCH, 1, ema=True, beside=0)
    setting = Setting("ddp", checkpointing, 1)

    # The device.
    device = gpu_world.device
    held = start_peak_memory(device)
    loop = TrainLoopConfig(precision=precision, activation_checkpointing=checkpointing)
    trained = TrainedModel(GPT(CONFIG), OptimConfig(), total_steps=9, world=gpu_world, ema_decay=0.9, parallel=loop)
    labels = torch.zeros(BATCH, dtype=torch.long, device=device)
    tokens = torch.zeros(BATCH, CONFIG.num_tokens, dtype=torch.long, device=device)
    for step in range(2):
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            outputs = trained.wrapped(labels, tokens)
        trained.module.loss(outputs, tokens).backward()
        trained.step(step, {})
    state = torch.cuda.memory_allocated(device) - held + 4 * sum(p.numel() for p in trained.module.parameters())
    peak = peak_memory(device) - held

    print(f"state {state / 1e9:.2f} GB, planned {memory.state(setting) / 1e9:.2f}")
    print(f"peak {peak / 1e9:.2f} GB, planned {memory.total(setting) / 1e9:.2f}")
    assert state == pytest.approx(20 * sum(p.numel() for p in described.parameters()), rel=0.02, abs=SLACK)
    assert 0.6 * memory.total(setting) <= peak <= 1.3 * memory.total(setting) + SLACK
