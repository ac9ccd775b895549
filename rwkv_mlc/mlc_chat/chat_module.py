"""``ChatModule``: mlc_chat's model that answers prompts."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable
from contextlib import closing
from typing import Any, NoReturn, Protocol

from ..artifact import CHAT_CONFIG, PARAMS
from ..engine.chat import Chat
from ..engine.engine import Engine
from ..engine.sampler import SamplingParams
from ..engine.sequence import Sequence
from ..engine.stats import Stats
from ..engine.templates import Template, load_template
from ..engine.thoughts import Thought
from ..errors import UserError
from ..escaping import quoted
from .configs import ChatConfig, ConvConfig, GenerationConfig, checked
from .conversation import overridden
from .interface.openai_api import ChatMessage
from .search import device_for_library, find_model

__all__ = ["ChatConfig", "ChatModule", "ConvConfig", "GenerationConfig"]


class Callback(Protocol):
    """What a ``progress_callback`` has; those of ``callback`` are some."""

    callback_interval: int

    def __call__(self, message: str = "", stopped: bool = False) -> None: ...


class ChatModule:
    """A model that answers prompts, each in a conversation of its own.

    ``chat_config`` are the settings in force; ``engine`` is the ``Engine`` that does the work."""

    def __init__(
        self,
        model: str,
        device: str = "auto",
        chat_config: ChatConfig | None = None,
        model_lib_path: str | None = None,
    ):
        """Load ``model``, a name such as "rwkv-7-village-q4f16_1" or a folder, from where ``search.find_model`` finds
        it. ``device`` is as for ``Engine``; ``model_lib_path`` is one of the artifact's libraries, where not the
        device's.

        Raises ``search.NotFound``, a UserError and a FileNotFoundError, where there is no such model or library, and
        UserError for what ``Engine`` refuses and for settings that mean nothing."""
        folder = find_model(model)
        self.engine = Engine(folder, device_for_library(folder, device, model_lib_path))
        self.model_path = str(self.engine.artifact.path / PARAMS)
        self.config_file_path = str(self.engine.artifact.path / PARAMS / CHAT_CONFIG)
        self.model_lib_path = str(self.engine.library.path)
        self._template = self.engine.template
        self._configure(chat_config or ChatConfig())

    def generate(
        self,
        prompt: str | list[ChatMessage],
        generation_config: GenerationConfig | None = None,
        progress_callback: Callback | None = None,
    ) -> str | list[str]:
        """The answer to a prompt, or to the last of the messages of a conversation, which begins with the user's and
        goes from one to the other; a list of answers where ``generation_config.n`` is given.

        The conversation is forgotten before and afterwards, as in mlc_chat. ``progress_callback(message)`` is called
        with what is certain of the answer, every ``callback_interval`` pieces of text, and
        ``progress_callback(stopped=True)`` when it has ended, be it by an exception. Raises UserError for messages and
        settings that mean nothing."""
        config = None
        if generation_config is not None:
            config = checked(generation_config, GenerationConfig, "generation_config")
        params, (earlier, text) = self._params(config), self._turns(prompt)
        count = config.n if config and config.n else 1
        answers = [self._answer(earlier, text, params, progress_callback) for _ in range(count)]
        return answers if config and config.n else answers[0]

    def reset_chat(self, chat_config: ChatConfig | None = None) -> None:
        """Forget the conversation and the speeds; with ``chat_config``, go on with the artifact's settings and these
        over them."""
        if chat_config is not None:
            self._configure(chat_config)
        self.engine.stats = Stats()

    def stats(self, verbose: bool = False) -> str:
        """How fast prompts were read and answers written since the last ``reset_chat``, which ``generate`` begins
        with."""
        stats = self.engine.stats
        if not verbose:
            return str(stats)
        return (
            f"----------- prefill -----------\nthroughput: {stats.prefill_rate:.1f} tok/s\n"
            f"total tokens: {stats.prefill_tokens} tok\ntotal time: {stats.prefill_seconds:.1f} s\n"
            f"------------ decode ------------\nthroughput: {stats.decode_rate:.1f} tok/s\n"
            f"total tokens: {stats.decode_tokens} tok\ntotal time: {stats.decode_seconds:.1f} s\n"
        )

    def benchmark_generate(self, prompt: str, generate_length: int) -> str:
        """The text of exactly ``generate_length`` tokens after a prompt without a template, whatever would end an
        answer; the prompt was read and a token written once before, and ``stats`` tells of what came after that.

        Raises UserError for a length below 1."""
        if not isinstance(generate_length, int) or generate_length < 1:
            raise UserError(f"generate_length must be a number of tokens of at least 1, not {quoted(generate_length)}.")
        self._write(prompt, 2)
        return self._write(prompt, generate_length)

    def embed_text(self, input: str) -> NoReturn:
        """Raises UserError: mlc_chat gave the embedding's rows of models that were built with --sep-embed, which were
        Llamas."""
        raise UserError(
            "embed_text is not there: libraries of RWKV have no function that embeds alone. What the model makes of a text "
            "is its state, which Engine.prefill(tokens, state) leaves in state."
        )

    def _configure(self, changes: ChatConfig) -> None:
        """Take the artifact's settings with changes. Raises UserError, and changes nothing, for what means nothing."""
        settings = self.engine.artifact.chat_config
        names = [field.name for field in dataclasses.fields(ChatConfig) if field.name not in _TEMPLATE]
        own = ChatConfig(**{name: getattr(settings, name) for name in names})
        own.conv_template, own.tokenizer_files = self._template.name, list(settings.tokenizer_files)
        given = checked(changes, ChatConfig, "chat_config")
        if given.model_lib not in (None, own.model_lib):
            warnings.warn("model_lib of a ChatConfig is ignored; give ChatModule a model_lib_path.", stacklevel=3)
        given.model_lib = None
        if given.tokenizer_files not in (None, own.tokenizer_files):
            raise UserError(
                "chat_config.tokenizer_files must be the artifact's; build it with --tokenizer for another."
            )
        values = {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
        config = dataclasses.replace(own, **{name: value for name, value in values.items() if value is not None})
        template = self._template_of(config)
        self._sampling(config)
        self.chat_config, self.engine.template = config, template

    def _template_of(self, config: ChatConfig) -> Template:
        own = config.conv_template in (None, self._template.name)
        template = self._template if own or config.conv_template is None else load_template(config.conv_template)
        template = overridden(template, config.conv_config) if config.conv_config else template
        size = self.engine.config.vocab_size
        if foreign := [token for token in template.stop_token_ids if token >= size]:
            raise UserError(f"conv_config.stop_tokens has {foreign[0]}, but the model has {size} tokens; correct it.")
        return template

    def _sampling(self, config: ChatConfig) -> SamplingParams:
        """The artifact's settings with those of a ``ChatConfig``: a penalty for repetition goes before the artifact's
        for presence and frequency, which mlc_chat does not know. Raises UserError for a value outside its range."""
        values = {name: getattr(config, name) for name in ("temperature", "top_p", "repetition_penalty")}
        values["max_tokens"] = config.max_gen_len
        if config.repetition_penalty not in (None, 1):
            values |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}
        return self.engine.chat_params(**{name: value for name, value in values.items() if value is not None})

    def _params(self, config: GenerationConfig | None) -> SamplingParams:
        """What an answer is written with: counts do not shrink where a ``GenerationConfig`` gives the penalties, as it
        says."""
        params = self._sampling(checked(self.chat_config, ChatConfig, "chat_config"))
        if config is None:
            return params
        given: dict[str, Any] = {"temperature": config.temperature, "top_p": config.top_p}
        given |= {"max_tokens": config.max_gen_len, "repetition_penalty": config.repetition_penalty}
        given |= {
            "presence_penalty": config.presence_penalty or 0.0,
            "frequency_penalty": config.frequency_penalty or 0.0,
        }
        given |= {"penalty_decay": 1.0}
        if given["presence_penalty"] or given["frequency_penalty"]:
            given["repetition_penalty"] = 1.0
        stop = [config.stop] if isinstance(config.stop, str) else config.stop or []
        given["stop"] = tuple(dict.fromkeys((*params.stop, *stop)))
        return dataclasses.replace(params, **{name: value for name, value in given.items() if value is not None})

    def _turns(self, prompt: str | list[ChatMessage]) -> tuple[bytes, str]:
        """What a conversation has before the last message, as it is read, and that message."""
        if isinstance(prompt, str):
            return b"", prompt
        if not isinstance(prompt, list) or not all(isinstance(message, ChatMessage) for message in prompt):
            raise UserError(f"The prompt must be a text or a list of ChatMessage, not {quoted(prompt)}.")
        roles = [message.role for message in prompt]
        if len(roles) % 2 == 0 or roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
            raise UserError(
                f"The roles of the messages must be user, assistant, user and so on, and user in the end, not {quoted(roles)}."
            )
        template = self.engine.template
        earlier = (
            template.user_turn(asked.content).encode() + template.told(told.content)
            for asked, told in zip(prompt[:-1:2], prompt[1::2], strict=True)
        )
        return b"".join(earlier), prompt[-1].content

    def _answer(self, earlier: bytes, text: str, params: SamplingParams, callback: Callback | None) -> str:
        self.reset_chat()
        chat = Chat(self.engine, params)
        if earlier:
            self.engine.prefill(self.engine.tokenizer.encode(earlier), chat.state)
        message = ""
        try:
            with closing(chat.send(text)) as pieces:
                for number, piece in enumerate(_spoken(pieces)):
                    message += piece
                    if callback and number % callback.callback_interval == 0:
                        callback(_shown(message))
            if callback:
                callback(_shown(message))
        finally:
            if callback:
                callback(stopped=True)
        return _shown(message)

    def _write(self, prompt: str, length: int) -> str:
        """The text of so many tokens after a prompt."""
        self.reset_chat()
        engine, params = self.engine, dataclasses.replace(self._params(None), max_tokens=length, stop=())
        ids = engine.encode(prompt)
        answer = Sequence(ids, params, engine.tokenizer, engine.valid_ids, end_ids=frozenset(), keeps=False)
        scheduler = engine.alone(answer, engine.new_state())
        while answer.finish_reason is None:
            scheduler.step()
        return answer.text


_TEMPLATE = ("conv_template", "conv_config", "tokenizer_files")


def _spoken(pieces: Iterable[str]) -> Iterable[str]:
    """Without the thoughts, which mlc_chat does not know."""
    return (piece for piece in pieces if not isinstance(piece, Thought))


def _shown(message: str) -> str:
    """As mlc_chat shows it: without spaces before it and line ends after it."""
    return message.lstrip(" ").rstrip("\n")
