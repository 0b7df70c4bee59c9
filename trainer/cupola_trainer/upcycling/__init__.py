"""Upcycle a dense model to a mixture of experts, as in Qwen2 57B-A14B from 7B (Qwen2 technical report, section 2.2.2).

experts.py    splits one dense FFN into experts: `upcycle_ffn`
layers.py     makes a layer's experts, router and shared expert from a dense checkpoint
"""

from cupola_trainer.upcycling.experts import Experts, upcycle_ffn

__all__ = ["Experts", "upcycle_ffn"]
