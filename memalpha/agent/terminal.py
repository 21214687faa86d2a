"""The command line of the agent.

python -m memalpha.agent chat

This uses the writer that the package brings, memalpha-smollm2, which fetches its base model (98 MB)
at its first use and then works offline. A writer of your own:

python -m memalpha.agent observe --checkpoint=runs/tiny --store=me.db "Rex is the dog of Ana."
python -m memalpha.agent ask --checkpoint=runs/tiny --store=me.db "Whose dog is Rex?"
python -m memalpha.agent chat --checkpoint=runs/tiny --store=me.db
python -m memalpha.agent show --store=me.db
python -m memalpha.agent serve --checkpoint=runs/tiny --store=me.db

A pretrained chat model can write and answer, in this process: a folder, a GGUF file, a hub id, or
smollm2, which is fetched at its first use. The same model for both is loaded once:

python -m memalpha.agent chat --checkpoint=smollm2 --reader=smollm2 --store=me.db

A chat model on an OpenAI-compatible server can write in place of the trained model, and then also
answers. If it needs a key, the key is read from the environment variable OPENAI_API_KEY:

python -m memalpha.agent chat --writer-url=http://127.0.0.1:8000/v1 --writer-model=NAME --store=m.db
"""

import argparse
import os
import sys
from collections.abc import Sequence

from absl import logging

from memalpha.agent.events import Event, StoreError
from memalpha.agent.loading import let_answer, open_agent, prompted_agent
from memalpha.agent.memory_agent import CLOSEST, MemoryAgent
from memalpha.agent.store import Store
from memalpha.agent.writers import load_model
from memalpha.compilation_cache import keep_compiled
from memalpha.lm.roles import prompted_environment
from memalpha.lm.server import ServerModel
from memalpha.memory import MEMORY_NAMES, Entry
from memalpha.paths import user_path
from memalpha.prompts import escape
from memalpha.tokenizer import load_tokenizer

DEFAULT_WRITER = "memalpha-smollm2"
HELP = "lines starting with / are commands: /memory /history /undo /quit"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace")):
        if hasattr(stream, "reconfigure"):  # not where it is replaced, as in a notebook
            stream.reconfigure(errors=errors)  # bytes that are no text must not end a conversation
    logging.set_verbosity(logging.ERROR)  # Orbax logs every file of a checkpoint
    try:
        options.store = options.store or default_store()
        options.run(options)
    except (ValueError, RuntimeError, OSError) as error:
        # Some errors of libraries have many lines.
        sys.exit(f"{type(error).__name__}: {printable(' '.join(str(error).split()))}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; what was committed is in the store")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m memalpha.agent", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, run, about in (
        ("chat", chat, "talk to the agent; it remembers"),
        ("observe", observe, "let the writer read a text"),
        ("ask", ask, "ask the memory one question"),
        ("show", show, "print a memory"),
        ("serve", serve, "OpenAI-compatible HTTP server"),
    ):
        command = commands.add_parser(name, help=about)
        command.set_defaults(run=run)
        command.add_argument(
            "--store",
            help="file of the memories (default: ~/.local/share/memalpha/memory.db)",
        )
        if name != "show":
            _add_models(command)
        if name != "serve":
            command.add_argument("--namespace", default="default", help="whose memory")
        if name == "observe":
            command.add_argument("text", help="the text; - reads standard input")
            command.add_argument("--timestamp", help="when it was said; default: now")
        if name == "ask":
            command.add_argument("question")
        if name == "show":
            command.add_argument("--history", action="store_true", help="also who wrote what")
        if name == "serve":
            command.add_argument("--host", default="127.0.0.1", help="default: this machine alone")
            command.add_argument("--port", type=int, default=8383)
    return parser


def _add_models(command: argparse.ArgumentParser) -> None:
    writer = command.add_mutually_exclusive_group()
    writer.add_argument(
        "--checkpoint",
        default=DEFAULT_WRITER,
        help="workdir of a finished run, folder of adapters, model folder, GGUF file, hub id or"
        " smollm2 (default: %(default)s)",
    )
    writer.add_argument("--writer-model", help="prompted model on a server, in its place")
    command.add_argument("--writer-url", help="of that server, such as http://127.0.0.1:8000/v1")
    reader = command.add_mutually_exclusive_group()
    reader.add_argument(
        "--reader", help="model folder, GGUF file, hub id or smollm2 that answers, in this process"
    )
    reader.add_argument(
        "--reader-model",
        help="model on a server that answers; default: the writer model, else none",
    )
    command.add_argument("--reader-url", help="of that server; default: that of the writer")
    command.add_argument(
        "--tokenizer", help="folder or hub id of the writer model's; default: bytes are counted"
    )


