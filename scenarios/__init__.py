"""Ways of making tasks, and the data sets that they are cut from."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clbench.scenarios.datasets import Dataset, dataset_from_arrays, load_dataset
    from clbench.scenarios.splits import split
    from clbench.scenarios.streams import join

__all__ = ["Dataset", "dataset_from_arrays", "join", "load_dataset", "split"]


def __getattr__(name: str) -> Any:
    # The data sets need no torch; only cutting tasks from them and joining them does.
    if name == "split":
        from clbench.scenarios.splits import split

        return split
    if name == "join":
        from clbench.scenarios.streams import join

        return join
    if name in __all__:
        from clbench.scenarios import datasets

        return getattr(datasets, name)
    raise AttributeError(f"module 'clbench.scenarios' has no attribute {name!r}")
