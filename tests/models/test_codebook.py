"""The codebook head against equations 1 to 3."""

import pytest
import torch

from plures.errors import PluresError
from plures.models import Tokens
from plures.models.heads import heads
from plures.models.heads.codebook import Codebook
from plures.models.outputs import grid_boxes

TOKENS = Tokens(torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64), grid_boxes(2, 3))


def head(**options):
    torch.manual_seed(0)
    made = Codebook(8, 5, code_width=8, **options).double()
    torch.nn.init.normal_(made.classifier.bias)
    return made


def test_equations_1_to_3_written_out():
    made = head()
    output = made(TOKENS)
    for image in range(3):
        patches = TOKENS.features[image]
        for label in range(5):
            weights = torch.stack([(made.codebooks[label] @ patch).exp() for patch in patches])
            weights = weights / weights.sum()
            gathered = sum(w * patch for w, patch in zip(weights, patches, strict=True))
            embedding = made.mlp(gathered) + gathered
            probability = made.classifier(embedding).softmax(0)[label]
            torch.testing.assert_close(output.attention[image, label], weights)
            torch.testing.assert_close(output.embeddings[image, label], embedding)
            torch.testing.assert_close(output.logits[image, label].sigmoid(), probability)


def test_sigmoid_logit_is_the_diagonal_of_the_scores():
    made = head(logit="sigmoid")
    output = made(TOKENS)
    scores = made.classifier(output.embeddings)
    torch.testing.assert_close(output.logits, scores.diagonal(dim1=1, dim2=2))


def test_margin_stays_finite_and_differentiable_for_huge_scores():
    made = head().float()
    embeddings = (1e4 * torch.randn(3, 5, 8)).requires_grad_()
    logits = made.judge(embeddings)
    assert logits.isfinite().all()
    logits.sum().backward()
    assert embeddings.grad.isfinite().all()


def test_margin_has_the_right_gradient():
    made = head()
    embeddings = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(made.judge, (embeddings,))


def test_tokens_of_the_codes_own_width_are_not_projected():
    assert not list(Codebook(8, 5, code_width=8).project.parameters())
    assert Codebook(12, 5, code_width=8)(Tokens(torch.rand(2, 1, 12), grid_boxes(1, 1))).embeddings.shape == (2, 5, 8)


def test_normalised_tokens_are_what_the_codebooks_attend_to_and_gather():
    plain, made = head(), head(normalise_tokens=True)
    assert not list(plain.norm.parameters())
    features = torch.nn.functional.layer_norm(TOKENS.features, (8,))
    torch.testing.assert_close(made(TOKENS).logits, plain(Tokens(features, TOKENS.boxes)).logits)
    torch.testing.assert_close(made(Tokens(5 * TOKENS.features + 1, TOKENS.boxes)).logits, made(TOKENS).logits,
                               rtol=1e-3, atol=1e-3)  # fmt: skip


def test_codebooks_start_with_standard_deviation_a_sixteenth():
    assert Codebook(256, 80).codebooks.detach().std() == pytest.approx(1 / 16, rel=0.05)


def test_a_margin_between_one_class_is_refused():
    with pytest.raises(PluresError, match="at least two"):
        heads.make("codebook", {"width": 8, "classes": 1})
