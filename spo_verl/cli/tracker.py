"""``spo-verl tracker``: what is known of the prompts of a run or checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spo_verl.cli.output import Debug, Json, Outcome, verb

if TYPE_CHECKING:
    from spo_verl.history.states import PromptStates
    from spo_verl.history.texts import Texts

SHORT_HELP = "Show the prompts of a run: values, coverage, history of one."
HELP = "Show what the tracker, SPO's table of prompts, knows of a run or checkpoint."
SHOW_HELP = """Show values, coverage and draws of all prompts; list the hardest, most uncertain, most drifted
and never drawn ones.

PATH is a run's folder (trainer.default_local_dir), or one checkpoint (global_step_N or its spo folder). The run may
still train or have crashed."""
PROMPT_HELP = """Show the whole history of one prompt: each rollout with value, reward, retention and response.

PROMPT is a key (its first 6 digits are enough), a row of the dataset, or words of its text; if several match, they are
listed. The history comes from the run's record; without a record only the present state is shown."""

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

Place_ = Annotated[Path, typer.Argument(metavar="PATH", help="A run's folder or a checkpoint.")]
Data = Annotated[
    list[Path] | None,
    typer.Option(
        "--data", metavar="FILE", help="Training data with the prompts' texts, if the record has none; repeatable."
    ),
]
PromptKey = Annotated[
    str | None, typer.Option(help="Column of the data with the prompt, as verl's data.prompt_key; default: prompt.")
]


@app.command("show", help=SHOW_HELP, short_help="Show values, coverage and lists of prompts.")
@verb
def show_tracker(
    path: Place_,
    top: Annotated[int, typer.Option(min=0, max=1000, help="Number of prompts in each list.")] = 5,
    data: Data = None,
    prompt_key: PromptKey = None,
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    from spo_verl.cli.tracker_text import print_summary
    from spo_verl.history import places, states, summaries
    from spo_verl.history.texts import Texts

    place = places.find(path)
    found = states.states_of(place)
    texts = Texts(place.record, data or [], prompt_key)
    lists = {name: summaries.ranked(found, name, top) for name in summaries.RANKINGS}
    described = _described(found, {slot for slots in lists.values() for slot in slots.tolist()}, texts)
    answer: dict[str, Any] = {
        "path": str(path),
        "checkpoint": None if place.checkpoint is None else str(place.checkpoint),
        "record": None if place.record is None else str(place.record.path),
        **summaries.summary(found),
        "lists": {name: [described[slot] for slot in slots.tolist()] for name, slots in lists.items()},
    }
    return Outcome(answer, lambda console: print_summary(console, answer))


@app.command("prompt", help=PROMPT_HELP, short_help="Show the whole history of one prompt.")
@verb
def show_prompt(
    path: Place_,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="A key, a row of the dataset, or words of the text.")],
    data: Data = None,
    prompt_key: PromptKey = None,
    responses: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of dumped responses; default: the run's trainer.rollout_data_dir."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Largest number of matches to list.")] = 20,
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    from spo_verl.cli.tracker_text import print_history, print_matches
    from spo_verl.history import places, prompts, states
    from spo_verl.history.states import hex_of
    from spo_verl.history.texts import Texts

    place = places.find(path)
    found = states.states_of(place)
    texts = Texts(place.record, data or [], prompt_key)
    keys = prompts.find_prompts(prompt, found, texts)
    if len(keys) > 1:
        slot_of = {key: slot for slot, key in enumerate(hex_of(found.key_P))}
        shown = [slot_of[key] for key in keys[:limit]]
        listed = _described(found, set(shown), texts)
        answer = {"matches": [listed[slot] for slot in shown], "match_count": len(keys), "prompt": None}
        return Outcome(answer, lambda console: print_matches(console, prompt, answer))
    history = prompts.prompt_history(place, keys[0], found, texts, responses)
    answer = {"matches": [], "match_count": 1, "prompt": history}
    return Outcome(answer, lambda console: print_history(console, history))


def _described(states: PromptStates, slots: set[int], texts: Texts) -> dict[int, dict[str, Any]]:
    """What is listed of each prompt."""
    from spo_verl.history.states import hex_of
    from spo_verl.history.summaries import uncertainty

    listed = sorted(slots)
    keys = dict(zip(listed, hex_of(states.key_P[listed]) if listed else [], strict=True))
    said = texts.of(keys.values())
    return {
        slot: {
            "key": key,
            "row": int(states.row_P[slot]) if states.row_P is not None and states.row_P[slot] >= 0 else said[key].row,
            "data_source": said[key].data_source,
            "value": float(states.value_P[slot]),
            "n_eff": float(states.n_eff_P[slot]),
            "uncertainty": float(uncertainty(states.value_P[slot], states.n_eff_P[slot])),
            "draws": int(states.draws_P[slot]),
            "visits": int(states.visits_P[slot]),
            "drift": float(states.drift_P[slot]) if states.drift_P[slot] == states.drift_P[slot] else None,
            "text": said[key].text,
        }
        for slot, key in keys.items()
    }
