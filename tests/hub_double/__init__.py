"""A Hugging Face Hub for tests, in this process and on loopback only."""

from .double import HubDouble

__all__ = ["HubDouble"]
