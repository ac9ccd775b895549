"""Configuration of RWKV-5 in its versions 5.0, 5.1 and 5.2."""

from transformers import PretrainedConfig


class Rwkv5Config(PretrainedConfig):
    """``model_version`` is ``5_0``, ``5_1`` or ``5_2``; the heads' norm has the epsilon 1e-5 * head_size_divisor ** 2. In
    ``logarithmic_bonus`` the bonus of 5.0 is stored as its logarithm, ``time_first``."""

    model_type = "rwkv5"

    def __init__(
        self,
        model_version: str = "5_2",
        vocab_size: int = 65536,
        context_length: int = 4096,
        hidden_size: int = 2048,
        num_hidden_layers: int = 24,
        attention_hidden_size: int | None = None,
        intermediate_size: int | None = None,
        head_size: int = 64,
        head_size_divisor: int = 8,
        layer_norm_epsilon: float = 1e-5,
        logarithmic_bonus: bool = False,
        use_cache: bool = True,
        bos_token_id: int | None = 0,
        eos_token_id: int | list[int] | None = 0,
        pad_token_id: int | None = 0,
        tie_word_embeddings: bool = False,
        **kwargs,
    ):
        self.model_version = model_version
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.attention_hidden_size = attention_hidden_size or hidden_size
        self.intermediate_size = intermediate_size or int(hidden_size * 3.5) // 32 * 32
        self.head_size = head_size
        self.head_size_divisor = head_size_divisor
        self.layer_norm_epsilon = layer_norm_epsilon
        self.logarithmic_bonus = logarithmic_bonus
        self.use_cache = use_cache
        super().__init__(
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )
