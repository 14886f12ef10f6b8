"""The fields of a run that reach Avalanche's loop, or are done outside of training; it refuses all others."""

HONOURED = (
    *("scenario", "scenario_options", "strategy", "strategy_options", "label", "data_fingerprint", "validation"),
    *("normalize", "augment", "seed", "model", "weights", "head", "head_init", "loss_outputs", "epochs"),
    *("batch_size", "drop_last", "optimizer", "lr", "base_batch_size", "momentum", "nesterov", "weight_decay"),
    *("optimizer_state", "memory_size", "memory_per_class", "memory_policy", "evaluate", "device"),
    *("deterministic", "threads", "data_root", "offline", "tuned_by", "count_flops", "keep_state"),
)
