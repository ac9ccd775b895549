"""Configuration of RWKV-7, in the keys of flash-linear-attention."""

from transformers import PretrainedConfig


class RWKV7Config(PretrainedConfig):
    """``decay_low_rank_dim``, ``a_low_rank_dim``, ``v_low_rank_dim`` and ``gate_low_rank_dim`` are the ranks of the pairs
    of matrices that give a token its decay, rate, share of the first layer's values and gate; the heads' norm has the
    epsilon head_dim * norm_eps. Keys that choose kernels of flash-linear-attention mean nothing here."""

    model_type = "rwkv7"

    def __init__(
        self,
        vocab_size: int = 65536,
        hidden_size: int = 2048,
        num_hidden_layers: int = 24,
        attention_hidden_size: int | None = None,
        intermediate_size: int | None = None,
        head_dim: int = 64,
        decay_low_rank_dim: int = 64,
        a_low_rank_dim: int = 64,
        v_low_rank_dim: int = 32,
        gate_low_rank_dim: int = 128,
        norm_eps: float = 1e-5,
        max_position_embeddings: int = 4096,
        use_cache: bool = True,
        bos_token_id: int | None = 0,
        eos_token_id: int | list[int] | None = 0,
        pad_token_id: int | None = 0,
        tie_word_embeddings: bool = False,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.attention_hidden_size = attention_hidden_size or hidden_size
        self.intermediate_size = intermediate_size or 4 * hidden_size
        self.head_dim = head_dim
        self.decay_low_rank_dim = decay_low_rank_dim
        self.a_low_rank_dim = a_low_rank_dim
        self.v_low_rank_dim = v_low_rank_dim
        self.gate_low_rank_dim = gate_low_rank_dim
        self.norm_eps = norm_eps
        self.max_position_embeddings = max_position_embeddings
        self.use_cache = use_cache
        super().__init__(
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )
