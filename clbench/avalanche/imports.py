"""The parts of Avalanche that clbench uses, imported without the warnings that importing it brings to a user."""

import warnings

with warnings.catch_warnings():
    # Of optional packages that are not there, and of what Avalanche will rename.
    warnings.simplefilter("ignore")
    from avalanche import training
    from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
    from avalanche.benchmarks.scenarios import DatasetExperience
    from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, TransformGroups
    from avalanche.benchmarks.utils.classification_dataset import (
        TaskAwareSupervisedClassificationDataset,
        _make_taskaware_tensor_classification_dataset,
    )
    from avalanche.benchmarks.utils.transforms import flat_transforms_recursive
    from avalanche.core import SupervisedPlugin
    from avalanche.models import MultiTaskModule
    from avalanche.training.plugins import EvaluationPlugin, SynapticIntelligencePlugin
    from avalanche.training.templates import SupervisedTemplate

__all__ = [
    "AvalancheDataset",
    "DataAttribute",
    "DatasetExperience",
    "EvaluationPlugin",
    "MultiTaskModule",
    "SupervisedPlugin",
    "SupervisedTemplate",
    "SynapticIntelligencePlugin",
    "TaskAwareSupervisedClassificationDataset",
    "TransformGroups",
    "_make_taskaware_tensor_classification_dataset",
    "benchmark_from_datasets",
    "flat_transforms_recursive",
    "training",
    "with_classes_timeline",
    "with_task_labels",
]
