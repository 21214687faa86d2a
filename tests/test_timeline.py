"""The memory timeline: what it holds, and what a real browser makes of it."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from absl import app

from configs import tiny
from experiments import timeline
from experiments.lib import objects, page
from experiments.timeline import write_timeline
from memalpha.checkpoint import CheckpointError
from memalpha.data.instance import Instance, Question
from memalpha.memory import Entry, MemoryView
from memalpha.policy import Policy
from memalpha.rollout import run_episodes, scripted_writer
from memalpha.tools import format_call

HOSTILE = (
    "<script>document.title = 'owned'</script>",
    "</script><script>document.title = 'owned'</script>",
    "<!--<script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "]]> & &amp; &lt;b&gt; \u2028 \\u003c",
)
instance = Instance(
    "squad",
    "one</title><script>document.title='owned'</script>",
    ("The dog of Ana is called Rex.", "Rex is a cat.", *HOSTILE, "The end."),
    (Question("What is Rex?", ("cat",)), Question(HOSTILE[0], (HOSTILE[1],))),
)


def call(name, **arguments):
    return format_call(f"memory_{name}", {"memory_type": "semantic"} | arguments, "qwen3")


def keep(turn):
    return call("x", content=turn.text).replace("memory_x", "new_memory_insert")


def work(turn):
    """Adds, changes, deletes, fails: one of each, then keeps everything."""
    ids = [entry.id for entry in turn.view.semantic]
    if turn.chunk == 1:
        return call("update", new_content="Rex is a cat.", memory_id=ids[0]) + keep(turn)
    return call("delete", memory_id=ids[0]) if turn.chunk == 2 else keep(turn)


@pytest.fixture(scope="module")
def env(micro):
    return micro.env.replace(entry_tokens=160, prompt_tokens=800, first_ids=(1, 1))


def run(env, respond, one=instance, **options):
    writer = scripted_writer(env, respond, with_prompts=True)
    return run_episodes(env, [one], writer, **({"keep_views": True} | options))


@pytest.fixture(scope="module")
def runs(env):
    return {"before <b>": run(env, lambda turn: ""), "after": run(env, work)}


@pytest.fixture(scope="module")
def written(env, runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "timeline.html"
    return write_timeline(path, "a <title>", dict.fromkeys(runs, env), runs)


class Reader(HTMLParser):
    """Elements with their attributes, and the text of each script."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] == "script":
            self.scripts[-1] += data


def test_the_page_needs_nothing_else_and_holds_two_scripts(written):
    text = written.read_text()
    found = Reader(text)
    assert [a for tag, a in found.elements if tag == "script"] == [
        {"type": "application/json", "id": "data"},
        {},
    ]
    assert not [a for _, a in found.elements if "src" in a]
    assert [a["href"] for _, a in found.elements if "href" in a] == ["data:,"]
    assert not re.search(r"https?:|@import|url\(", text)
    assert "<title>a &lt;title&gt;</title>" in text
    policy = next(a["content"] for _, a in found.elements if "http-equiv" in a)
    assert "default-src 'none'" in policy and "'unsafe-inline'" not in policy.split("style-src")[0]


def test_the_data_are_all_that_happened(env, runs, written):
    data = json.loads(Reader(written.read_text()).scripts[0])
    (episode,) = data["episodes"]
    assert episode["chunks"] == list(instance.chunks)
    assert episode["questions"][0] == {"question": "What is Rex?", "gold": ["cat"]}
    before, after = episode["runs"]
    assert (before["name"], after["name"]) == ("before <b>", "after")
    assert [step["changes"] for step in after["steps"][:3]] == [
        [[1, 1, None, "The dog of Ana is called Rex."]],
        [[1, 1, "The dog of Ana is called Rex.", "Rex is a cat."]],
        [[1, 1, "Rex is a cat.", None]],
    ]
    outcomes = [[c["outcome"] for c in step["calls"]] for step in after["steps"][:3]]
    assert outcomes == [["ok"], ["ok", "duplicate"], ["ok"]]
    assert before["steps"][0]["calls"] == [] and before["r1"] == 0.0
    made = runs["after"][0]
    for step, taken in zip(after["steps"], made.steps, strict=True):
        assert (step["r2"], step["r4"], step["tokens"]) == (taken.r2, taken.r4, taken.view.tokens)
        assert taken.text.strip() in step["response"] and "<|im_end|>" in step["response"]
        assert step["prompt"].endswith("</new_chunk>")
    texts = {entry.id: entry for entry in made.view.semantic}
    for answer, asked in zip(after["answers"], made.answers, strict=True):
        assert answer["text"] == asked.text and answer["tokens"] == asked.tokens
        for (i, score, kind, text, at), wanted in zip(answer["found"], asked.ids, strict=True):
            assert (i, kind, text, at) == (wanted, 1, texts[i].text, texts[i].written_at)
            assert isinstance(score, float)