def default_store() -> str:
    """`$XDG_DATA_HOME/memalpha/memory.db`, else below `~/.local/share`; its folder is created."""
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    folder = user_path(data) / "memalpha"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / "memory.db")


def printable(text: str) -> str:
    """Text that cannot control a terminal: control characters are made visible."""
    return escape(text)


def _agent(options: argparse.Namespace, namespace: str = "default") -> MemoryAgent:
    if options.reader_url and not (options.reader_model or options.writer_model):
        raise ValueError(f"--reader-url={options.reader_url}: name its model with --reader-model")
    if options.writer_url and not (options.reader_model or options.writer_model):
        raise ValueError(f"--writer-url={options.writer_url}: name its model with --writer-model")
    keep_compiled()
    writer = _server(options.writer_model, options.writer_url, "--writer")
    answers = _server(options.reader_model, options.reader_url or options.writer_url, "--reader")
    if writer is None:
        agent = open_agent(options.checkpoint, options.store, namespace, options.reader)
    else:
        env = prompted_environment(options.tokenizer and load_tokenizer(options.tokenizer))
        agent = prompted_agent(writer, env, options.store, namespace)
        answers = load_model(options.reader) if options.reader else answers or writer
    if answers:
        let_answer(agent, answers)
    return agent


def _server(model: str | None, url: str | None, flag: str) -> ServerModel | None:
    if model and not url:
        raise ValueError(f"{flag}-model={model}: name its server with {flag}-url")
    return ServerModel(url, model) if model else None


def _existing(path: str) -> Store:
    path = user_path(path)
    if not path.is_file():
        raise StoreError(f"no store at {path}; `observe` and `chat` create one")
    return Store(path)


def chat(options: argparse.Namespace) -> None:
    agent = _agent(options, options.namespace)
    print(HELP)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        try:
            print(_converse(agent, line))
        except (ValueError, RuntimeError) as error:
            print(printable(str(error)))


def _converse(agent: MemoryAgent, line: str) -> str:
    if line == "/memory":
        return _contents(agent.store, agent.namespace)
    if line == "/history":
        return _events(agent.store, agent.namespace)
    if line == "/undo":
        event = agent.memory.undo()
        return "nothing to undo" if event is None else f"took back event {event.undoes}"
    if line.startswith("/"):
        return HELP
    return printable(agent.chat(line).text) if line else HELP


def observe(options: argparse.Namespace) -> None:
    text = sys.stdin.read() if options.text == "-" else options.text
    for event in _agent(options, options.namespace).observe(text, options.timestamp):
        print(_event(event))


def ask(options: argparse.Namespace) -> None:
    _existing(options.store).close()
    reply = _agent(options, options.namespace).ask(options.question)
    text = printable(reply.text) or "(the memory says nothing)"
    print(text if reply.sure else CLOSEST + text)
    for entry in reply.evidence.entries[:5]:
        print(f"  {_entry(entry)}")


def show(options: argparse.Namespace) -> None:
    store = _existing(options.store)
    print(_contents(store, options.namespace))
    if options.history:
        print(_events(store, options.namespace))


def serve(options: argparse.Namespace) -> None:
    from memalpha.agent.http import run, token_from

    token, is_new = token_from(os.environ)
    if is_new:
        print(f"no MEMALPHA_TOKEN is set; the token of this server is {token}", flush=True)
    run(_agent(options), token, options.host, options.port)


def _contents(store: Store, namespace: str) -> str:
    memory = store.read(namespace)
    lines = [f"core: {printable(memory.core) or '(empty)'}"]
    for name in MEMORY_NAMES[1:]:
        entries = [f"  {_entry(entry)}" for entry in getattr(memory, name)]
        lines += [f"{name}:", *(entries or ["  (empty)"])]
    return "\n".join(lines)


def _entry(entry: Entry) -> str:
    text = printable(entry.text).replace("\n", "\n      ")
    return f"[{entry.id}] {text}  (event {entry.written_at})"


def _events(store: Store, namespace: str) -> str:
    changes = store.changes(namespace)
    lines = []
    for event in store.events(namespace):
        lines.append(_event(event))
        for change in changes:
            if change.number == event.number:
                before, after = (
                    "-" if text is None else repr(text) for text in (change.before, change.after)
                )
                lines.append(f"    {MEMORY_NAMES[change.memory]} [{change.id}] {before} => {after}")
    return "\n".join(lines)


def _event(event: Event) -> str:
    calls = ", ".join(
        f"{printable(call['name']) or 'call'}: {call['outcome']}" for call in event.calls
    )
    effect = f"takes back {event.undoes}" if event.undoes is not None else calls or "no call"
    return f"event {event.number} {event.at} {event.action} by {printable(event.author)}: {effect}"
