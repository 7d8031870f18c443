from __future__ import annotations

from tests.trainer.helpers import CPU
from worker.trainer.kernels.kernels import choose_kernels


def test_a_cpu_ignores_the_setting_of_fused_kernels() -> None:
    kernels = choose_kernels(CPU, wants_fused=True)
    assert (kernels.is_fused, kernels.draws_masks_again, kernels.pins_batches) == (False, False, False)
