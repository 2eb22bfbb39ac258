"""Questions of an experiment to a running worker: names for vLLM's `collective_rpc`."""

CENSUS_RPC = "repro_census"
"""Count the heap; with it the engine core and the front end count theirs."""

SWITCH_RPC = "repro_switch"
"""Freeze the heap or thaw it: a cross-over."""

FLIP_RPC = "repro_flip"
"""The same for short periods: nothing is collected."""

RECAPTURE_RPC = "repro_recapture"
"""Discard the CUDA graphs and capture them again under a policy."""

END_RPC = "repro_end"
"""Undo the policy and count what is left, as at shutdown: vLLM's server kills its workers."""
