"""The student: every parameter learns, or is frozen on purpose."""

import torch

from lightgen.objectives.masked import MaskedConfig, draw_masking, image_errors

IDS = list(range(8))


def errors(student, batch):
    masking = draw_masking(MaskedConfig(text_drop=0.5), 0, IDS, 6, 8)
    assert 0 < masking.dropped.sum() < len(IDS) and masking.known_at.shape[1] > 0
    return image_errors(student, batch, masking)


def test_a_gradient_reaches_every_parameter(make_student, make_batch):
    student = make_student()
    errors(student, make_batch(IDS)).mean().backward()
    silent = [n for n, p in student.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


def test_a_frozen_text_encoder_gets_no_gradient_and_stays_in_eval_mode(make_student, make_batch):
    student = make_student(train_text_encoder=False)
    student.train()
    assert student.transformer.training and not student.text_encoder.training
    assert not any(parameter.requires_grad for parameter in student.text_encoder.parameters())
    errors(student, make_batch(IDS)).mean().backward()
    assert all(parameter.grad is None for parameter in student.text_encoder.parameters())
    assert all(parameter.grad is not None for parameter in student.transformer.parameters())
    both = make_student()
    both.train()
    assert both.text_encoder.training
    both.eval()
    assert not both.text_encoder.training


def test_freezing_changes_no_number(make_student, make_batch):
    batch = make_batch(IDS)
    assert torch.equal(errors(make_student(), batch), errors(make_student(train_text_encoder=False), batch))


def test_words_behind_the_mask_do_not_count(make_student, make_batch):
    student, batch = make_student(), make_batch(IDS)
    changed = {**batch, "text_ids": torch.where(batch["text_mask"], batch["text_ids"], 7)}
    assert not torch.equal(changed["text_ids"], batch["text_ids"])
    torch.testing.assert_close(errors(student, changed), errors(student, batch), rtol=1e-4, atol=1e-5)
    heard = {**batch, "text_ids": torch.where(batch["text_mask"], 7, batch["text_ids"])}
    assert (errors(student, heard) - errors(student, batch)).abs().max() > 1e-3
