"""Configuration of RWKV-6."""

from transformers import PretrainedConfig


class Rwkv6Config(PretrainedConfig):
    """``mix_low_rank_dim`` and ``decay_low_rank_dim`` are the ranks of the pairs of matrices that give a token its mixes
    and its decay; the heads' norm has the epsilon 1e-5 * head_size_divisor ** 2."""

    model_type = "rwkv6"

    def __init__(
        self,
        vocab_size: int = 65536,
        context_length: int = 4096,
        hidden_size: int = 2048,
        num_hidden_layers: int = 24,
        attention_hidden_size: int | None = None,
        intermediate_size: int | None = None,
        head_size: int = 64,
        head_size_divisor: int = 8,
        mix_low_rank_dim: int = 32,
        decay_low_rank_dim: int = 64,
        layer_norm_epsilon: float = 1e-5,
        use_cache: bool = True,
        bos_token_id: int | None = 0,
        eos_token_id: int | list[int] | None = 0,
        pad_token_id: int | None = 0,
        tie_word_embeddings: bool = False,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.attention_hidden_size = attention_hidden_size or hidden_size
        self.intermediate_size = intermediate_size or int(hidden_size * 3.5) // 32 * 32
        self.head_size = head_size
        self.head_size_divisor = head_size_divisor
        self.mix_low_rank_dim = mix_low_rank_dim
        self.decay_low_rank_dim = decay_low_rank_dim
        self.layer_norm_epsilon = layer_norm_epsilon
        self.use_cache = use_cache
        super().__init__(
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )
