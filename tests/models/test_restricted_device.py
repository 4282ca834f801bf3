"""What `restrict_task_attention` puts aside goes where the model is when `choose_most_read` runs."""

import pytest
import tiny
import torch

from dne_lab.models.variants import Variant


@pytest.mark.parametrize("control", [{"most": 1}, {"weights": "means"}], ids=str)
def test_task_attention_put_aside_before_a_move_is_moved(monkeypatch, control):
    model = tiny.model(Variant("dne", "own", "task", **control))
    model.restrict_task_attention()
    model.to("meta")
    devices = set()

    def mean(batches):
        devices.update(p.device.type for p in model.experts[-1].parameters())
        return {place: torch.zeros(0) for place in model._unrestricted}

    def take_over(self, before, mass):
        devices.update(p.device.type for p in before.parameters())

    monkeypatch.setattr(model, "mean_task_attention", mean)
    monkeypatch.setattr("dne_lab.models.expert.TaskAttentionParameters.take_over", take_over)
    model.choose_most_read([])
    assert devices == {"meta"}
