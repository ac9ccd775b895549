"""``eval``: how good a model is, and what a scheme, a target or another runner costs it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..escaping import escaped
from . import arguments
from .arguments import integer, integers, named_path, path_or_name
from .faults import say
from .progress import counted
from .tables import Table, console

if TYPE_CHECKING:
    from ..evaluation.comparison import Answers, Bucket
    from ..evaluation.metric import Figure
    from ..evaluation.result import Result
    from ..evaluation.scorer import Scorer

RUNNERS = ("reference", "rwkv", "transformers")
MOST_TOKENS = 1 << 24
MOST_PAIRS = 1 << 14
Tell = Callable[[int, int], None]


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("eval", help="measure how good a model is, and what a scheme costs it")
    tasks = parser.add_subparsers(metavar="task", required=True)
    parser.commands = tasks.choices

    task = tasks.add_parser("lambada", help="perplexity and accuracy of the last words of passages")
    _add_models(task)
    task.add_argument(
        "--data",
        type=named_path,
        required=True,
        metavar="FILE",
        help='lines of {"text": ...}, such as lambada_test.jsonl',
    )
    task.add_argument("--limit", type=integer(1), metavar="N", help="the first N documents")
    task.set_defaults(run=run_lambada)

    task = tasks.add_parser("perplexity", help="perplexity of a text, per token, in windows")
    _add_models(task)
    _add_text(task)
    task.add_argument(
        "--stride",
        type=integer(1, MOST_TOKENS),
        metavar="N",
        help="tokens between two windows; of a window the others are context (half of --ctx)",
    )
    task.set_defaults(run=run_perplexity)

    task = tasks.add_parser("compare", help="what B loses against A, by position, and in greedy answers")
    task.add_argument("a", metavar="A", type=path_or_name, help="artifact or checkpoint that is right")
    task.add_argument("b", metavar="B", type=path_or_name, help="the other, of the same vocabulary")
    _add_runner(task)
    _add_text(task)
    task.add_argument(
        "--questions",
        type=named_path,
        metavar="FILE",
        help="questions for greedy answers, one a line (sixteen of our own)",
    )
    task.add_argument(
        "--answer-tokens",
        type=integer(0, MOST_TOKENS),
        default=64,
        metavar="N",
        help="longest answer (64); 0 asks nothing",
    )
    task.set_defaults(run=run_compare)

    task = tasks.add_parser("recall", help="pairs that a state remembers, by how many came after them")
    _add_models(task)
    task.add_argument(
        "--distances",
        type=integers("numbers of pairs", 1, MOST_PAIRS),
        metavar="1,2,4",
        help="pairs back to the one that is asked for (1,2,4,8,16,32,64)",
    )
    task.add_argument("--trials", type=integer(1, MOST_PAIRS), default=32, metavar="N", help="of each distance (32)")
    task.set_defaults(run=run_recall)

    task = tasks.add_parser("reverse", help="strings of digits that the ruler reverses without a mistake")
    _add_models(task)
    task.add_argument("--limit", type=integer(1, MOST_TOKENS), default=500, metavar="N", help="strings (500)")
    task.set_defaults(run=run_reverse)


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        nargs="+",
        metavar="DIST|CHECKPOINT",
        type=path_or_name,
        help="artifact folders, whose libraries are code, which runs with your rights, or checkpoints; the others are "
        "measured against the first",
    )
    _add_runner(parser)


def _add_runner(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--with",
        dest="runner",
        choices=RUNNERS,
        help="what runs a checkpoint: our float64 reference (which runs artifacts too), the rwkv package, or transformers "
        "(reference for checkpoints)",
    )
    parser.add_argument("--tokenizer", type=named_path, metavar="PATH", help="a checkpoint's vocabulary")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="let transformers run the Python code in a checkpoint's folder"
    )
    parser.add_argument("--device", default="auto", help="where artifacts run (auto)")
    parser.add_argument(
        "--threads", type=arguments.integer(1, 256), metavar="N", help="threads of an artifact's kernels on a CPU"
    )
    parser.add_argument("--seed", type=integer(), default=0, metavar="N", help="of the intervals' random numbers (0)")
    parser.add_argument("--json", type=named_path, metavar="FILE", help="write the figures as JSON")


def _add_text(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text",
        type=named_path,
        metavar="FILE",
        help="UTF-8 (three pages of our own in eleven languages, code and tables)",
    )
    parser.add_argument(
        "--ctx", type=integer(2, MOST_TOKENS), default=1024, metavar="N", help="tokens of a window (1024)"
    )


def run_lambada(args: argparse.Namespace) -> int:
    from ..evaluation.lambada import EVERY, lambada, read_documents

    documents = read_documents(args.data, args.limit)

    def measure(scorer: Scorer, tell: Tell) -> Result:
        def told(read: int, perplexity: float, accuracy: float) -> None:
            tell(read, len(documents))
            if read % EVERY == 0:
                say(f"{read} ppl {perplexity:.2f} acc {100 * accuracy:.2f}")

        return lambada(scorer, documents, told)

    return _run(args, "lambada", {"data": str(args.data), "limit": args.limit}, measure)


def run_perplexity(args: argparse.Namespace) -> int:
    from ..errors import UserError
    from ..evaluation.perplexity import perplexity
    from ..evaluation.text import DEFAULT_TEXT, read_text

    path = args.text or DEFAULT_TEXT
    text, stride = read_text(path), args.stride or args.ctx // 2
    if stride > args.ctx:
        raise UserError(f"--stride must be between 1 and --ctx, {args.ctx}, not {stride}.")
    settings = {"text": path.name, "bytes": len(text), "ctx": args.ctx, "stride": stride}
    return _run(args, "perplexity", settings, lambda scorer, tell: perplexity(scorer, text, args.ctx, stride, tell))


def run_recall(args: argparse.Namespace) -> int:
    from ..evaluation.recall import DISTANCES, recall

    distances = args.distances or DISTANCES
    settings = {"distances": list(distances), "trials": args.trials}
    return _run(args, "recall", settings, lambda scorer, tell: recall(scorer, distances, args.trials, tell))


def run_reverse(args: argparse.Namespace) -> int:
    from ..evaluation.reversal import measured
    from ..evaluation.reverse import reverse

    strings = measured(args.limit)
    return _run(args, "reverse", {"strings": len(strings)}, lambda scorer, tell: reverse(scorer, strings, tell))


def _run(
    args: argparse.Namespace, task: str, settings: dict[str, Any], measure: Callable[[Scorer, Tell], Result]
) -> int:
    """Measure one model after the other; of one that is done nothing but its figures is kept."""
    from ..artifact import write_json
    from ..artifact.disk import check_output

    if args.json:
        check_output(args.json)
    results: list[Result] = []
    for path in args.models:
        scorer = _open(args, path)
        with counted(f"{task}, {scorer.name}") as tell:
            results.append(measure(scorer, tell))
        del scorer
    base = results[0] if len(results) > 1 else None
    if args.json:
        models = [result.to_dict(base if result is not base else None, args.seed) for result in results]
        write_json(args.json, {"task": task, **settings, "seed": args.seed, "results": models})
    _print(results, args.seed)
    return 0


def _open(args: argparse.Namespace, path: str) -> Scorer:
    from ..engine.devices import check_name
    from ..evaluation.opening import open_scorer

    check_name(args.device)
    return open_scorer(
        path,
        args.runner,
        device=args.device,
        threads=args.threads,
        vocabulary=args.tokenizer,
        trust_remote_code=args.trust_remote_code,
    )


def _print(results: Sequence[Result], seed: int) -> None:
    base = results[0]
    counts = ", ".join(f"{count:,} {what}" for what, count in base.counts.items())
    out = console()
    out.print(f"{counts}; in brackets 95 % intervals of {'paired ' * (len(results) > 1)}bootstraps")
    heads = ("model", "bits", "", "found", "")
    table = Table(*heads, *(("against the first", "") if len(results) > 1 else ()))
    for result in results:
        against = result.against(base, seed) if result is not base else {}
        for name, figure in result.figures(seed).items():
            kind = result.metrics[name].kind
            cells = [_name(result.scorer), _bits(result.scorer), name, *_figure(kind, figure)]
            if len(results) > 1:
                cells += _difference(kind, against[name]) if name in against else ["", ""]
            table.add_row(*cells)
    out.print(table)


def _name(scorer: Scorer) -> str:
    return escaped(scorer.name) + (
        "" if scorer.quantization and scorer.runner != "reference" else f" ({scorer.runner})"
    )


def _bits(scorer: Scorer) -> str:
    return "" if scorer.bits_per_weight is None else f"{scorer.bits_per_weight:.2f}"


def _figure(kind: str, figure: Figure) -> list[str]:
    form = (lambda x: f"{100 * x:.1f} %") if kind == "share" else _digits
    return [form(figure.value), f"[{form(figure.low)}, {form(figure.high)}]"]


def _difference(kind: str, figure: Figure) -> list[str]:
    if kind == "perplexity":
        return [f"x {figure.value:.5f}", f"[{figure.low:.5f}, {figure.high:.5f}]"]
    form = (lambda x: f"{100 * x:+.1f} pts") if kind == "share" else (lambda x: f"{x:+.4f}")
    return [form(figure.value), f"[{form(figure.low)}, {form(figure.high)}]"]


def _digits(value: float) -> str:
    return f"{value:.4f}" if value < 1e6 else f"{value:.3g}"


def run_compare(args: argparse.Namespace) -> int:
    from ..artifact import write_json
    from ..artifact.disk import check_output
    from ..evaluation.comparison import compare, compare_answers
    from ..evaluation.text import DEFAULT_QUESTIONS, DEFAULT_TEXT, read_questions, read_text

    if args.json:
        check_output(args.json)
    path = args.text or DEFAULT_TEXT
    text = read_text(path)
    questions = read_questions(args.questions or DEFAULT_QUESTIONS) if args.answer_tokens else []
    a = _open(args, args.a)
    b = a if args.a == args.b else _open(args, args.b)
    with counted(f"compare, {a.name} and {b.name}") as tell:
        buckets = compare(a, b, text, args.ctx, tell)
    answers = compare_answers(a, b, questions, args.answer_tokens) if questions else None
    if args.json:
        data = {
            "task": "compare",
            "text": path.name,
            "ctx": args.ctx,
            "seed": args.seed,
            "a": a.to_dict(),
            "b": b.to_dict(),
        }
        data["buckets"] = [bucket.to_dict(args.seed) for bucket in buckets]
        if answers:
            data["answers"] = {"questions": len(questions), "most_tokens": args.answer_tokens} | answers.to_dict(
                args.seed
            )
        write_json(args.json, data)
    _print_buckets(a, b, buckets, args.seed)
    if answers:
        _print_answers(answers, len(questions), args.answer_tokens, args.seed)
    return 0


def _print_buckets(a: Scorer, b: Scorer, buckets: Sequence[Bucket], seed: int) -> None:
    out = console()
    out.print(f"A: {_name(a)}\nB: {_name(b)}")
    heads = ("KL(A || B)", "", "same likeliest", "", "perplexity A", "B", "B / A", "")
    table = Table("tokens read before", "tokens", *heads)
    for bucket in buckets:
        ratio = bucket.perplexity_b.against(bucket.perplexity_a, seed)
        kl = bucket.kl.figure(seed)
        table.add_row(
            f"{bucket.first} to {bucket.last}",
            f"{bucket.tokens:,}",
            *(f"{kl.value:.2e}", f"[{kl.low:.1e}, {kl.high:.1e}]"),
            *_figure("share", bucket.agreement.figure(seed)),
            *(_digits(perplexity.figure(seed).value) for perplexity in (bucket.perplexity_a, bucket.perplexity_b)),
            *_difference("perplexity", ratio),
        )
    out.print(table)


def _print_answers(answers: Answers, questions: int, most: int, seed: int) -> None:
    table = Table("greedy answers", "A", "B", "B - A", "")
    pairs = (("ended by themselves", answers.ended_a, answers.ended_b), ("tokens", answers.length_a, answers.length_b))
    for what, of_a, of_b in pairs:
        values = (_figure(of.kind, of.figure(seed))[0] for of in (of_a, of_b))
        table.add_row(what, *values, *_difference(of_a.kind, of_b.against(of_a, seed)))
    out = console()
    out.print(table)
    same, shared = answers.same.figure(seed), answers.shared.figure(seed)
    out.print(
        f"{questions} questions, answers of at most {most} tokens: {same.value:.1%} are the same, and {shared.value:.1f} "
        "tokens come before the first that differs."
    )
