"""Deep generative replay: the autoencoder against closed forms, the replay loss against plain torch."""

import copy
import math
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import distributions
from torch.nn import functional as F

from clbench.models.vae import VAE
from clbench.strategies.dgr import DGR

ADAM = {"optimizer": "adam", "lr": 0.005}
SMALL = {"hidden": 16, "latent": 4}


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return VAE((1, 3, 4), hidden=8, latent=2)


def test_layers_are_784_400_400_z100_and_back():
    """As in van de Ven et al. 2022 for Split-MNIST; mean and log-variance, 100 each, are one layer of 200."""
    made = VAE((1, 28, 28), DGR().hidden, DGR().latent)
    shapes = [tuple(p.shape) for p in made.parameters() if p.dim() == 2]
    assert shapes == [(400, 784), (400, 400), (200, 400), (400, 100), (400, 400), (784, 400)]


def test_loss_by_hand(vae):
    """All weights zero: mean (1, 0), log-variance (0, log 4), and a decoder that says 3/4 for each of the 12 pixels.

    KL = ((1 + 1 - 1 - 0) + (0 + 4 - 1 - log 4)) / 2 = 2 - log 2; pixels 1 cost log(4/3) each, pixels 0 log 4.
    """
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
        vae.moments.bias.copy_(torch.tensor([1.0, 0.0, 0.0, math.log(4)]))
        vae.decoder[-1].bias.fill_(math.log(3))
    pixels = torch.zeros(2, 1, 3, 4)
    pixels[1].view(-1)[:5] = 1
    divergence = 2 - math.log(2)
    wanted = [12 * math.log(4), 5 * math.log(4 / 3) + 7 * math.log(4)]
    wanted = torch.tensor([(w + divergence) / 12 for w in wanted])
    torch.testing.assert_close(vae.loss(pixels, torch.randn(2, 2)), wanted)
    torch.testing.assert_close(vae.generate(torch.randn(3, 2)), torch.full((3, 1, 3, 4), 0.75))


def test_loss_against_torch_distributions(vae):
    """The bound is E[-log p(x | z)] + KL(q(z | x) || N(0, 1)), z = mean + deviation * noise, for black-white images."""
    pixels, noise = torch.bernoulli(torch.full((5, 1, 3, 4), 0.4)), torch.randn(5, 2)
    mean, log_variance = vae.moments(vae.encoder(pixels.flatten(1))).chunk(2, 1)
    q = distributions.Normal(mean, torch.exp(log_variance) ** 0.5)
    p = distributions.Bernoulli(logits=vae.decoder(q.loc + q.scale * noise))
    divergence = distributions.kl_divergence(q, distributions.Normal(0.0, 1.0)).sum(1)
    wanted = (divergence - p.log_prob(pixels.flatten(1)).sum(1)) / 12
    torch.testing.assert_close(vae.loss(pixels, noise), wanted)


def test_generated_images_are_means_of_the_decoder_in_the_shape_of_images(vae):
    noise = torch.randn(6, 2)
    images = vae.generate(noise)
    assert images.shape == (6, 1, 3, 4)
    assert not images.requires_grad
    torch.testing.assert_close(images.flatten(1), 1 / (1 + torch.exp(-vae.decoder(noise))))


# The replay loss: a batch of replayed images in task 2 of 4/3/3 classes, its answers given.


def replay_loss(setting, logits, answers, active, **options):
    strategy = DGR(**options)
    outputs = [slice(0, 4), slice(4, 7), slice(7, 10)]
    if setting == "domain":
        outputs = [slice(0, 4)] * 3
    strategy._context = SimpleNamespace(
        scenario=SimpleNamespace(setting=setting, tasks=[SimpleNamespace(outputs=o) for o in outputs]),
        progress=SimpleNamespace(task=2),
        config=SimpleNamespace(training=SimpleNamespace(label_smoothing=0.0)),
    )
    strategy.teacher = lambda images: answers
    return strategy._replay_loss(logits, torch.empty(0), SimpleNamespace(active=active))


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 10, generator=generator), 2 * torch.randn(6, 10, generator=generator)


def test_labels_are_the_old_model_s_best_old_class(drawn):
    """Class-incremental: of the 7 old classes, although the old model (full head) has 10 outputs; all 10 compete."""
    logits, answers = drawn
    answers[:, 8] = 100.0
    labels = torch.tensor([row[:7].tolist().index(max(row[:7].tolist())) for row in answers])
    wanted = F.cross_entropy(logits, labels)
    torch.testing.assert_close(replay_loss("class", logits, answers, slice(0, 10)), wanted)


def test_soft_targets_give_new_classes_no_probability(drawn):
    """van de Ven et al.: softmax over the old classes, T = 2, zeros appended; KL is cross-entropy less entropy."""
    logits, answers = drawn
    q = F.softmax(answers[:, :7] / 2, 1)
    cross = -(q * F.log_softmax(logits / 2, 1)[:, :7]).sum(1).mean()
    wanted = cross + (q * q.log()).sum(1).mean()
    found = replay_loss("class", logits, answers[:, :7], slice(0, 10), targets="soft")
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("targets", ["hard", "soft"])
def test_in_the_task_setting_the_old_model_answers_for_each_earlier_task(targets, drawn):
    """The mean over tasks 0 and 1 of the loss among that task's own outputs."""
    logits, answers = drawn
    losses = []
    for own in (slice(0, 4), slice(4, 7)):
        student, teacher = logits[:, own], answers[:, own]
        if targets == "hard":
            losses.append(F.cross_entropy(student, teacher.argmax(1)))
        else:
            q = F.softmax(teacher / 3, 1)
            losses.append((q * (q.log() - F.log_softmax(student / 3, 1))).sum(1).mean())
    found = replay_loss("task", logits, answers[:, :7], slice(7, 10), targets=targets, temperature=3.0)
    torch.testing.assert_close(found, torch.stack(losses).mean())