def test_a_failed_reader_is_shown_and_is_no_number(env, tmp_path):
    deaf = env.replace(answerer=lambda requests: [None] * len(requests))
    path = write_timeline(tmp_path / "t.html", "t", {"a": deaf}, {"a": run(deaf, keep)})
    (episode,) = json.loads(Reader(path.read_text()).scripts[0])["episodes"]
    assert episode["runs"][0]["r1"] is None
    assert [a["score"] for a in episode["runs"][0]["answers"]] == [None, None]


def test_runs_that_cannot_be_shown_are_refused(env, runs, tmp_path):
    other = replace(instance, instance_id="other")
    for bad, message in (
        ({}, "no episodes"),
        ({"a": []}, "no episodes"),
        ({"a": runs["after"], "b": runs["after"] * 2}, "give equal"),
        ({"a": runs["after"], "b": run(env, keep, other)}, "other instances"),
        ({"a": run(env, keep, keep_views=False)}, "keep_views=True"),
    ):
        with pytest.raises(ValueError, match=message):
            write_timeline(tmp_path / "t.html", "t", dict.fromkeys(bad, env), bad)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", HOSTILE)
def test_json_in_a_script_is_the_same_value_and_ends_no_script(text):
    made = page.script_json({text: [text]})
    assert json.loads(made) == {text: [text]} and not set("<>&\u2028") & set(made)
    with pytest.raises(ValueError):
        page.script_json(float("nan"))


def test_stepping_by_keyboard_shows_every_change(tab, written):
    tab.goto(written.as_uri())
    run_2 = tab.locator(".run").nth(1)
    assert run_2.locator(".added .now").inner_text() == "The dog of Ana is called Rex."
    tab.keyboard.press("ArrowRight")
    assert run_2.locator(".changed .now").inner_text() == "Rex is a cat."
    assert run_2.locator(".changed .old").inner_text() == "The dog of Ana is called Rex."
    assert run_2.locator(".call.bad").inner_text().startswith("duplicate")
    tab.keyboard.press("j")
    assert run_2.locator(".deleted .now").inner_text() == "Rex is a cat."
    assert tab.locator("#place").inner_text() == "chunk 2 of 0–7"
    tab.keyboard.press("End")
    assert tab.locator("#chunk").inner_text() == "The end."
    tab.keyboard.press("ArrowRight")  # there is no further one
    assert tab.locator("#chunk").inner_text() == "The end."
    tab.keyboard.press("Home")
    assert tab.locator("#chunk").inner_text() == instance.chunks[0]
    tab.locator("#questions details summary").nth(1).click()
    tab.locator("#questions .origin").first.click()  # to the chunk that an entry came from
    assert tab.locator("#place").inner_text() != "chunk 0 of 0–7"
    assert tab.problems == []


def test_in_print_the_place_stands_and_lists_are_whole(tab, written):
    tab.emulate_media(media="print", color_scheme="dark")
    tab.goto(written.as_uri())
    assert tab.locator("#place").is_visible() and not tab.locator("#next").is_visible()
    added = tab.locator(".added").first
    for element, name, value in (
        (added, "background-color", "rgb(217, 242, 223)"),
        (added, "color", "rgb(0, 0, 0)"),
        (tab.locator(".entries").first, "overflow-y", "visible"),
        (tab.locator(".question").first, "break-inside", "avoid"),
    ):
        found = element.evaluate(f"(one) => getComputedStyle(one).getPropertyValue('{name}')")
        assert found == value, name


def test_a_page_within_a_notebook_steps_too(tab, written, tmp_path):
    holder = tmp_path / "notebook.html"
    holder.write_text(page.frame(written))
    tab.goto(holder.as_uri())
    inside = tab.frame_locator("iframe")
    inside.locator("#next").click()
    assert inside.locator("#place").inner_text() == "chunk 1 of 0–7"
    assert tab.problems == []


