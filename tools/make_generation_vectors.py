"""Write tests/engine/generation_vectors.json: what an implementation of docs/generation.md must give."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rwkv_mlc.engine.sampler import Sampler, SamplingParams, SplitMix64
from rwkv_mlc.engine.stream import TextStream
from rwkv_mlc.engine.templates import load_template
from rwkv_mlc.engine.thoughts import Thought, ThoughtStream

VECTORS = ROOT / "tests" / "engine" / "generation_vectors.json"

RANDOM_SEEDS = [0, 1, 1234567, 2**64 - 1]

# Logits of a small vocabulary, exact in float32; ids 2 and 3, as well as 5 and 6, are tied.
LOGITS = [1.5, -0.25, 3.0, 3.0, 0.0, 2.25, 2.25, -4.0, 0.75, 2.875, -1.0, 1.0]

SAMPLING = [
    {"params": {"temperature": 0.0}},
    {"params": {"temperature": 0.0}, "padding": [2, 11]},
    {"params": {"temperature": 0.0, "presence_penalty": 0.5, "frequency_penalty": 0.25, "penalty_decay": 0.75}},
    {"params": {"temperature": 0.0, "repetition_penalty": 1.25, "presence_penalty": 0.125, "penalty_decay": 1.0}},
    {"params": {"temperature": 1.0, "top_p": 1.0, "seed": 0}},
    {"params": {"temperature": 1.0, "top_p": 1.0, "seed": 0}, "padding": [0, 2, 5]},
    {"params": {"temperature": 1.0, "top_p": 0.85, "seed": 42}},
    {"params": {"temperature": 1.0, "top_p": 0.0, "seed": 42}},
    {"params": {"temperature": 0.5, "top_p": 0.6, "seed": 7}},
    {"params": {"temperature": 2.0, "top_p": 1.0, "top_k": 3, "seed": 8}},
    {"params": {"temperature": 1.0, "top_p": 0.5, "top_k": 5, "seed": 9}},
    {"params": {"temperature": 1.0, "top_p": 1.0, "top_k": 1, "seed": 10}},
    {
        "params": {
            "temperature": 1.0,
            "top_p": 0.9,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.5,
            "penalty_decay": 0.996,
            "seed": 11,
        }
    },
    {"params": {"temperature": 1.25, "top_p": 0.95, "repetition_penalty": 1.5, "penalty_decay": 0.5, "seed": 12}},
]
LARGE = [
    {"params": {"temperature": 1.0, "top_p": 0.85, "seed": 3}},
    {"params": {"temperature": 1.0, "top_p": 1.0, "seed": 4}},
    {"params": {"temperature": 0.75, "top_p": 0.5, "top_k": 100, "frequency_penalty": 1.0, "seed": 5}},
]

STREAMS = [
    {"stop": ["\n\n"], "chunks": [" Hello", "\n", "\n", "User"]},
    {"stop": ["\n\n"], "chunks": [" one\n", "two\n", "\nthree"]},
    {"stop": ["\n\n"], "chunks": [" no stop\n"]},
    {"stop": ["\n\n", "User:"], "chunks": [" a", "\nUs", "ed", "\nUser", ":", " b"]},
    {"stop": ["abcd", "c"], "chunks": ["xab", "cd"]},
    {"stop": ["b", "xab"], "chunks": ["yx", "a", "b"]},
    {"stop": ["aab"], "chunks": ["a", "a", "a", "a", "b", "c"]},
    {"stop": ["。\n"], "chunks": [b"\xe5\xa5\xbd", b"\xe3\x80", b"\x82", b"\n"]},
    {"stop": [], "chunks": [b"\xf0\x9f", b"\xa4", b"\x97", b"!"]},
    {"stop": [], "chunks": [b"ok \xff", b"\xf0\x9f", b"a\xc3", b""]},
    {"stop": ["\n\n"], "chunks": [b"cut \xe4\xb8", b"\n\nrest"]},
]

# Pieces are [whether it is a thought, text].
THOUGHTS = [
    {"opening": " <think", "chunks": [">", "\n", "Well", " ...", "\n", "</", "think", ">", "\n\n", "Yes", ".\n"]},
    {"opening": " <think", "chunks": [">\nA.\n\nB </thin\n</think>C</think>D"]},
    {"opening": " <think", "chunks": [">\nCut off </th"]},
    {"opening": " <think", "chunks": [">\n \n"]},
    {"opening": " <think", "chunks": []},
    {"opening": " <think", "chunks": ["ers are ", "many"]},
    {"opening": " <think></think", "chunks": [">", "\n", "Yes", "</think>"]},
    {"opening": " <think>\n</think", "chunks": [">Yes"]},
    {"opening": "", "chunks": [" ", "<", "think>a</think> b"]},
    {"opening": "", "chunks": [" <th"]},
    {"opening": "", "chunks": [" Hi <think>"]},
]

USER_TEXTS = ["Hello", "  two words \n", "a\r\n\r\nb\n\n\nc", "a\n \t\nb\rc", "", "好。\n\n  indented"]

# The answer's bytes, and those the state has read.
ANSWERS = [" Hi.", " Hi.\n", " Hi.\n\n", " Hi.\n\n\n", " Hi. ", "\n", "", "好", b" \xe5\xa5"]


def uniforms(seed: int, count: int) -> list[float]:
    random = SplitMix64(seed)
    return [random.uniform() for _ in range(count)]


def large_logits(vocab_size: int, seed: int, scale: float) -> np.ndarray:
    """float32 [vocab_size]: scale * (2 u - 1) for the uniforms u of the seed, in float64 and rounded once."""
    return (scale * (2 * np.array(uniforms(seed, vocab_size)) - 1)).astype(np.float32)


def sampling(case: dict, logits: np.ndarray, steps: int) -> list[int]:
    valid = np.ones(len(logits), dtype=bool)
    valid[case.get("padding", [])] = False
    sampler = Sampler(SamplingParams(**case["params"]), valid)
    return [sampler.sample(logits) for _ in range(steps)]


def stream(case: dict) -> dict:
    chunks = [as_bytes(chunk) for chunk in case["chunks"]]
    text = TextStream(case["stop"])
    pushed = [text.push(chunk) for chunk in chunks]
    return {
        "stop": case["stop"],
        "chunks": [chunk.hex() for chunk in chunks],
        "pushed": pushed,
        "finished": text.finish(),
        "stopped": text.stopped,
        "released": text.released.hex(),
    }


def template(name: str) -> dict:
    loaded = load_template(name)
    answers = [as_bytes(answer) for answer in ANSWERS]
    modes = loaded.think.modes if loaded.think else {}
    thinking = {
        "think": {mode: loaded.user_turn("Hello", loaded.think_mode(mode)) for mode in modes},
        "told": [{"answer": text, "feed": loaded.told(text).hex()} for text in ("", "Hi.", "Hi.\n", "a\n\nb")],
    }
    return {
        "name": name,
        "system_prompt": loaded.system_prompt(),
        "user_turns": [{"text": text, "turn": loaded.user_turn(text)} for text in USER_TEXTS],
        "after_answer": [{"answer": answer.hex(), "feed": loaded.after_answer(answer).hex()} for answer in answers],
        **(thinking if modes else {}),
        **({"tools": loaded.system_prompt([{"name": "f"}])} if loaded.tool_use else {}),
    }


def thoughts(case: dict) -> dict:
    tags = load_template("rwkv_g1").think
    stream = ThoughtStream(tags, case["opening"])
    pushed = [[[type(piece) is Thought, piece] for piece in stream.push(chunk)] for chunk in case["chunks"]]
    return {**case, "pushed": pushed, "finished": [[type(piece) is Thought, piece] for piece in stream.finish()]}


def as_bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8") if isinstance(text, str) else text


def vectors() -> dict:
    large = {"vocab_size": 65536, "seed": 99, "scale": 12.0}
    generated = large_logits(**large)
    randoms = [SplitMix64(seed) for seed in RANDOM_SEEDS]
    return {
        "random": [
            {"seed": str(seed), "next": [str(random.next()) for _ in range(5)], "uniform": uniforms(seed, 5)}
            for seed, random in zip(RANDOM_SEEDS, randoms, strict=True)
        ],
        "sampling": [
            {"logits": LOGITS, **case, "tokens": sampling(case, np.array(LOGITS, np.float32), 24)} for case in SAMPLING
        ],
        "sampling_large": [{"logits": large, **case, "tokens": sampling(case, generated, 24)} for case in LARGE],
        "stream": [stream(case) for case in STREAMS],
        "thoughts": [thoughts(case) for case in THOUGHTS],
        "templates": [template(name) for name in ("rwkv_world", "rwkv_raven", "plain", "rwkv_world_v3", "rwkv_g1")],
    }


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"Wrote {VECTORS}")
