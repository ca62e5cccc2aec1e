"""Adapters folded into full models."""

from hub_merge.fusion.fusing import fuse, push_fused
from hub_merge.fusion.record import FusionRecord, is_fused
from hub_merge.fusion.verifying import verify, verify_fused

__all__ = ["FusionRecord", "fuse", "is_fused", "push_fused", "verify", "verify_fused"]
