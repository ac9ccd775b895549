"""The Python interface of mlc_chat 0.1 (November 2023) over our engine: its scripts run with one import changed.

from rwkv_mlc.mlc_chat import ChatModule
from rwkv_mlc.mlc_chat.callback import StreamToStdout

cm = ChatModule(model="rwkv-7-village-q4f16_1")
cm.generate("Who lives in the red house?", progress_callback=StreamToStdout(callback_interval=2))
print(cm.stats())

docs/mlc_chat.md says what differs.
"""

from .chat_module import ChatModule
from .configs import ChatConfig, ConvConfig, GenerationConfig

__all__ = ["ChatConfig", "ChatModule", "ConvConfig", "GenerationConfig"]
