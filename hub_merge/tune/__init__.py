"""Merges that are chosen by measurement: mixtures of the adapters' units, found on rows that show what each does."""

from hub_merge.tune.closed import closest
from hub_merge.tune.learning import Steps, learned
from hub_merge.tune.responses import responses
from hub_merge.tune.session import tune_to_folder
from hub_merge.tune.tuning import Effort, tune

__all__ = ["Effort", "Steps", "closest", "learned", "responses", "tune", "tune_to_folder"]
