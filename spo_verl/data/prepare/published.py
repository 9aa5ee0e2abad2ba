"""The sources that can be prepared: one entry each, with the column names of every release that is known.

Nothing here is code that reads rows: `spo_verl.data.prepare.streams` finds the columns, `answers` and
`problem_texts` hold the rules that an entry names. Where the schemas were looked up, and what could not be verified:
docs/data.md.
"""

from dataclasses import dataclass
from typing import Literal

from spo_verl.data.prepare.data_errors import SpoDataError

AnswerRule = Literal["integer", "number_or_text", "after_hashes", "latex", "any", "any_after_hashes", "any_boxed"]
Use = Literal["train", "evaluation"]


@dataclass(frozen=True)
class Release:
    """One published form of a source: where it is, and what its columns are called.

    Attributes:
        name: for messages and reports.
        hub_id: on the Hugging Face hub; "" for a source of the user's own (`own_source`).
        parts: configuration (None: the only one) and split of each part; several parts are read one after the other.
        problem: column of the problem. Dots lead into structs, here and below.
        answer: column of the answer.
        source_id: column of the release's own identifier; None without one.
        messages: the problem is a list of chat messages instead of a text; None: each row says which.
        documented_rows: rows of all parts together as its page says; None where no page was found that says it.
        licence: as the hub's page names it.
        format: file format on the hub; "parquet" lets it be streamed in small batches.
    """

    name: str
    hub_id: str
    parts: tuple[tuple[str | None, str], ...]
    problem: str
    answer: str
    source_id: str | None = None
    messages: bool | None = False
    documented_rows: int | None = None
    licence: str = "not verified"
    format: Literal["parquet", "json", "unknown"] = "unknown"


@dataclass(frozen=True)
class Source:
    """A set of problems.

    Attributes:
        name: the ``data_source`` of its prepared rows, by which verl and SPO know it.
        title: as people call it.
        use: what it is for; rows of an evaluation source get the split "test", whatever the hub calls it.
        answer_rule: how its answers are read, see `spo_verl.data.prepare.answers`.
        releases: the first one is the default.
        ability: verl's column of that name; "math" has answers that the mathematical reward reads.
        english_only: rows in other scripts are dropped, see `spo_verl.data.prepare.problem_texts.is_english`.
    """

    name: str
    title: str
    use: Use
    answer_rule: AnswerRule
    releases: tuple[Release, ...]
    english_only: bool = False
    ability: str = "math"


_VERL_COLUMNS = {"problem": "prompt", "answer": "reward_model.ground_truth", "messages": True}

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "dapo_math_17k",
            "DAPO-Math-17k",
            "train",
            "number_or_text",
            (
                Release(
                    "processed",
                    "open-r1/DAPO-Math-17k-Processed",
                    (("en", "train"),),
                    problem="prompt",
                    answer="solution",
                    source_id="extra_info.index",
                    documented_rows=14116,
                    licence="none stated",
                    format="parquet",
                ),
                Release(
                    "original",
                    "BytedTsinghua-SIA/DAPO-Math-17k",
                    ((None, "train"),),
                    **_VERL_COLUMNS,  # type: ignore[arg-type]
                    source_id="extra_info.index",
                    documented_rows=1791700,
                    licence="apache-2.0",
                    format="parquet",
                ),
            ),
            english_only=True,
        ),
        Source(
            "aime_2024",
            "AIME 2024",
            "evaluation",
            "integer",
            (
                Release(
                    "Maxwell-Jia",
                    "Maxwell-Jia/AIME_2024",
                    ((None, "train"),),
                    problem="Problem",
                    answer="Answer",
                    source_id="ID",
                    documented_rows=30,
                    licence="mit",
                    format="parquet",
                ),
                Release(
                    "HuggingFaceH4",
                    "HuggingFaceH4/aime_2024",
                    ((None, "train"),),
                    problem="problem",
                    answer="answer",
                    source_id="id",
                    documented_rows=30,
                    licence="none stated",
                    format="parquet",
                ),
                Release(
                    "DAPO",
                    "BytedTsinghua-SIA/AIME-2024",
                    ((None, "train"),),
                    **_VERL_COLUMNS,  # type: ignore[arg-type]
                    documented_rows=960,
                    licence="apache-2.0",
                    format="parquet",
                ),
            ),
        ),
        Source(
            "aime_2025",
            "AIME 2025",
            "evaluation",
            "integer",
            (
                Release(
                    "yentinglin",
                    "yentinglin/aime_2025",
                    ((None, "train"),),
                    problem="problem",
                    answer="answer",
                    source_id="id",
                    documented_rows=30,
                    format="parquet",
                ),
                Release(
                    "math-ai",
                    "math-ai/aime25",
                    ((None, "test"),),
                    problem="problem",
                    answer="answer",
                    source_id="id",
                    documented_rows=30,
                    licence="none stated",
                    format="json",
                ),
                Release(
                    "opencompass",
                    "opencompass/AIME2025",
                    (("AIME2025-I", "test"), ("AIME2025-II", "test")),
                    problem="question",
                    answer="answer",
                    documented_rows=30,
                    licence="mit",
                    format="json",
                ),
                Release(
                    "MathArena",
                    "MathArena/aime_2025",
                    ((None, "train"),),
                    problem="problem",
                    answer="answer",
                    source_id="problem_idx",
                    documented_rows=30,
                    format="parquet",
                ),
            ),
        ),
        Source(
            "beyond_aime",
            "BeyondAIME",
            "evaluation",
            "integer",
            (
                Release(
                    "ByteDance-Seed",
                    "ByteDance-Seed/BeyondAIME",
                    ((None, "test"),),
                    problem="problem",
                    answer="answer",
                    documented_rows=100,
                ),
            ),
        ),
        Source(
            "brumo_2025",
            "BRUMO 2025",
            "evaluation",
            "latex",
            (
                Release(
                    "MathArena",
                    "MathArena/brumo_2025",
                    ((None, "train"),),
                    problem="problem",
                    answer="answer",
                    source_id="problem_idx",
                    documented_rows=30,
                    licence="cc-by-nc-sa-4.0",
                    format="parquet",
                ),
            ),
        ),
        Source(
            "hmmt_feb_2025",
            "HMMT February 2025",
            "evaluation",
            "latex",
            (
                Release(
                    "MathArena",
                    "MathArena/hmmt_feb_2025",
                    ((None, "train"),),
                    problem="problem",
                    answer="answer",
                    source_id="problem_idx",
                    documented_rows=30,
                    licence="cc-by-nc-sa-4.0",
                    format="parquet",
                ),
            ),
        ),
        Source(
            "gsm8k",
            "GSM8K",
            "train",
            "after_hashes",
            (
                Release(
                    "OpenAI",
                    "openai/gsm8k",
                    (("main", "train"),),
                    problem="question",
                    answer="answer",
                    documented_rows=7473,
                    licence="mit",
                    format="parquet",
                ),
            ),
        ),
    )
}


def find_source(name: str) -> Source:
    """The source of that name.

    Raises:
        SpoDataError: no source has it.
    """
    try:
        return SOURCES[name]
    except KeyError:
        raise SpoDataError(
            f"there is no source {name!r}: take one of {', '.join(SOURCES)} (see `spo-verl data list`), or name the "
            "columns of your own data with --question and --answer."
        ) from None