def test_nothing_in_chunks_memories_or_names_runs_as_script(tab, written):
    tab.goto(written.as_uri())
    for number in range(len(instance.chunks)):
        assert tab.locator("#chunk").text_content() == instance.chunks[number]
        tab.locator("details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
        tab.keyboard.press("ArrowRight")
    tab.wait_for_timeout(50)  # for an onerror, had an image been made
    assert tab.title() == "a <title>" and tab.problems == []
    assert tab.locator("img").count() == 0 and tab.locator("script").count() == 2


def test_an_episode_of_400_chunks_can_be_walked_through(tab, env, tmp_path):
    chunks = tuple(f"Fact {n}: town {n} has {n * n} houses." for n in range(400))
    (short,) = run(env, keep, replace(instance, chunks=chunks[:1]))
    steps, views = [], ()
    for n, chunk in enumerate(chunks):  # by hand: 400 chunks take long to roll out
        views += (Entry(n + 1, chunk, n),)
        view = MemoryView("", views, (), n + 1, 0, 12 * n)
        steps.append(replace(short.steps[0], chunk=n, view=view))
    long = replace(short, instance=replace(instance, chunks=chunks), steps=steps, view=view)
    path = write_timeline(tmp_path / "t.html", "long", {"keep": env}, {"keep": [long]})
    tab.goto(path.as_uri())
    tab.evaluate(
        """new MutationObserver((all) => {
          window.made = all.reduce((sum, one) => sum + one.addedNodes.length, 0);
        }).observe(document.getElementById("runs"), {childList: true, subtree: true})"""
    )
    made = []
    for number in range(1, 400):
        tab.keyboard.press("ArrowRight")
        made.append(tab.evaluate("window.made"))
        if number % 57 == 0:
            assert tab.locator("#chunk").inner_text() == chunks[number]
    assert max(made) == max(made[:9])  # a step costs the same at the end: it smoothly goes on
    assert tab.locator("#place").inner_text() == "chunk 399 of 0–399"
    assert tab.locator(".entries").nth(1).locator(".id").count() == 400
    assert tab.problems == []


def test_on_a_phone_the_buttons_alone_stay_in_sight(tab, written):
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.goto(written.as_uri())
    tab.evaluate("window.scrollTo(0, 400)")
    bar = tab.locator("nav").bounding_box()
    assert bar["y"] == 0 and bar["height"] < 130 and tab.locator("#next").is_visible()
    assert tab.locator("h1").bounding_box()["y"] < 0
    assert tab.evaluate("document.documentElement.scrollWidth") == 390


def policy(name, env, **changes):
    return Policy(name, None, None, env.replace(**changes))


def test_what_can_stand_side_by_side(monkeypatch, tmp_path, env):
    def load(folder, stage="rl", step=None):
        return policy(f"{folder} {stage} {step}", env, answerer="another", top_k=3)

    monkeypatch.setattr(timeline, "load_policy", load)
    monkeypatch.setattr(objects, "load_policy", load)
    here, there = tmp_path / "a" / "run", tmp_path / "b" / "run"
    config, trained = tiny.get_config(), policy("trained", env, answerer="its own")
    choose = lambda *args: timeline.choose_policies(config, here, trained, *args)
    names = lambda chosen: {name: each.name for name, each in chosen.items()}
    pair = choose()
    assert names(pair) == {
        "before training": f"{here} warm_start None",
        "after training": "trained",
    }
    assert all(each.env is trained.env for each in pair.values())
    steps = choose(None, [125, 150])
    assert names(steps) == {f"step {step}": f"{here} rl {step}" for step in (125, 150)}
    other = choose(str(tmp_path / "other"))
    assert other.keys() == {"run", "other"}
    # It reads its own prompts, and is read by the same reader.
    assert (other["other"].env.reading.top_k, other["other"].env.reading.answerer) == (3, "its own")
    assert choose(str(there)).keys() == {str(here), str(there)}  # two runs of one name
    with pytest.raises(app.UsageError, match="--checkpoints"):
        choose(f"{here}/../run")


def test_without_a_warm_start_the_run_began_with_its_model(monkeypatch, tmp_path, env):
    monkeypatch.setattr(objects, "build_model", lambda config, size: ("model", f"params of {size}"))
    config = tiny.get_config("warm_start.steps=0")
    chosen = timeline.choose_policies(config, tmp_path, policy("trained", env))
    assert chosen["before training"].params == f"params of {len(env.prompt.tokenizer)}"


def test_every_run_is_decoded_by_its_own_tokenizer(tmp_path, env, runs):
    class Loud:
        def __init__(self, own):
            self.decode = lambda tokens: own.decode(tokens).upper()

    (name, other) = runs
    envs = {name: env, other: env.replace(tokenizer=Loud(env.prompt.tokenizer))}
    page_text = write_timeline(tmp_path / "t.html", "t", envs, runs).read_text()
    (episode,) = json.loads(Reader(page_text).scripts[0])["episodes"]
    first, second = episode["runs"]
    assert second["steps"][0]["prompt"] == first["steps"][0]["prompt"].upper()
    assert first["steps"][0]["prompt"] != second["steps"][0]["prompt"]


def test_a_checkpoint_that_is_not_kept_ends_the_command_with_those_that_are(monkeypatch, tmp_path):
    def load(*args, **kwargs):
        raise CheckpointError("no checkpoint of step 7; there are: 175, 200")

    monkeypatch.setattr(
        timeline, "open_trained", lambda folder: ("config", SimpleNamespace(env=None))
    )
    monkeypatch.setattr(timeline, "load_policy", load)
    given = {"WORKDIR": str(tmp_path), "CHECKPOINTS": ["7", "200"], "COMPARE": None}
    for name, value in given.items():
        monkeypatch.setattr(timeline, name, SimpleNamespace(value=value), raising=False)
    with pytest.raises(SystemExit, match="there are: 175, 200"):
        timeline.main([])
