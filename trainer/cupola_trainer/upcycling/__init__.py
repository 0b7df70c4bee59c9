"""From a dense model to a mixture of experts, as Qwen2 made 57B-A14B out of 7B (Qwen2 technical report, section 2.2.2).

experts.py    one dense FFN, split into experts: `upcycle_ffn`
layers.py     a layer's experts, router and shared expert, from a dense checkpoint
"""

from cupola_trainer.upcycling.experts import Experts, upcycle_ffn

__all__ = ["Experts", "upcycle_ffn"]