def test_in_the_domain_setting_all_outputs_are_old(drawn):
    logits, answers = (values[:, :4] for values in drawn)
    wanted = F.cross_entropy(logits, answers.argmax(1))
    torch.testing.assert_close(replay_loss("domain", logits, answers, slice(0, 4)), wanted)


# Whole runs


class Watched(DGR):
    """Recomputes both classifier terms of each step from frozen copies made by the test."""

    def begin_task(self, task):
        self.copies = copy.deepcopy((self.model, getattr(self, "generator", None)))
        super().begin_task(task)

    def loss(self, batch):
        terms = super().loss(batch)
        n_tasks = self.progress.task + 1
        wanted = self.classification_loss(copy.deepcopy(self.model)(batch.images), batch) / n_tasks
        assert terms["classification"].item() == pytest.approx(wanted.item(), rel=1e-4)
        assert ("replay" in terms) == (n_tasks > 1)
        if n_tasks > 1:
            model, generator = self.copies
            pixels = generator.generate(self._noise("replay", len(batch)))
            images = self.normalize((255 * pixels).clone())
            with torch.no_grad():
                labels = model.eval()(images)[:, : self.old_task_outputs[-1].stop].argmax(1)
                logits = copy.deepcopy(self.model)(images)[:, batch.active]
            wanted = (1 - 1 / n_tasks) * float(F.cross_entropy(logits, labels))
            assert terms["replay"].item() == pytest.approx(wanted, rel=1e-4)
            share = terms["generator_replay"].item() / terms["generator"].item() / (n_tasks - 1)
            assert 0.2 < share < 5, "per image, current and replayed samples cost the generator about the same"
            self.labels.update(labels.tolist())
        return terms


def test_current_and_replayed_samples_count_by_the_number_of_tasks(run, cut):
    """1/N of the current loss, 1 - 1/N of the replayed one, by copies made when the task began; tasks of 4/3/3."""

    class DGR(Watched):
        labels: ClassVar[set[int]] = set()

    run(DGR, cut(task_sizes=[4, 3, 3], limit=20), epochs=3, strategy_options=SMALL, **ADAM)
    assert len(DGR.labels) > 1
    assert max(DGR.labels) < 7


@pytest.mark.parametrize("normalize", ["none", "channel"])
def test_model_and_generator_see_the_same_images_each_in_its_scale(normalize, run, tiny):
    """The generator works on pixels in [0, 1], the model on normalised ones: mean and deviation of the scenario."""

    class Scaled(DGR):
        def loss(self, batch):
            given = []
            model, generator = self.model, self.generator
            hooks = [
                model.register_forward_pre_hook(lambda m, x: given.append(x[0])),
                generator.encoder.register_forward_pre_hook(lambda m, x: given.append(x[0])),
            ]
            terms = super().loss(batch)
            for hook in hooks:
                hook.remove()
            images, pixels = given
            assert len(images) == len(pixels) == len(batch) * (1 + (self.progress.task > 0))
            mean, std = (tiny.mean[0], tiny.std[0]) if normalize == "channel" else (0.0, 1.0)
            torch.testing.assert_close(images.flatten(1), (pixels - mean) / std, rtol=1e-4, atol=1e-5)
            assert pixels.min() >= 0
            assert pixels.max() <= 1
            return terms

    run(Scaled, tiny, normalize=normalize, strategy_options=SMALL, **ADAM)


@pytest.mark.parametrize("model", ["mlp:12[batch_norm=true]", "conv:3-3"])
@pytest.mark.parametrize(
    ("setting", "sizes"),
    [("class", [4, 3, 3]), ("class", [1] * 10), ("task", [4, 3, 3]), ("domain", [2] * 5)],
)
def test_every_setting_and_any_sizes_of_tasks(setting, sizes, model, run, cut):
    for targets, head in (("hard", "growing"), ("soft", "full")):
        options = SMALL | {"targets": targets}
        tasks = cut(setting=setting, task_sizes=sizes)
        result = run(DGR, tasks, model=model, head=head, batch_size=9, strategy_options=options, **ADAM)
        rows = result.accuracy
        assert all(math.isfinite(value) for i, row in enumerate(rows) for value in row[: i + 1])


def test_dgr_refuses_what_it_cannot_do(run, refused):
    with refused("dgr", "loss_outputs='new'", "'seen'"):
        run(DGR, loss_outputs="new")
    with refused("DGR", "memory"):
        run(DGR, memory_size=20)


@pytest.mark.slow
def test_on_5000_digits_generated_images_keep_what_naive_training_forgets(tmp_path):
    """Class-incremental, with the preset's training: naive ends at 20 %, the last task alone."""
    import clbench

    options = {"strategy_options": {"latent": 5}, "setting": "class", "threads": 1}
    result = clbench.run("split-mnist-5k", DGR, out=tmp_path, **options)
    assert result.record["metrics"]["average_accuracy"] > 0.6
